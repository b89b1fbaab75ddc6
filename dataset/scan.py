"""Opening a folder of pictures: sizes from headers, captions from their files, every refusal listed with its reason."""

import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..core.errors import InputError, StorageError
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from .captions import split_tags
from .columns import TagColumnBuilder, TextColumn, frozen
from .identity import fingerprint_folder
from .images import BadPicture, is_picture_name, read_header
from .layout import LAYOUTS, MAX_REPEATS, Layout, PlannedFolder, read_layout
from .sidecars import CAPTION_EXTENSIONS, BadCaption, CaptionIndex, read_caption
from .table import CAPTION_FILE, CAPTION_FOLDER, CAPTION_NONE, Dataset, Skipped, Subset, nothing_left
from .walk import Guard, is_within, walk_folder
from .words import counted

__all__ = ["DatasetParams", "fingerprint_folder", "open_folder", "with_regularisation"]

_UPDATE_EVERY = 32
_SUSPICIOUS_REPEATS = 500


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

    def __post_init__(self) -> None:
        """Also checks that the caption ending is one.

        Raises:
            InputError: A value is refused.
        """
        super().__post_init__()
        ending = self.caption_extension
        if len(ending) < 2 or not ending.startswith(".") or not ending[1:].isalnum():
            raise InputError(f"caption_extension is {ending!r}, allowed is a dot and letters, such as .txt or .caption")


def open_folder(
    folder: Path | str,
    params: DatasetParams,
    *,
    reg_folder: Path | str | None = None,
    progress: Progress | None = None,
    allowed: Callable[[Path], bool] | None = None,
) -> Dataset:
    """Opens a folder of pictures with their captions.

    Only headers and captions are read. Pictures that cannot be used are listed in ``Dataset.skipped``.

    Args:
        folder: The folder, already allowed by the host.
        params: How it is read and trained.
        reg_folder: Folder of regularisation pictures, read in the same way.
        progress: Reports and cancels.
        allowed: Says of a real path outside the folder whether a link may lead there; without it no link may.

    Raises:
        InputError: The folder is missing, empty or of an unclear layout, or no picture in it can be used.
        StorageError: The folder cannot be read.
    """
    progress = progress or SilentProgress()
    root = _existing_folder(folder, "data set folder")
    excluded: frozenset[str] = frozenset()
    if reg_folder is not None:
        reg_root = _existing_folder(reg_folder, "regularisation folder")
        excluded = _checked_apart(root, reg_root)
    dataset = _open(root, params, excluded=excluded, progress=progress, allowed=allowed)
    if reg_folder is None:
        return dataset
    return with_regularisation(
        dataset, _open(reg_root, params, excluded=frozenset(), progress=progress, allowed=allowed)
    )


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


@dataclass
class _Scan:
    """What is gathered while a folder is read."""

    skipped: list[Skipped] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    other_endings: Counter[str] = field(default_factory=Counter)
    widths_px: "array[int]" = field(default_factory=lambda: array("i"))
    heights_px: "array[int]" = field(default_factory=lambda: array("i"))
    sizes_bytes: "array[int]" = field(default_factory=lambda: array("q"))
    mtimes_ns: "array[int]" = field(default_factory=lambda: array("q"))
    subset_index: "array[int]" = field(default_factory=lambda: array("i"))
    caption_source: "array[int]" = field(default_factory=lambda: array("B"))
    names: list[str] = field(default_factory=list)
    tags: TagColumnBuilder = field(default_factory=TagColumnBuilder)

    def skip(self, path: str, reason: str) -> None:
        self.skipped.append(Skipped(path=path, reason=reason))


@dataclass(frozen=True, slots=True)
class _Found:
    subset: int
    name: str
    caption_name: str | None
    size_bytes: int
    mtime_ns: int


def _open(
    root: Path,
    params: DatasetParams,
    *,
    excluded: frozenset[str],
    progress: Progress,
    allowed: Callable[[Path], bool] | None,
) -> Dataset:
    progress.status(f"Listing {root.name}")
    guard, scan = Guard(root, allowed), _Scan()
    layout = read_layout(root, mode=params.layout, guard=guard, on_skip=scan.skip, excluded=excluded)
    subsets = tuple(_subset_of(planned, params) for planned in layout.folders)
    found: list[_Found] = []
    for number, planned in enumerate(layout.folders):
        shown = _shown_prefix(root, planned.folder)
        before = len(found)
        found.extend(_pictures_of(number, planned.folder, shown, params, guard, excluded, scan, progress))
        if len(found) == before and layout.is_kohya:
            scan.skip(f"{shown or './'}", "it holds no pictures")
    if not found and not any(is_picture_name(entry.path) for entry in scan.skipped):
        raise _no_pictures(root, scan)
    for done, picture in enumerate(found):
        if done % _UPDATE_EVERY == 0:
            progress.update(done, len(found), "Reading sizes and captions")
        _read_picture(picture, root, layout.folders[picture.subset], params, scan)
    progress.update(len(found), max(1, len(found)), "Reading sizes and captions")
    if not scan.names:
        raise nothing_left(root, scan.skipped)
    return _dataset_of(root, subsets, layout, scan)


def _pictures_of(
    number: int,
    folder: Path,
    shown: str,
    params: DatasetParams,
    guard: Guard,
    excluded: frozenset[str],
    scan: _Scan,
    progress: Progress,
) -> Iterator[_Found]:
    """Lists the pictures of one subset with their caption files."""
    endings = tuple(dict.fromkeys((params.caption_extension.lower(), *CAPTION_EXTENSIONS)))
    not_foreign = {*endings, ".npz", ".json", ".toml", ".safetensors", ""}

    def skip_below(path: str, reason: str) -> None:
        scan.skip(shown + path, reason)

    for listing in walk_folder(folder, guard=guard, on_skip=skip_below, recursive=params.recursive, excluded=excluded):
        progress.check()
        beside = [*(entry.name for entry in listing.files), *listing.refused, *listing.folders]
        captions = CaptionIndex(beside, endings)
        users: Counter[str] = Counter()
        for entry in listing.files:
            if not is_picture_name(entry.name):
                ending = os.path.splitext(entry.name)[1].lower()
                if ending not in not_foreign:
                    scan.other_endings[ending] += 1
                continue
            caption_name = captions.find(entry.name)
            if caption_name is not None and caption_name in listing.refused:
                reason = listing.refused[caption_name]
                scan.skip(shown + listing.below(entry.name), f"its caption file {caption_name!r}: {reason}")
                continue
            if caption_name is not None:
                users[caption_name] += 1
                caption_name = listing.below(caption_name)
            if listing.relative:
                scan.counts["nested"] += 1
            yield _Found(number, listing.below(entry.name), caption_name, entry.size_bytes, entry.mtime_ns)
        scan.counts["shared captions"] += sum(count for count in users.values() if count > 1)


def _read_picture(picture: _Found, root: Path, planned: PlannedFolder, params: DatasetParams, scan: _Scan) -> None:
    shown = _shown_prefix(root, planned.folder) + picture.name
    try:
        header = read_header(planned.folder / picture.name, verify=params.verify_pictures)
        if picture.caption_name is not None:
            caption = read_caption(planned.folder / picture.caption_name)
            text, source = caption.text, CAPTION_FILE
            scan.counts["empty captions"] += not text
            scan.counts["captions of several lines"] += caption.num_lines > 1
        else:
            text = planned.concept or params.class_text
            source = CAPTION_FOLDER if text else CAPTION_NONE
    except (BadPicture, BadCaption) as error:
        scan.skip(shown, error.reason)
        return
    scan.counts["transparent"] += header.has_alpha
    scan.names.append(picture.name)
    scan.widths_px.append(header.width_px)
    scan.heights_px.append(header.height_px)
    scan.sizes_bytes.append(picture.size_bytes)
    scan.mtimes_ns.append(picture.mtime_ns)
    scan.subset_index.append(picture.subset)
    scan.caption_source.append(source)
    scan.tags.append(split_tags(text))


def _dataset_of(root: Path, subsets: tuple[Subset, ...], layout: Layout, scan: _Scan) -> Dataset:
    # Folders without a usable picture are left out of the table, and the numbers of the others close up.
    numbers = np.frombuffer(scan.subset_index, dtype=np.int32)
    used, subset_index = np.unique(numbers, return_inverse=True)
    return Dataset(
        root=root,
        subsets=tuple(subsets[number] for number in used),
        names=TextColumn.from_strings(scan.names),
        width_px=frozen(np.array(scan.widths_px, dtype=np.int32)),
        height_px=frozen(np.array(scan.heights_px, dtype=np.int32)),
        size_bytes=frozen(np.array(scan.sizes_bytes, dtype=np.int64)),
        mtime_ns=frozen(np.array(scan.mtimes_ns, dtype=np.int64)),
        subset_index=frozen(subset_index.reshape(-1).astype(np.int32)),
        caption_source=frozen(np.array(scan.caption_source, dtype=np.uint8)),
        tags=scan.tags.build(),
        layout=layout.text,
        notes=tuple(_notes(subsets, layout, scan)),
        history=(f"opened {root.name!r}",),
        skipped=tuple(scan.skipped),
    )


def _notes(subsets: tuple[Subset, ...], layout: Layout, scan: _Scan) -> Iterator[str]:
    counts = scan.counts
    if layout.is_kohya:
        for planned in layout.folders:
            if planned.repeats >= _SUSPICIOUS_REPEATS:
                yield (
                    f"The folder {planned.folder.name!r} asks for {planned.repeats} repeats; if that is a year or a "
                    "number of its own, choose the layout plain."
                )
        if counts["nested"]:
            yield f"In sub-folders of N_name folders, and taken with them: {counted(counts['nested'], 'picture')}."
    if counts["empty captions"]:
        yield f"Empty: {counted(counts['empty captions'], 'caption file')}; trained without a caption."
    if counts["captions of several lines"]:
        yield f"Of several lines, of which the first counts: {counted(counts['captions of several lines'], 'caption')}."
    if counts["shared captions"]:
        shared = counted(counts["shared captions"], "picture")
        yield f"Sharing a caption file with another of the same name (1.png, 1.jpg): {shared}."
    if counts["transparent"]:
        yield f"With transparency, under which white is laid: {counted(counts['transparent'], 'picture')}."
    if scan.other_endings:
        endings = ", ".join(f"{count} {ending}" for ending, count in scan.other_endings.most_common(8))
        yield f"Files of other kinds are not read: {endings}."


def _subset_of(planned: PlannedFolder, params: DatasetParams) -> Subset:
    return Subset(
        folder=planned.folder,
        concept=planned.concept,
        repeats=planned.repeats * params.repeats,
        shuffle_captions=params.shuffle_captions,
        keep_tokens=params.keep_tokens,
        caption_prefix=params.caption_prefix,
        caption_dropout=params.caption_dropout,
        tag_dropout=params.tag_dropout,
        flip=params.flip,
    )


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


def _no_pictures(root: Path, scan: _Scan) -> InputError:
    extra = "; ".join(str(entry) for entry in scan.skipped[:3])
    found = ", ".join(f"{count} {ending}" for ending, count in scan.other_endings.most_common(4))
    details = "".join([f"; it holds {found}" if found else "", f"; left out: {extra}" if extra else ""])
    return InputError(
        f"{str(root)!r} holds no pictures{details}; give a folder of png, jpg, webp, bmp, gif, tiff or avif files"
    )


def _shown_prefix(root: Path, folder: Path) -> str:
    """What goes in front of a name in a subset to give its path below the opened folder."""
    return "" if folder == root else folder.relative_to(root).as_posix() + "/"
