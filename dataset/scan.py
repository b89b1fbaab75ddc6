"""Opening a folder of pictures: sizes from headers, captions from their files, every refusal listed with its reason."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import AtelierError, InputError, StorageError
from ..core.index import Index
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from .captions import split_tags
from .columns import TagColumn, TextColumn, frozen
from .folder_scan import SITE_TAGS, FolderPart, ReadOptions, num_pictures, read_folder
from .headers import WORKERS
from .identity import fingerprint_folder
from .images import is_picture_name
from .layout import LAYOUTS, MAX_REPEATS, read_layout
from .metadata import METADATA_NAMES, Metadata, read_metadata
from .normal import KAOMOJI
from .planned import Plan, PlannedSubset
from .sidecars import CAPTION_EXTENSIONS, SEPARATORS
from .table import (
    CAPTION_FOLDER,
    CAPTION_METADATA,
    CAPTION_NONE,
    Dataset,
    Skipped,
    Subset,
    nothing_left,
)
from .toml_config import read_toml_plan
from .walk import Guard, Listing, is_within, walk_folder
from .words import counted

__all__ = ["DatasetParams", "fingerprint_folder", "open_folder", "with_regularisation"]

UNDERSCORES = ("keep", "to spaces")
_SUSPICIOUS_REPEATS = 500
_READING = "Reading sizes and captions"


@dataclass(frozen=True, kw_only=True)
class DatasetParams(Params):
    """How a folder of pictures is opened and trained."""

    layout: str = param(
        "auto",
        doc="How sub-folders are read. kohya: each sub-folder N_name is seen N times per epoch. plain: all pictures "
        "alike. auto: kohya where such names are found.",
        choices=LAYOUTS,
    )
    repeats: int = param(
        1,
        doc="How often each picture is seen per epoch; multiplies the repeat count of a folder's name.",
        minimum=1,
        maximum=MAX_REPEATS,
    )
    shuffle_captions: bool = param(
        True,
        doc="Puts the tags after the kept ones in a new order each time, so that none owes its effect to its place.",
    )
    keep_tokens: int = param(
        1,
        doc="Tags at the front of a caption that stay there and are never dropped, such as the trigger word.",
        unit="tags",
        minimum=0,
        maximum=1000,
    )
    caption_prefix: str = param(
        "", doc="Tags put in front of every caption, such as a trigger word; never shuffled or dropped alone."
    )
    caption_dropout: float = param(
        0.0,
        doc="Share of times a picture is trained without any caption, which teaches the effect without a prompt.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    flip: bool = param(False, doc="Mirrors pictures at random; leave it off where left and right matter.")
    recursive: bool = param(True, doc="Reads sub-folders too; in kohya's layout, those inside each N_name folder.")
    class_text: str = param(
        "",
        doc="Caption of pictures that have no caption file, where the folder's name gives no text.",
        advanced=True,
    )
    tag_dropout: float = param(
        0.0,
        doc="Share of the tags after the kept ones that is left out each time.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        advanced=True,
    )
    caption_extension: str = param(
        ".txt",
        doc="Ending of caption files. Where a picture has none with this ending, .txt and .caption are tried.",
        advanced=True,
    )
    verify_pictures: bool = param(
        False,
        doc="Decodes every picture while opening, so that damage in the middle of a file is found at once. Slow.",
        advanced=True,
    )
    separator: str = param(
        "auto",
        doc="What stands between the tags of a caption file. auto: commas, or one tag per line, or blanks between a "
        "site's tags such as long_hair; the report says how each was read.",
        choices=SEPARATORS,
        advanced=True,
    )
    underscores: str = param(
        "keep",
        doc="to spaces: long_hair becomes 'long hair'; faces such as ^_^ stay as they are.",
        choices=UNDERSCORES,
        advanced=True,
    )
    site_tags: str = param(
        SITE_TAGS[0],
        doc="Tags from JSON files of danbooru, e621 or gallery-dl beside the pictures: used where a picture has no "
        "caption file, put before its caption, or never. Score and rating are kept in either of the first two.",
        choices=SITE_TAGS,
        advanced=True,
    )
    site_ratings: bool = param(
        False, doc="Makes the rating that a site gives a picture its last tag, such as 'explicit'.", advanced=True
    )

    def __post_init__(self) -> None:
        """Also checks that the caption ending is one.

        Raises:
            InputError: A value is refused.
        """
        super().__post_init__()
        ending = self.caption_extension
        if len(ending) < 2 or not ending.startswith(".") or not ending[1:].isalnum():
            raise InputError(f"caption_extension is {ending!r}, allowed is a dot and letters, such as .txt or .caption")

    def read_options(self) -> ReadOptions:
        """How captions are found and taken apart."""
        return ReadOptions(
            endings=tuple(dict.fromkeys((self.caption_extension.lower(), *CAPTION_EXTENSIONS))),
            separator=self.separator,
            site_tags=self.site_tags,
            site_ratings=self.site_ratings,
            verify=self.verify_pictures,
        )


def open_folder(
    folder: Path | str,
    params: DatasetParams,
    *,
    reg_folder: Path | str | None = None,
    progress: Progress | None = None,
    allowed: Callable[[Path], bool] | None = None,
    index: Index | None = None,
) -> Dataset:
    """Opens a folder of pictures with their captions, or what a kohya TOML file names.

    Only headers and captions are read. Pictures that cannot be used are listed in ``Dataset.skipped``.

    Args:
        folder: The folder, or a ``.toml`` file; already allowed by the host.
        params: How it is read and trained; of a TOML file's options only those that it leaves open.
        reg_folder: Folder of regularisation pictures, read in the same way.
        progress: Reports and cancels; what was read before a cancel is remembered in the index.
        allowed: Says of a real path outside the folder whether a link may lead there; without it no link may.
        index: Where headers and whole folders are remembered, so that a second look takes seconds.

    Raises:
        InputError: The folder is missing, empty or of an unclear layout, or no picture in it can be used.
        FormatError: The TOML file, or a metadata file that it names, is not what it should be.
        StorageError: The folder cannot be read.
    """
    progress = progress or SilentProgress()
    if os.path.splitext(folder)[1].lower() == ".toml" and not os.path.isdir(folder):
        reg_root = None if reg_folder is None else _existing_folder(reg_folder, "regularisation folder")
        plan = read_toml_plan(Path(folder), params, allowed=allowed)
        dataset = _scanned(plan, params, frozenset(), progress, allowed, index)
        if bool(dataset.is_reg.all()):
            raise InputError(f"{Path(folder).name} names only regularisation pictures; add a subset to train on")
    else:
        root = _existing_folder(folder, "data set folder")
        reg_root = None if reg_folder is None else _existing_folder(reg_folder, "regularisation folder")
        excluded = frozenset() if reg_root is None else _checked_apart(root, reg_root)
        dataset = _scanned(_plan_of(root, params, excluded, allowed), params, excluded, progress, allowed, index)
    if reg_root is None:
        return dataset
    reg_plan = _plan_of(reg_root, params, frozenset(), allowed)
    return with_regularisation(dataset, _scanned(reg_plan, params, frozenset(), progress, allowed, index))


def with_regularisation(dataset: Dataset, reg_dataset: Dataset) -> Dataset:
    """Adds a data set as regularisation pictures; each keeps its own options.

    As in kohya's scripts they are seen as often as the training pictures after repeats, all of them together.
    """
    marked = replace(reg_dataset, subsets=tuple(replace(subset, is_reg=True) for subset in reg_dataset.subsets))
    notes = tuple(f"Regularisation: {note}" for note in (marked.layout, *marked.notes))
    marked = replace(marked, notes=notes)
    return dataset.joined(
        marked, note=f"added {counted(len(marked), 'regularisation picture')} from {marked.root.name!r}"
    )


def _plan_of(
    root: Path, params: DatasetParams, excluded: frozenset[str], allowed: Callable[[Path], bool] | None
) -> Plan:
    skipped: list[Skipped] = []

    def skip(path: str, reason: str) -> None:
        skipped.append(Skipped(path=path, reason=reason))

    guard = Guard(root, allowed)
    layout = read_layout(root, mode=params.layout, guard=guard, on_skip=skip, excluded=excluded)
    read = params.read_options()
    planned: list[PlannedSubset] = []
    notes: list[str] = []
    for part in layout.folders:
        subset = Subset(
            folder=part.folder,
            concept=part.concept,
            repeats=part.repeats * params.repeats,
            shuffle_captions=params.shuffle_captions,
            keep_tokens=params.keep_tokens,
            caption_prefix=params.caption_prefix,
            caption_dropout=params.caption_dropout,
            tag_dropout=params.tag_dropout,
            flip=params.flip,
        )
        text = part.concept or params.class_text
        planned.append(PlannedSubset(subset=subset, read=read, recursive=params.recursive, text=text))
        if layout.is_kohya and part.repeats >= _SUSPICIOUS_REPEATS:
            notes.append(
                f"The folder {part.folder.name!r} asks for {part.repeats} repeats; if that is a year or a number of "
                "its own, choose the layout plain."
            )
    return Plan(
        root=root,
        text=layout.text,
        subsets=tuple(planned),
        is_kohya=layout.is_kohya,
        notes=tuple(notes),
        skipped=tuple(skipped),
        listings=layout.listings,
    )


@dataclass
class _Scan:
    """What is gathered while a plan is read."""

    skipped: list[Skipped]
    notes: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    forms: Counter[str] = field(default_factory=Counter)
    other_endings: Counter[str] = field(default_factory=Counter)
    names: list[str] = field(default_factory=list)
    numbers: list[NDArray[np.int64]] = field(default_factory=list)
    site: list[NDArray[np.float64]] = field(default_factory=list)
    sources: list[NDArray[np.uint8]] = field(default_factory=list)
    subset_index: list[NDArray[np.int32]] = field(default_factory=list)
    tags: list[TagColumn] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    metadata: dict[Path, Metadata | None] = field(default_factory=dict)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(path=path, reason=reason))


def _scanned(
    plan: Plan,
    params: DatasetParams,
    excluded: frozenset[str],
    progress: Progress,
    allowed: Callable[[Path], bool] | None,
    index: Index | None,
) -> Dataset:
    progress.status(f"Listing {plan.root.name}")
    scan = _Scan(skipped=list(plan.skipped), notes=list(plan.notes))
    listings: list[tuple[int, Listing]] = []
    total = 0
    for number, planned in enumerate(plan.subsets):
        found = list(_listings_of(plan, planned, scan, excluded, progress, allowed))
        count = sum(map(num_pictures, found))
        total += count
        listings += [(number, listing) for listing in found]
        if plan.is_kohya and not count:
            scan.skip(_shown_prefix(plan.root, planned.subset.folder) or "./", "it holds no pictures")
    if not total and not any(is_picture_name(entry.path) for entry in scan.skipped):
        raise _no_pictures(plan.root, listings, scan)
    done = 0

    def on_batch(count: int) -> None:
        nonlocal done
        done = min(total, done + count)
        progress.update(done, max(1, total), _READING)

    progress.update(0, max(1, total), _READING)
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for number, listing in listings:
            planned = plan.subsets[number]
            folder = planned.subset.folder / listing.relative if listing.relative else planned.subset.folder
            part = read_folder(folder, listing, planned.read, index=index, pool=pool, on_batch=on_batch)
            _add(part, number, planned, listing, plan, scan)
    progress.update(total, max(1, total), _READING)
    if not scan.names:
        raise nothing_left(plan.root, scan.skipped)
    return _dataset_of(plan, scan, spaces=params.underscores == "to spaces")


def _listings_of(
    plan: Plan,
    planned: PlannedSubset,
    scan: _Scan,
    excluded: frozenset[str],
    progress: Progress,
    allowed: Callable[[Path], bool] | None,
) -> Iterator[Listing]:
    folder = planned.subset.folder
    shown = _shown_prefix(plan.root, folder)

    def skip_below(path: str, reason: str) -> None:
        scan.skip(shown + path, reason)

    guard = Guard(plan.root if is_within(os.path.realpath(folder), os.path.realpath(plan.root)) else folder, allowed)
    for listing in walk_folder(
        folder,
        guard=guard,
        on_skip=skip_below,
        recursive=planned.recursive,
        excluded=excluded,
        known=plan.listings,
    ):
        progress.check()
        yield listing


def _add(part: FolderPart, number: int, planned: PlannedSubset, listing: Listing, plan: Plan, scan: _Scan) -> None:
    """Adds one folder's pictures to what is gathered, with captions for those that have none of their own."""
    shown = _shown_prefix(plan.root, planned.subset.folder)
    for name, reason in part.skipped:
        scan.skip(shown + listing.below(name), reason)
    scan.counts.update(part.counts)
    scan.forms.update(part.forms)
    scan.other_endings.update(part.other_endings)
    if not len(part.names):
        return
    names = list(part.names)
    below = [listing.below(name) for name in names] if listing.relative else names
    tags, sources = part.tags, part.caption_source
    if planned.metadata is not None or bool((sources == CAPTION_NONE).any()):
        tags, sources = _with_fallbacks(tags, sources, below, planned, scan)
    rows = np.arange(len(names), dtype=np.int64)
    if planned.only_listed and planned.metadata is not None:
        rows = np.flatnonzero(sources == CAPTION_METADATA)
        scan.counts["not in the metadata file"] += len(names) - len(rows)
    if listing.relative:
        scan.counts["nested"] += len(rows)
    scan.names += [below[row] for row in rows.tolist()]
    scan.numbers.append(part.numbers[rows])
    scan.site.append(part.site[rows])
    scan.sources.append(sources[rows])
    scan.subset_index.append(np.full(len(rows), number, dtype=np.int32))
    scan.tags.append(tags if len(rows) == len(names) else tags.take(rows))
    scan.masks += [_mask_of(planned, below[row]) for row in rows.tolist()]


def _with_fallbacks(
    tags: TagColumn,
    sources: NDArray[np.uint8],
    names: list[str],
    planned: PlannedSubset,
    scan: _Scan,
) -> tuple[TagColumn, NDArray[np.uint8]]:
    """Captions from a metadata file, and the text of the folder for what is left without one."""
    sources = sources.copy()
    metadata = planned.metadata
    if metadata is None:
        metadata = _metadata_in(planned.subset.folder, scan)
    if metadata is not None:
        wanted = range(len(names)) if planned.metadata_first else np.flatnonzero(sources == CAPTION_NONE).tolist()
        given = {row: metadata.find(planned.subset.folder, names[row]) for row in wanted}
        found = {row: split_tags(caption) for row, caption in given.items() if caption is not None}
        tags = tags.replaced(found)
        sources[list(found)] = CAPTION_METADATA
        scan.forms[f"from {metadata.path.name}"] += len(found)
    bare = np.flatnonzero(sources == CAPTION_NONE)
    text = split_tags(planned.text)
    if text and len(bare):
        tags = tags.with_vocabulary(text)
        ids = np.array([tags.id_of(tag) for tag in text], dtype=np.int32)
        tags = tags.with_tags(np.repeat(bare, len(ids)), np.tile(ids, len(bare)))
        sources[bare] = CAPTION_FOLDER
    return tags, sources


def _metadata_in(folder: Path, scan: _Scan) -> Metadata | None:
    """The first metadata file in a subset's folder that can be read; what is wrong with others is noted."""
    known = scan.metadata
    if folder not in known:
        known[folder] = None
        for name in METADATA_NAMES:
            path = folder / name
            if path.is_file() and not path.is_symlink():
                try:
                    known[folder] = read_metadata(path)
                    break
                except AtelierError as refusal:
                    scan.notes.append(f"Not used: {refusal}.")
    return known[folder]


def _mask_of(planned: PlannedSubset, name: str) -> str:
    if not planned.mask or planned.mask == "alpha":
        return str(planned.mask)
    return str(planned.mask_files().get(os.path.splitext(name.rpartition("/")[2])[0], ""))


def _dataset_of(plan: Plan, scan: _Scan, *, spaces: bool) -> Dataset:
    # Folders without a usable picture are left out of the table, and the numbers of the others close up.
    used, subset_index = np.unique(np.concatenate(scan.subset_index), return_inverse=True)
    numbers, site = np.concatenate(scan.numbers), np.concatenate(scan.site)
    tags = scan.tags[0] if len(scan.tags) == 1 else TagColumn.concatenated(scan.tags)
    extras: dict[str, Any] = {}
    if not bool(np.isnan(site[:, 0]).all()):
        extras["site_scores"] = frozen(site[:, 0].astype(np.float32))
    if bool((site[:, 1] >= 0).any()):
        extras["site_favourites"] = frozen(site[:, 1].astype(np.int32))
    if bool(site[:, 2].any()):
        extras["site_ratings"] = frozen(site[:, 2].astype(np.uint8))
    if any(scan.masks):
        extras["masks"] = TextColumn.from_strings(scan.masks)
    return Dataset(
        root=plan.root,
        subsets=tuple(plan.subsets[number].subset for number in used),
        names=TextColumn.from_strings(scan.names),
        width_px=frozen(numbers[:, 0].astype(np.int32)),
        height_px=frozen(numbers[:, 1].astype(np.int32)),
        size_bytes=frozen(numbers[:, 2].copy()),
        mtime_ns=frozen(numbers[:, 3].copy()),
        subset_index=frozen(subset_index.reshape(-1).astype(np.int32)),
        caption_source=frozen(np.concatenate(scan.sources)),
        tags=_spaced(tags) if spaces else tags,
        layout=plan.text,
        notes=tuple([*scan.notes, *_notes(plan, scan)]),
        history=(f"opened {plan.root.name!r}",),
        skipped=tuple(scan.skipped),
        **extras,
    )


def _spaced(tags: TagColumn) -> TagColumn:
    """Blanks in place of underscores, except in faces."""
    names = [tag if tag in KAOMOJI else " ".join(tag.replace("_", " ").split()) or tag for tag in tags.vocabulary]
    place: dict[str, int] = {}
    table = np.array([place.setdefault(name, len(place)) for name in names], dtype=np.int32)
    return tags.translated(table, tuple(place))


def _notes(plan: Plan, scan: _Scan) -> Iterator[str]:
    counts = scan.counts
    if scan.forms:
        yield (
            "Captions were read as: " + "; ".join(f"{form}: {count}" for form, count in scan.forms.most_common()) + "."
        )
    if plan.is_kohya and counts["nested"]:
        yield f"In sub-folders of N_name folders, and taken with them: {counted(counts['nested'], 'picture')}."
    if counts["empty captions"]:
        yield f"Empty: {counted(counts['empty captions'], 'caption file')}; trained without a caption."
    if counts["captions of several lines"]:
        yield f"Of several lines, of which the first counts: {counted(counts['captions of several lines'], 'caption')}."
    if counts["shared captions"]:
        shared = counted(counts["shared captions"], "picture")
        yield f"Sharing a caption file with another of the same name (1.png, 1.jpg): {shared}."
    if counts["JSON files without tags"]:
        yield f"Without tags in them, and not used: {counted(counts['JSON files without tags'], 'JSON file')}."
    if counts["unreadable JSON files"]:
        damaged = counted(counts["unreadable JSON files"], "JSON file")
        yield f"Damaged, and not used beside captions: {damaged}."
    if counts["not in the metadata file"]:
        yield f"Not named in the metadata file, and left out: {counted(counts['not in the metadata file'], 'picture')}."
    if counts["transparent"]:
        yield f"With transparency, under which white is laid: {counted(counts['transparent'], 'picture')}."
    if scan.other_endings:
        endings = ", ".join(f"{count} {ending}" for ending, count in scan.other_endings.most_common(8))
        yield f"Files of other kinds are not read: {endings}."


def _existing_folder(folder: Path | str, what: str) -> Path:
    root = Path(os.path.abspath(folder))
    if root.is_dir():
        try:
            os.scandir(root).close()
        except OSError as error:
            raise StorageError(
                f"the {what} {str(root)!r} cannot be read ({error.strerror}); allow this program to read it"
            ) from error
        return root
    if root.exists():
        raise InputError(f"the {what} {str(root)!r} is a file; give the folder that holds the pictures")
    raise InputError(f"the {what} {str(root)!r} does not exist; check the name, and where the folder lies")


def _checked_apart(root: Path, reg_root: Path) -> frozenset[str]:
    """Real path of the regularisation folder, to be left alone in the data set's own walk."""
    real, reg_real = os.path.realpath(root), os.path.realpath(reg_root)
    if is_within(real, reg_real):
        raise InputError(
            f"the data set folder {str(root)!r} is or lies in the regularisation folder {str(reg_root)!r}; "
            "give two folders apart"
        )
    return frozenset({os.path.normcase(reg_real)})


def _no_pictures(root: Path, listings: Sequence[tuple[int, Listing]], scan: _Scan) -> InputError:
    extra = "; ".join(str(entry) for entry in scan.skipped[:3])
    endings = Counter(os.path.splitext(entry.name)[1].lower() for _, listing in listings for entry in listing.files)
    usual = {"", ".json", ".toml", ".npz", ".safetensors", ".tags", *CAPTION_EXTENSIONS}
    others = [(ending, count) for ending, count in endings.most_common() if ending not in usual]
    found = ", ".join(f"{count} {ending}" for ending, count in others[:4])
    details = "".join([f"; it holds {found}" if found else "", f"; left out: {extra}" if extra else ""])
    return InputError(
        f"{str(root)!r} holds no pictures{details}; give a folder of png, jpg, webp, bmp, gif, tiff or avif files"
    )


def _shown_prefix(root: Path, folder: Path) -> str:
    """What goes in front of a name in a subset to give its path below the opened folder."""
    if folder == root:
        return ""
    return (folder.relative_to(root).as_posix() if folder.is_relative_to(root) else folder.name) + "/"
