"""A data set as a folder of its own that kohya's scripts (and this pack) read: ``img/N_name``, captions, a TOML file.

Pictures are hard links where the disk allows it, else copies; never symbolic links. What a link cannot say is drawn
anew: a crop, a turned photo (kohya's scripts ignore EXIF), a format they do not read.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import InputError
from ..core.files import atomic_path, link_or_copy, read_json, safe_name, write_json, write_text
from ..core.index import Index
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from .caption_files import caption_bytes, write_caption
from .headers import FILES_AT_ONCE, WORKERS, PictureFile, read_headers
from .images import BadPicture, load_row
from .masks import load_mask
from .save_report import SaveReport, Work
from .table import Dataset, Subset
from .words import counted

PICTURES = ("link", "copy")
CAPTIONS = (".txt", ".caption", ".json", ".txt and .json")
METADATA = ("none", "json", "jsonl")
MARK = "atelier-export.json"
TOML_NAME = "dataset.toml"
MASKS = "masks"
"""Folder of the masks, with a folder in it for each folder of pictures, and files of the pictures' names."""
_KOHYA_ENDINGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    ".png": ("PNG", {}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"lossless": True}),
    ".bmp": ("BMP", {}),
}
"""Formats that kohya's scripts read, and how a picture that is drawn anew is written."""
_MAX_NUMBER = 999


@dataclass(frozen=True, kw_only=True)
class ExportParams(Params):
    """How a data set is written as a folder."""

    pictures: str = param(
        "link",
        doc="link: the same file at a second place, without taking space, where the disk allows it, else a copy. copy: "
        "files of their own, which may be edited without touching the originals.",
        choices=PICTURES,
    )
    captions: str = param(".txt", doc="Kind of caption files.", choices=CAPTIONS)
    toml: bool = param(True, doc=f"Writes {TOML_NAME} with every subset's options for kohya's scripts.")
    metadata: str = param(
        "none", doc="One file with all captions beside the folders, for kohya's fine-tuning scripts.", choices=METADATA
    )
    resolution_px: int = param(
        512, doc="Resolution named in the TOML file.", unit="px", minimum=64, maximum=4096, step=64, advanced=True
    )
    batch_size: int = param(1, doc="Batch size named in the TOML file.", minimum=1, maximum=1024, advanced=True)


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Where an export lies, and what was done."""

    folder: Path
    report: SaveReport


def export_dataset(
    dataset: Dataset,
    target: Path,
    params: ExportParams,
    *,
    index: Index | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Writes a data set as a folder.

    The same data set to the same place a second time does nothing. Anything else that lies there is left alone: a
    number is put behind the name. Everything is written under a temporary name first.

    Args:
        dataset: The data set.
        target: The new folder; already allowed by the host.
        params: How.
        index: Where the headers of the pictures are remembered.
        progress: Reports and cancels; nothing is left behind then.

    Raises:
        InputError: The target is a file, or lies inside the data set.
        StorageError: It cannot be written.
    """
    progress = progress or SilentProgress()
    _check_target(dataset, target)
    fingerprint = f"{dataset.fingerprint()} {params.to_json()}"
    place, done = _free_place(target, fingerprint)
    if done:
        return Exported(folder=place, report=SaveReport(title=f"{place.name} lies there already.", counts={}))
    work = Work()
    counts = {"pictures": 0, "drawn anew (cropped, turned, or of another format)": 0, "captions": 0, "masks": 0}
    with atomic_path(place, durable=False) as temporary:
        temporary.mkdir()
        folders = _folder_names(dataset.subsets)
        names = _file_names(dataset)
        _write_pictures(dataset, temporary, folders, names, params, index, progress, work, counts)
        if params.toml:
            write_text(temporary / TOML_NAME, toml_text(dataset, folders, params, masks=MASKS))
        if params.metadata != "none":
            _write_metadata(dataset, temporary, folders, names, params.metadata)
        write_json(temporary / MARK, {"fingerprint": fingerprint, "history": list(dataset.history)})
    title = f"Exported {counted(counts['pictures'], 'picture')} in {counted(len(folders), 'folder')} to {place.name}."
    notes = [] if place == target else [f"{target.name} was taken, so it is called {place.name}."]
    lost = [name for name, column in (("focal points", dataset.focus), ("loss weights", dataset.weights))
            if column is not None]  # fmt: skip
    if lost:
        notes.append(f"A folder cannot hold {' or '.join(lost)}: set them anew where it is opened.")
    return Exported(
        folder=place, report=SaveReport(title=title, counts=counts, refused=tuple(work.refused), notes=tuple(notes))
    )


def toml_text(dataset: Dataset, folders: Sequence[str], params: ExportParams, *, masks: str = "") -> str:
    """The configuration for kohya's scripts of the data set; folders are relative to the file.

    Args:
        dataset: The data set.
        folders: Folder of each subset.
        params: Resolution and batch size.
        masks: Folder with those of the subsets that have any; empty where none are written.
    """
    masked = _masked_subsets(dataset) if masks else frozenset()
    ending = params.captions.split(" ")[0]
    lines = ["[general]", f"caption_extension = {_quoted(ending)}", "", "[[datasets]]"]
    lines += [f"resolution = {params.resolution_px}", f"batch_size = {params.batch_size}", "enable_bucket = true"]
    for number, (subset, folder) in enumerate(zip(dataset.subsets, folders, strict=True)):
        lines += ["", "  [[datasets.subsets]]"]
        lines += [f"  {key} = {value}" for key, value in _toml_options(subset, folder)]
        if number in masked:
            lines.append(f"  conditioning_data_dir = {_quoted(f'{masks}/{folder}')}")
    return "\n".join(lines) + "\n"


def _toml_options(subset: Subset, folder: str) -> Iterator[tuple[str, str]]:
    yield "image_dir", _quoted(folder)
    yield "num_repeats", str(subset.repeats)
    if subset.concept:
        yield "class_tokens", _quoted(subset.concept)
    if subset.is_reg:
        yield "is_reg", "true"
    yield "shuffle_caption", str(subset.shuffle_captions).lower()
    yield "keep_tokens", str(subset.keep_tokens)
    for name in ("keep_tokens_separator", "secondary_separator"):
        if getattr(subset, name):
            yield name, _quoted(getattr(subset, name))
    if subset.caption_prefix:
        yield "caption_prefix", _quoted(subset.caption_prefix + ", ")
    if subset.caption_dropout:
        yield "caption_dropout_rate", repr(float(subset.caption_dropout))
    if subset.tag_dropout:
        yield "caption_tag_dropout_rate", repr(float(subset.tag_dropout))
    if subset.flip:
        yield "flip_aug", "true"


def _quoted(text: str) -> str:
    """A TOML string. JSON's escapes are TOML's too, except for the character 127."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write_pictures(
    dataset: Dataset,
    root: Path,
    folders: Sequence[str],
    names: Sequence[str],
    params: ExportParams,
    index: Index | None,
    progress: Progress,
    work: Work,
    counts: dict[str, int],
) -> None:
    endings = params.captions.split(" and ")
    masked = _masked_subsets(dataset)
    for number, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        if number in masked:
            (root / MASKS / folder).mkdir(parents=True)
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for start in range(0, len(dataset), FILES_AT_ONCE):
            rows = range(start, min(start + FILES_AT_ONCE, len(dataset)))
            files = [
                PictureFile(str(dataset.path(row)), int(dataset.size_bytes[row]), int(dataset.mtime_ns[row]))
                for row in rows
            ]
            headers = read_headers(files, index=index, pool=pool)
            for row, header in zip(rows, headers, strict=True):
                progress.update(row, len(dataset), "Writing pictures and captions")
                place = root / folders[int(dataset.subset_index[row])] / names[row]
                if isinstance(header, BadPicture):
                    work.refuse(dataset.shown(row), header.reason)
                    continue
                if not _put_picture(dataset, row, place, header.orientation, params, work, counts):
                    continue
                if int(dataset.subset_index[row]) in masked:
                    beside = root / MASKS / folders[int(dataset.subset_index[row])]
                    _put_mask(dataset, row, beside / f"{place.stem}.png", work, counts)
                for ending in endings:
                    if dataset.tags.row(row) or ending == ".json":
                        write_caption(place.with_name(place.stem + ending), caption_bytes(dataset, row, ending))
                        counts["captions"] += 1
    progress.update(len(dataset), max(1, len(dataset)), "Writing pictures and captions")


def _put_picture(
    dataset: Dataset,
    row: int,
    place: Path,
    orientation: int,
    params: ExportParams,
    work: Work,
    counts: dict[str, int],
) -> bool:
    source = dataset.path(row)
    if dataset.crop(row) is not None or orientation != 1 or source.suffix.lower() != place.suffix:
        try:
            image = load_row(dataset, row)
        except BadPicture as refusal:
            work.refuse(dataset.shown(row), refusal.reason)
            return False
        with atomic_path(place, durable=False) as temporary:
            kind, options = _KOHYA_ENDINGS[place.suffix]
            image.save(temporary, format=kind, **options)
        counts["drawn anew (cropped, turned, or of another format)"] += 1
    elif params.pictures == "link":
        link_or_copy(source, place)
    else:
        with atomic_path(place, durable=False) as temporary:
            _copy(source, temporary)
    counts["pictures"] += 1
    return True


def _masked_subsets(dataset: Dataset) -> frozenset[int]:
    """Subsets with a picture that has a mask."""
    if dataset.masks is None:
        return frozenset()
    has_mask = np.fromiter(map(bool, dataset.masks), bool, len(dataset))
    return frozenset(np.unique(dataset.subset_index[has_mask]).tolist())


def _put_mask(dataset: Dataset, row: int, place: Path, work: Work, counts: dict[str, int]) -> None:
    """Writes a picture's mask; a white one where it has none, since kohya's scripts want one for each."""
    try:
        mask = load_mask(dataset, row)
    except BadPicture as refusal:
        work.refuse(dataset.shown(row), f"its mask is not written: {refusal.reason}")
        mask = None
    else:
        counts["masks"] += mask is not None
    white = mask or Image.new("L", (int(dataset.width_px[row]), int(dataset.height_px[row])), 255)
    with atomic_path(place, durable=False) as temporary:
        white.save(temporary, format="PNG")


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as read, open(target, "wb") as written:
        while chunk := read.read(1 << 20):
            written.write(chunk)


def _write_metadata(dataset: Dataset, root: Path, folders: Sequence[str], names: Sequence[str], kind: str) -> None:
    """Streams the captions, so that a large set needs no object of all of them."""
    ending = ".jsonl" if kind == "jsonl" else ".json"
    with (
        atomic_path(root / f"metadata{ending}", durable=False) as temporary,
        open(temporary, "w", encoding="utf-8", newline="\n") as file,
    ):
        file.write("{\n" if kind == "json" else "")
        for row, name in enumerate(names):
            path = f"{folders[int(dataset.subset_index[row])]}/{name}"
            size = [int(dataset.width_px[row]), int(dataset.height_px[row])]
            entry = {"caption": dataset.caption(row), "image_size": size}
            if kind == "jsonl":
                file.write(json.dumps({"image_path": path, **entry}, ensure_ascii=False) + "\n")
            else:
                comma = "," if row + 1 < len(names) else ""
                file.write(
                    f"  {json.dumps(path, ensure_ascii=False)}: {json.dumps(entry, ensure_ascii=False)}{comma}\n"
                )
        file.write("}\n" if kind == "json" else "")


def _folder_names(subsets: Sequence[Subset]) -> list[str]:
    """``img/N_name`` or ``reg/N_name`` for each subset, no two alike."""
    taken: set[str] = set()
    result = []
    for subset in subsets:
        text = subset.concept or _without_count(subset.folder.name)
        base = f"{'reg' if subset.is_reg else 'img'}/{safe_name(f'{subset.repeats}_{text}', 100)}"
        result.append(_free_name(base, "", taken))
    return result


def _file_names(dataset: Dataset) -> list[str]:
    """A file name for each picture: its path in the subset in one piece, no two stems of a folder alike."""
    taken: dict[int, set[str]] = {}
    result = []
    for row, name in enumerate(dataset.names):
        stem, ending = os.path.splitext(name)
        ending = ending.lower()
        is_kept = ending in _KOHYA_ENDINGS and dataset.crop(row) is None
        flat = safe_name(stem.replace("/", "~"), 120) or "picture"
        result.append(
            _free_name(flat, ending if is_kept else ".png", taken.setdefault(int(dataset.subset_index[row]), set()))
        )
    return result


def _free_name(base: str, ending: str, taken: set[str]) -> str:
    number, name = 1, base
    while name.casefold() in taken:
        number += 1
        name = f"{base}_{number}"
    taken.add(name.casefold())
    return name + ending


def _without_count(name: str) -> str:
    head, _, rest = name.partition("_")
    return rest if head.isdecimal() and rest else name


def _check_target(dataset: Dataset, target: Path) -> None:
    if target.is_file():
        raise InputError(f"{str(target)!r} is a file; give the name of a new folder")
    real = Path(os.path.realpath(target))
    for subset in dataset.subsets:
        folder = Path(os.path.realpath(subset.folder))
        if real == folder or real.is_relative_to(folder):
            raise InputError(
                f"{str(target)!r} lies inside the data set's own folder {folder.name!r}; give another place"
            )


def _free_place(target: Path, fingerprint: str) -> tuple[Path, bool]:
    """The folder to write, and whether this very export lies there already."""
    for number in range(1, _MAX_NUMBER + 1):
        place = target if number == 1 else target.with_name(f"{target.name}-{number:03d}")
        if not place.exists():
            return place, False
        mark = place / MARK
        if mark.is_file() and read_json(mark).get("fingerprint") == fingerprint:
            return place, True
    raise InputError(f"{target.name!r} and its {_MAX_NUMBER - 1} followers are taken; give another name")
