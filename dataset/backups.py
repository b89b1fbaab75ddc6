"""Backups of caption files: one zip file per save, and putting them back."""

import contextlib
import json
import os
import secrets
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import AtelierError, FormatError, InputError, nearest_names
from ..core.files import atomic_path, safe_name, storage_error
from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from .caption_files import FORMS, WRITTEN_KIND, bytes_at, hash_of, write_caption, written_key
from .save_report import SaveReport, Work
from .sidecars import MAX_CAPTION_BYTES

BACKUP_ENDING = ".captions.zip"
_MANIFEST = "manifest.json"
_FIRST_ZIP_DATE = (1980, 1, 1, 0, 0, 0)

Allowed = Callable[[Path], bool]
"""Says of a real path whether it may be written."""


def restore_captions(
    backup: Path, *, index: Index | None = None, allowed: Allowed, progress: Progress | None = None
) -> SaveReport:
    """Puts back the captions that a save replaced, and takes away those that it made; edited ones stay as they are.

    Args:
        backup: The backup of that save.
        index: Where what was written is remembered.
        allowed: Says whether a real path may be written.
        progress: Reports and cancels; a second call goes on.

    Raises:
        FormatError: The file is no backup, or is damaged.
        StorageError: A caption cannot be written.
    """
    progress = progress or SilentProgress()
    work = Work()
    removed = 0
    try:
        with zipfile.ZipFile(backup) as archive:
            entries = _manifest_of(archive, backup)
            for number, entry in enumerate(entries):
                progress.update(number, len(entries), "Putting captions back")
                path = Path(entry["path"])
                old = None if entry["member"] is None else archive.read(entry["member"])
                reason = _not_restorable(path, allowed)
                now = None if reason else bytes_at(path)
                if not reason and now == old:
                    work.unchanged += 1
                elif not reason and now is not None and hash_of(now).hex() != entry["new"]:
                    reason = "it was edited after it was written"
                elif not reason and old is None:
                    path.unlink()
                    removed += 1
                elif not reason:
                    write_caption(path, old or b"")
                    work.replaced += 1
                if reason:
                    work.refuse(str(path), reason)
                elif index is not None:
                    index.delete_many(WRITTEN_KIND, [written_key(path)])
            progress.update(len(entries), max(1, len(entries)), "Putting captions back")
    except OSError as cause:
        raise storage_error("restore from", backup, cause) from cause
    except (zipfile.BadZipFile, KeyError, TypeError, ValueError, RecursionError) as cause:
        if isinstance(cause, AtelierError):
            raise
        raise FormatError(f"{backup.name} is no backup of captions, or it is damaged ({cause})") from cause
    counts = {"put back": work.replaced, "taken away (there were none before)": removed, "as before": work.unchanged}
    return SaveReport(title=f"Restored captions from {backup.name}.", counts=counts, refused=tuple(work.refused))


def list_backups(backup_dir: Path) -> list[str]:
    """Names of the backups, newest first."""
    if not backup_dir.is_dir():
        return []
    return sorted((entry.name for entry in backup_dir.iterdir() if entry.name.endswith(BACKUP_ENDING)), reverse=True)


def find_backup(backup_dir: Path, name: str) -> Path:
    """A backup by its name; empty or ``latest`` for the newest.

    Raises:
        InputError: There is none of that name.
    """
    names = list_backups(backup_dir)
    wanted = name.strip()
    if not names:
        raise InputError("there is no backup of captions yet; saving captions makes one")
    if wanted.lower() in ("", "latest"):
        return backup_dir / names[0]
    if wanted not in names:
        near = nearest_names(wanted, names)
        raise InputError(
            f"there is no backup {wanted!r}; the newest are {', '.join(names[:5])}"
            + (f"; did you mean {near[0]!r}?" if near else "")
        )
    return backup_dir / wanted


def backup_name(what: str) -> str:
    """A new name for a backup: the time to a microsecond, what it is of, and a random part."""
    now_ns = time.time_ns()
    stamp = time.strftime("%Y-%m-%d_%H-%M-%S", time.localtime(now_ns // 1_000_000_000))
    microseconds = now_ns // 1000 % 1_000_000
    what = safe_name(what, 40) or "data set"
    return f"{stamp}-{microseconds:06d} {what} {secrets.token_hex(2)}{BACKUP_ENDING}"


class Backup:
    """A zip file that is filled while captions are planned; None only counts."""

    def __init__(self, archive: zipfile.ZipFile | None) -> None:
        self._archive = archive
        self._entries: list[dict[str, Any]] = []
        self.num_files = 0

    def keep(self, path: Path, old: bytes | None, data: bytes) -> None:
        """Keeps what a file holds now, and the hash of what will be written."""
        self.num_files += 1
        if self._archive is None:
            return
        member = None
        if old is not None:
            member = f"{self.num_files:07d}{path.suffix}"
            self._archive.writestr(zipfile.ZipInfo(member, _FIRST_ZIP_DATE), old, zipfile.ZIP_DEFLATED)
        self._entries.append({"path": str(path), "member": member, "new": hash_of(data).hex()})

    def finish(self) -> None:
        """Writes the list of what is in it."""
        if self._archive is not None:
            manifest = json.dumps({"version": 1, "files": self._entries})
            self._archive.writestr(zipfile.ZipInfo(_MANIFEST, _FIRST_ZIP_DATE), manifest, zipfile.ZIP_DEFLATED)


@contextlib.contextmanager
def backup_into(path: Path, *, dry: bool) -> Iterator[Backup]:
    """A backup that is in its place when the block succeeds, and nowhere when it fails or nothing was kept."""
    if dry:
        yield Backup(None)
        return
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(temporary, "w", allowZip64=True) as archive:
            kept = Backup(archive)
            yield kept
            kept.finish()
        if kept.num_files:
            with atomic_path(path) as place:
                os.replace(temporary, place)
    except OSError as cause:
        raise storage_error("write the backup", path, cause) from cause
    finally:
        temporary.unlink(missing_ok=True)


def _not_restorable(path: Path, allowed: Allowed) -> str:
    """Why a path of a backup must not be written; empty when it may be."""
    if not path.is_absolute() or path.suffix not in FORMS or not allowed(Path(os.path.realpath(path.parent))):
        return "it lies outside the folders that may be written"
    return "a link or a folder is in its place" if path.is_symlink() or path.is_dir() else ""


def _manifest_of(archive: zipfile.ZipFile, backup: Path) -> list[dict[str, Any]]:
    manifest = json.loads(archive.read(_MANIFEST))
    if not isinstance(manifest, dict) or manifest.get("version") != 1 or not isinstance(manifest.get("files"), list):
        raise FormatError(f"{backup.name} is no backup of captions of this version")
    entries = list(_checked(manifest["files"], backup))
    for entry in entries:
        if entry["member"] is not None and archive.getinfo(entry["member"]).file_size > MAX_CAPTION_BYTES:
            raise FormatError(f"{backup.name} is no backup of captions: {entry['member']} is too large for one")
    return entries


def _checked(files: Sequence[Any], backup: Path) -> Iterator[dict[str, Any]]:
    for entry in files:
        if (
            not isinstance(entry, dict)
            or not isinstance(entry.get("path"), str)
            or not isinstance(entry.get("new"), str)
            or not isinstance(entry.get("member"), (str, type(None)))
        ):
            raise FormatError(f"{backup.name} is no backup of captions: an entry of its list is damaged")
        yield entry
