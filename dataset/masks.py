"""Masks of pictures: from their own alpha or from files of the same name; white counts in the loss, black does not.

The conventions are those of kohya's scripts (``alpha_mask``, same-named files of ``conditioning_data_dir``) and of
OneTrainer (``NAME-masklabel.png`` beside the picture).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.errors import InputError
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from . import images
from .beside import SeenFolders
from .columns import TextColumn
from .images import BadPicture, load_image, read_header
from .table import Dataset
from .words import counted, printable

ALPHA = "alpha"
SOURCES = ("alpha", "files", "files, else alpha", "none")
BESIDE = ("-masklabel", "_mask", "-mask", ".mask")
"""What stands between name and ending of a mask beside its picture."""
ENDINGS = (".png", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
MAX_ASPECT_ERROR = 0.01
"""A mask of another size is scaled when its proportions differ by no more than this."""
_MAX_LISTED = 20
_UPDATE_EVERY = 32


@dataclass(frozen=True, kw_only=True)
class MaskParams(Params):
    """Where masks come from."""

    source: str = param(
        "alpha",
        doc="alpha: the picture's own transparency. files: pictures of the same name in the mask folder, or beside "
        "them with -masklabel or _mask after the name. none: takes masks away",
        choices=SOURCES,
    )


@dataclass(frozen=True, kw_only=True)
class Masked:
    """A data set with masks, and what was done in words."""

    dataset: Dataset
    report: str


def with_masks(
    dataset: Dataset,
    params: MaskParams,
    *,
    folder: Path | None = None,
    allowed: Callable[[Path], bool] | None = None,
    progress: Progress | None = None,
) -> Masked:
    """Finds the mask of every picture and checks its size; only headers are read.

    Args:
        dataset: The pictures.
        params: Where masks come from.
        folder: Folder of mask files; None looks beside the pictures.
        allowed: Says whether a file may be read, for masks that a link leads elsewhere.
        progress: Told now and then; may cancel.

    Raises:
        InputError: The folder is missing, or no picture has a usable mask.
    """
    if params.source == "none":
        note = f"masks of {counted(len(dataset), 'picture')} taken away"
        return Masked(dataset=replace(dataset, masks=None, history=(*dataset.history, note)), report=note + ".")
    if folder is not None and not folder.is_dir():
        raise InputError(f"there is no mask folder {str(folder)!r}; give one with files named as the pictures")
    progress = progress or SilentProgress()
    found: list[str] = []
    counts = {"alpha": 0, "files": 0, "scaled": 0, "none": 0}
    problems: list[str] = []
    seen = SeenFolders()
    for row in range(len(dataset)):
        if row % _UPDATE_EVERY == 0:
            progress.update(row, len(dataset), "Looking for masks")
        try:
            found.append(_mask_of(dataset, row, params.source, folder, allowed, counts, seen))
        except BadPicture as refusal:
            problems.append(f"{printable(dataset.names[row])}: {refusal.reason}")
            found.append("")
    if not any(found):
        first = f" ({problems[0]})" if problems else ""
        where = {"alpha": "is transparent anywhere", "files": f"has a mask file {_where(dataset, folder)}"}
        raise InputError(
            f"no picture {where.get(params.source, 'has a mask file or transparency')}{first}; choose another source"
        )
    masks = TextColumn.from_strings(found)
    note = f"masks for {counts['alpha'] + counts['files']} of {counted(len(dataset), 'picture')} ({params.source})"
    shared = _shared(dataset, found)
    lines = [
        f"Masks: {counts['alpha']} from alpha, {counts['files']} from files ({counts['scaled']} of another size, "
        f"scaled), {len(dataset) - counts['alpha'] - counts['files']} of {counted(len(dataset), 'picture')} without.",
        *shared,
        *(f"  ! {problem}" for problem in problems[:_MAX_LISTED]),
    ]
    if len(problems) > _MAX_LISTED:
        lines.append(f"  ! and {len(problems) - _MAX_LISTED} more")
    result = replace(dataset, masks=masks, history=(*dataset.history, note))
    rest = _no_masks(dataset, found)
    if len(rest) < len(dataset):
        files = counted(len(dataset) - len(rest), "mask file")
        result = result.take(rest, note=f"{files} taken out of the pictures")
        lines.append(f"Taken out of the pictures, as they are masks of others: {files}.")
    return Masked(dataset=result, report="\n".join([*lines, *_examples(result)]))


def load_mask(dataset: Dataset, index: int) -> Image.Image | None:
    """The mask of a picture: mode L, upright, of its size, cropped like it; None where it has none.

    Raises:
        BadPicture: The mask's file is gone, damaged, or of other proportions than its picture.
    """
    mask = dataset.mask(index)
    if mask == "":
        return None
    size = dataset.full_size(index)
    if mask == ALPHA:
        layer = load_alpha(dataset.path(index))
    else:
        layer = load_image(mask).getchannel("R")
        _check_size(Path(mask), layer.size, size)
    if layer.size != size:
        layer = layer.resize(size, Image.Resampling.BILINEAR)
    crop = dataset.crop(index)
    return layer if crop is None else layer.crop(crop)


def load_alpha(path: Path) -> Image.Image:
    """The alpha channel of a picture, upright, mode L; white where it has none.

    Raises:
        BadPicture: As :func:`images.load_image`.
    """
    try:
        with Image.open(path, formats=images._formats()) as image:
            images.check_size(path, *images._upright_size(image))
            if not images._has_alpha(image):
                return Image.new("L", images._upright_size(image), 255)
            upright = None if image.format == "TIFF" else images._TRANSPOSES.get(images._orientation(image))
            alpha: Image.Image = image.convert("RGBA").getchannel("A")
            return alpha if upright is None else alpha.transpose(upright)
    except BadPicture:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged input
        raise BadPicture(path, images._reason_of(error, path)) from error


def _mask_of(
    dataset: Dataset,
    row: int,
    source: str,
    folder: Path | None,
    allowed: Callable[[Path], bool] | None,
    counts: dict[str, int],
    seen: SeenFolders,
) -> str:
    """What stands in the column for one picture; "" for none."""
    if source.startswith("files"):
        path = _mask_file(dataset, row, folder, seen)
        if path is not None:
            if allowed is not None and not allowed(path.resolve()):
                raise BadPicture(path, f"its mask {path.name!r} lies behind a link out of the allowed folders")
            header = read_header(path)
            size = dataset.full_size(row)
            _check_size(path, (header.width_px, header.height_px), size)
            counts["files"] += 1
            counts["scaled"] += (header.width_px, header.height_px) != size
            own = dataset.subset_of(row).folder
            return path.relative_to(own).as_posix() if path.is_relative_to(own) else str(path)
    if source.endswith("alpha") and read_header(dataset.path(row)).has_alpha:
        counts["alpha"] += 1
        return ALPHA
    counts["none"] += 1
    return ""


def _shared(dataset: Dataset, masks: list[str]) -> list[str]:
    """A warning where pictures of one name in several folders got the same mask file."""
    users: dict[Path, set[Path]] = {}
    for row, mask in enumerate(masks):
        if mask not in ("", ALPHA):
            users.setdefault(dataset.subset_of(row).folder / mask, set()).add(dataset.path(row))
    twice = [path for path, pictures in users.items() if len(pictures) > 1]
    if not twice:
        return []
    return [
        f"  ! {counted(len(twice), 'mask file')} for several pictures of one name, such as {twice[0].name}; put them "
        "into sub-folders named as the pictures' folders"
    ]


def _no_masks(dataset: Dataset, masks: list[str]) -> list[int]:
    """Rows of the pictures that are not themselves the mask of another, as when both lie in one folder."""
    used = {(dataset.subset_of(row).folder / mask) for row, mask in enumerate(masks) if mask not in ("", ALPHA)}
    return [row for row in range(len(dataset)) if not used or dataset.path(row) not in used]


def _mask_file(dataset: Dataset, row: int, folder: Path | None, seen: SeenFolders) -> Path | None:
    stem = os.path.splitext(dataset.names[row])[0]
    own = dataset.subset_of(row).folder
    if folder is None:
        return seen.first((f"{own}/{stem}{mark}" for mark in BESIDE), ENDINGS)
    bases = dict.fromkeys((f"{own.name}/{stem}", stem, os.path.basename(stem)))
    return seen.first((f"{folder}/{base}{mark}" for base in bases for mark in ("", *BESIDE)), ENDINGS)


def _check_size(path: Path, mask: tuple[int, int], picture: tuple[int, int]) -> None:
    if mask == picture:
        return
    ratio = (mask[0] / mask[1]) / (picture[0] / picture[1])
    if abs(ratio - 1.0) > MAX_ASPECT_ERROR:
        raise BadPicture(
            path,
            f"its mask {path.name!r} has {mask[0]} x {mask[1]} px and the picture {picture[0]} x {picture[1]} px; make "
            "the mask as large as the picture, or of the same proportions",
        )


def _where(dataset: Dataset, folder: Path | None) -> str:
    stem = os.path.splitext(dataset.names[0])[0]
    return f"in {str(folder)!r}, such as {stem}.png" if folder is not None else f"such as {stem}{BESIDE[0]}.png"


def _examples(dataset: Dataset, number: int = 3) -> list[str]:
    """How much of the first masks is white."""
    lines: list[str] = []
    for row in range(len(dataset)):
        if len(lines) == number:
            break
        if dataset.mask(row) != "":
            try:
                mask = load_mask(dataset, row)
            except BadPicture as refusal:
                lines.append(f"  ! {printable(dataset.names[row])}: {refusal.reason}")
                continue
            white = 0.0 if mask is None else float(np.asarray(mask).mean()) / 255.0
            lines.append(f"  {printable(dataset.names[row])}: {white:.0%} of the picture counts")
    return lines
