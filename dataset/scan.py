"""Opening a folder of pictures: sizes from headers, captions from their files, every refusal listed with its reason."""

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from ..core.errors import InputError, StorageError
from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from .folder_scan import num_pictures, read_folder
from .gathering import Gathered, add_folder, dataset_of, shown_prefix
from .headers import WORKERS
from .identity import fingerprint_folder
from .images import is_picture_name
from .layout import read_layout, regularisation_beside
from .open_params import DatasetParams
from .planned import Plan, PlannedSubset
from .sidecars import CAPTION_EXTENSIONS
from .snapshots import forget_old
from .table import Dataset, Skipped, Subset, nothing_left
from .toml_config import read_toml_plan
from .walk import Guard, Listing, is_within, walk_folder
from .words import counted

__all__ = ["DatasetParams", "fingerprint_folder", "open_folder", "with_regularisation"]

_SUSPICIOUS_REPEATS = 500
_READING = "Reading sizes and captions"


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
        reg_folder: Folder of regularisation pictures, read in the same way; None takes a kohya folder ``reg`` beside
            the one other kohya folder in ``folder``.
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
        if reg_folder is None:
            reg_root = regularisation_beside(root, mode=params.layout, guard=Guard(root, allowed))
        else:
            reg_root = _existing_folder(reg_folder, "regularisation folder")
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


def _scanned(
    plan: Plan,
    params: DatasetParams,
    excluded: frozenset[str],
    progress: Progress,
    allowed: Callable[[Path], bool] | None,
    index: Index | None,
) -> Dataset:
    progress.status(f"Listing {plan.root.name}")
    scan = Gathered(skipped=list(plan.skipped), notes=list(plan.notes))
    listings: list[tuple[int, Listing]] = []
    total = 0
    for number, planned in enumerate(plan.subsets):
        found = list(_listings_of(plan, planned, scan, excluded, progress, allowed))
        count = sum(map(num_pictures, found))
        total += count
        listings += [(number, listing) for listing in found]
        if plan.is_kohya and not count:
            scan.skip(shown_prefix(plan.root, planned.subset.folder) or "./", "it holds no pictures")
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
            add_folder(part, number, planned, listing, plan, scan)
    progress.update(total, max(1, total), _READING)
    if index is not None:
        forget_old(index)
    if not scan.names:
        raise nothing_left(plan.root, scan.skipped)
    return dataset_of(plan, scan, spaces=params.underscores == "to spaces")


def _listings_of(
    plan: Plan,
    planned: PlannedSubset,
    scan: Gathered,
    excluded: frozenset[str],
    progress: Progress,
    allowed: Callable[[Path], bool] | None,
) -> Iterator[Listing]:
    folder = planned.subset.folder
    shown = shown_prefix(plan.root, folder)

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


def _no_pictures(root: Path, listings: Sequence[tuple[int, Listing]], scan: Gathered) -> InputError:
    extra = "; ".join(str(entry) for entry in scan.skipped[:3])
    endings = Counter(os.path.splitext(entry.name)[1].lower() for _, listing in listings for entry in listing.files)
    usual = {"", ".json", ".toml", ".npz", ".safetensors", ".tags", *CAPTION_EXTENSIONS}
    others = [(ending, count) for ending, count in endings.most_common() if ending not in usual]
    found = ", ".join(f"{count} {ending}" for ending, count in others[:4])
    details = "".join([f"; it holds {found}" if found else "", f"; left out: {extra}" if extra else ""])
    return InputError(
        f"{str(root)!r} holds no pictures{details}; give a folder of png, jpg, webp, bmp, gif, tiff or avif files"
    )
