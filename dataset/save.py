"""Writing captions beside their pictures, with a backup.

A caption that somebody edited after this pack wrote it is never overwritten: the hash of the last written text is
remembered. Whatever is overwritten lies in a backup first.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..core.index import Index
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from .backups import Allowed, Backup, backup_into, backup_name
from .caption_files import (
    FORMS,
    OWN_JSON,
    WRITTEN_KIND,
    bytes_at,
    caption_bytes,
    hash_of,
    is_read,
    make_read,
    write_caption,
    written_key,
)
from .save_report import SaveReport, Work
from .sidecars import MAX_CAPTION_BYTES
from .table import Dataset
from .words import counted

_BATCH = 512
_SKIP = b"\0 not to be written"


@dataclass(frozen=True, kw_only=True)
class SaveParams(Params):
    """How captions are written."""

    caption_extension: str = param(
        ".txt",
        doc="Kind of caption file. .txt and .caption hold the tags separated by commas; .json holds them by category, "
        "with scores and what the site says.",
        choices=FORMS,
    )
    dry_run: bool = param(False, doc="Only reports what would be written.")


class _Planned(NamedTuple):
    """A caption to write: the picture, and the hash of what lies there now."""

    row: int
    old: bytes | None


def save_captions(
    dataset: Dataset,
    params: SaveParams,
    *,
    backup_dir: Path,
    index: Index | None = None,
    allowed: Allowed | None = None,
    progress: Progress | None = None,
) -> SaveReport:
    """Writes the caption of every picture into a file beside it.

    First everything that would be overwritten goes into one backup; then the files are written one by one, each
    atomically. A cancel keeps what is written, and a second call goes on.

    Args:
        dataset: The pictures with their captions.
        params: How.
        backup_dir: Folder of the backups.
        index: Remembers what was written; without one an edited caption cannot be told from a saved one (the report
            says so), and is overwritten with its old text in the backup.
        allowed: Says whether a real path may be written; without it only the data set's own folders may.
        progress: Reports and cancels.

    Raises:
        StorageError: The backup or a caption cannot be written.
    """
    progress = progress or SilentProgress()
    allowed = allowed or _own_folders(dataset)
    work = Work()
    backup = backup_dir / backup_name(dataset.root.name)
    with backup_into(backup, dry=params.dry_run) as kept:
        planned = _plan(dataset, params, index, allowed, kept, work, progress)
    if not params.dry_run:
        _write_all(dataset, params.caption_extension, planned, index, work, progress)
    else:
        work.created = sum(entry.old is None for entry in planned)
        work.replaced = len(planned) - work.created
    name = backup.name if kept.num_files and not params.dry_run else ""
    return _report(dataset, params, work, name, remembers=index is not None)


def _plan(
    dataset: Dataset,
    params: SaveParams,
    index: Index | None,
    allowed: Allowed,
    kept: Backup,
    work: Work,
    progress: Progress,
) -> list[_Planned]:
    """What has to be written; everything of it is in the backup."""
    planned: list[_Planned] = []
    taken: dict[str, tuple[int, bytes]] = {}
    folders: dict[str, bool] = {}
    for start in range(0, len(dataset), _BATCH):
        progress.update(start, len(dataset), "Looking at captions")
        rows = range(start, min(start + _BATCH, len(dataset)))
        paths = [_caption_path(dataset, row, params.caption_extension) for row in rows]
        written = (
            [None] * len(paths)
            if index is None
            else index.get_many(WRITTEN_KIND, [written_key(path) for path in paths])
        )
        for row, path, last in zip(rows, paths, written, strict=True):
            data = caption_bytes(dataset, row, params.caption_extension)
            if not _is_new_target(dataset, row, path, data, taken, work):
                continue
            old = _looked_at(dataset, row, path, data, last, params, allowed, folders, work)
            if old is not _SKIP:
                kept.keep(path, old, data)
                planned.append(_Planned(row, None if old is None else hash_of(old)))
    return planned


def _is_new_target(
    dataset: Dataset, row: int, path: Path, data: bytes, taken: dict[str, tuple[int, bytes]], work: Work
) -> bool:
    """Whether no other picture has this caption file (1.png and 1.jpg share 1.txt)."""
    key = os.path.normcase(path)
    if key not in taken:
        taken[key] = (row, hash_of(data))
        return True
    first, first_hash = taken[key]
    if first_hash != hash_of(data):
        other = dataset.shown(first)
        work.refuse(dataset.shown(row), f"its caption file {path.name!r} is that of {other!r} too, with other tags")
    return False


def _looked_at(
    dataset: Dataset,
    row: int,
    path: Path,
    data: bytes,
    last: bytes | None,
    params: SaveParams,
    allowed: Allowed,
    folders: dict[str, bool],
    work: Work,
) -> bytes | None:
    """What a caption file holds now (None: it is not there), or ``_SKIP`` when it is not to be written."""
    reason = _not_writable(dataset.path(row), path, allowed, folders)
    old: bytes | None = None
    if not reason:
        try:
            old = bytes_at(path)
        except OSError as error:
            reason = f"its caption file {path.name!r} cannot be read ({error.strerror})"
    if not reason and old is not None:
        if old.strip() == data.strip() and is_read(path):
            work.unchanged += 1
            return _SKIP
        if params.caption_extension == ".json" and last is None and OWN_JSON not in old:
            reason = f"its file {path.name!r} was written by another program (what a site says?); choose .txt"
        elif last is not None and hash_of(old) != last:
            reason = f"its caption file {path.name!r} was edited after it was written; delete it to have it anew"
        elif len(old) > MAX_CAPTION_BYTES:
            reason = f"its file {path.name!r} is larger than a caption can be"
    if reason:
        work.refuse(dataset.shown(row), reason)
        return _SKIP
    tags = dataset.tags.row(row)
    if old is None and not tags and params.caption_extension != ".json":
        work.without += 1
        return _SKIP
    work.behind_txt += params.caption_extension == ".caption" and path.with_suffix(".txt").exists()
    work.with_commas += params.caption_extension != ".json" and any("," in tag for tag in tags)
    return old


def _write_all(
    dataset: Dataset, ending: str, planned: Sequence[_Planned], index: Index | None, work: Work, progress: Progress
) -> None:
    for start in range(0, len(planned), _BATCH):
        done: list[tuple[bytes, bytes]] = []
        try:
            for number, (row, old) in enumerate(planned[start : start + _BATCH], start=start):
                progress.update(number, len(planned), "Writing captions")
                path = _caption_path(dataset, row, ending)
                reason = _changed_meanwhile(path, old)
                if reason:
                    work.refuse(dataset.shown(row), reason)
                    continue
                data = caption_bytes(dataset, row, ending)
                write_caption(path, data)
                make_read(path)
                done.append((written_key(path), hash_of(data)))
                work.created += old is None
                work.replaced += old is not None
        finally:
            if index is not None:
                index.put_many(WRITTEN_KIND, done)
    progress.update(len(planned), max(1, len(planned)), "Writing captions")


def _changed_meanwhile(path: Path, old: bytes | None) -> str:
    """Whether somebody else wrote a file since it was looked at, in words; empty when not."""
    try:
        now = bytes_at(path)
    except OSError as error:
        return f"its caption file {path.name!r} cannot be read ({error.strerror})"
    if (None if now is None else hash_of(now)) != old:
        return f"its caption file {path.name!r} changed while captions were saved"
    return ""


def _report(dataset: Dataset, params: SaveParams, work: Work, backup: str, *, remembers: bool) -> SaveReport:
    verb = "Would write" if params.dry_run else "Wrote"
    counts = {
        "new files": work.created,
        "replaced (the old text is in the backup)": work.replaced,
        "already so": work.unchanged,
        "without a caption, no file made": work.without,
    }
    notes = []
    if work.with_commas:
        notes.append(
            f"A tag with a comma in it will be read as two: {counted(work.with_commas, 'caption')}; .json keeps them."
        )
    if work.behind_txt:
        notes.append(
            f"Beside {counted(work.behind_txt, 'caption')} lies a .txt, which is read first; open the folder with "
            "caption_extension .caption to read these."
        )
    if not remembers and work.replaced:
        notes.append("What was written before is not remembered here, so edited captions could not be told apart.")
    pictures = counted(len(dataset), "picture")
    return SaveReport(
        title=f"{verb} {params.caption_extension} captions for {pictures} of {dataset.root.name!r}.",
        counts=counts,
        refused=tuple(work.refused),
        backup=backup,
        notes=tuple(notes),
    )


def _caption_path(dataset: Dataset, row: int, ending: str) -> Path:
    picture = dataset.path(row)
    return picture.with_name(picture.stem + ending)


def _not_writable(picture: Path, path: Path, allowed: Allowed, folders: dict[str, bool]) -> str:
    """Why a caption file must not be written; empty when it may be."""
    folder = str(path.parent)
    if folder not in folders:
        folders[folder] = allowed(Path(os.path.realpath(folder)))
    if not folders[folder]:
        return "its folder lies outside the folders that may be written"
    if not os.path.exists(picture):
        return "the picture is gone"
    if os.path.islink(path):
        return f"its caption file {path.name!r} is a link; nothing is written through links"
    if os.path.isdir(path):
        return f"its caption file {path.name!r} is a folder"
    return ""


def _own_folders(dataset: Dataset) -> Allowed:
    roots = [os.path.realpath(subset.folder) for subset in dataset.subsets]
    return lambda path: any(path.is_relative_to(root) for root in roots)
