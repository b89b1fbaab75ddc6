"""Files: atomic writes, hashes, names that every system accepts, and the folders a workflow may touch."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import FormatError, StorageError
from .progress import Progress
from .roots import Roots, is_reserved_name

__all__ = [
    "Roots",
    "atomic_path",
    "ensure_space",
    "free_bytes",
    "known_sha256",
    "link_or_copy",
    "read_json",
    "safe_name",
    "sha256_file",
    "write_bytes",
    "write_json",
    "write_text",
]

_CHUNK_BYTES = 4 * 1024 * 1024
_REPLACE_TRIES = 20
_REPLACE_PAUSE_S = 0.05
_MAX_NAME_BYTES = 200
_FORBIDDEN_IN_NAMES = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f]+')
_DISK_REASONS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EACCES: "there is no permission to write there, or another program holds the file open",
    errno.EPERM: "there is no permission to write there",
    errno.EROFS: "the disk can only be read; choose another folder",
    errno.EFBIG: "the file is larger than the disk's format allows",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder with that name is in the way",
    errno.EEXIST: "something with that name is in the way",
    errno.ENOTEMPTY: "a folder with that name is in the way",
}


def storage_error(action: str, path: Path, cause: OSError) -> StorageError:
    """Builds (does not raise) the error for a disk operation that failed."""
    reason = _DISK_REASONS.get(cause.errno or 0, f"the system says: {cause.strerror or cause}")
    return StorageError(f"could not {action} {path}: {reason}")


@contextlib.contextmanager
def atomic_path(target: Path, *, durable: bool = True) -> Iterator[Path]:
    """Gives a temporary sibling to write to, and puts it in the target's place when the block succeeds.

    The sibling's name starts with a dot and ends with ``.tmp`` (give Pillow its ``format=``). On success the file
    is synced, renamed over the target and the folder synced; on any failure, Cancel included, it is removed and
    the target stays as it was. A folder may be written instead of a file; its target must not exist. Missing
    parent folders are made.

    Args:
        target: The final path.
        durable: Waits until the disk has it. Without, a power cut may lose the new content, never leave half of it;
            for thousands of small files of which a copy lies elsewhere.

    Raises:
        StorageError: The disk is full, read-only, or the target is held open by another program.
    """
    target = Path(target)
    temporary = target.with_name(f".{target.name[:60]}.{secrets.token_hex(6)}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise storage_error("make the folder", target.parent, cause) from cause
    try:
        yield temporary
        if durable:
            _sync_tree(temporary)
        _replace(temporary, target)
        if durable:
            _sync_folder(target.parent)
    except OSError as cause:
        if cause.errno in _DISK_REASONS and cause.filename in (None, str(temporary), temporary):
            raise storage_error("write", target, cause) from cause
        raise
    finally:
        _remove(temporary)


def write_bytes(path: Path, value: bytes) -> None:
    """Writes a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(value)


def write_text(path: Path, value: str) -> None:
    """Writes a text file atomically, UTF-8, with the line ends as given."""
    write_bytes(path, value.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file atomically: UTF-8, two spaces of indent, the order of keys kept, no NaN.

    Raises:
        StorageError: See :func:`atomic_path`.
        ValueError: The value holds NaN, an infinity, or something that JSON cannot hold.
    """
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
        StorageError: The file cannot be read.
        FormatError: It is not JSON; the line is named.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as cause:
        raise storage_error("read", Path(path), cause) from cause
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path} is not a UTF-8 text; save it as UTF-8") from cause
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as cause:
        raise FormatError(f"{path} is not valid JSON: {cause}") from cause


def sha256_file(path: Path, progress: Progress | None = None) -> str:
    """Returns the SHA-256 of a file's content as 64 hex digits.

    Args:
        path: The file.
        progress: Told the bytes read so far; may cancel.

    Raises:
        StorageError: The file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        total_bytes = os.stat(path).st_size
        with open(path, "rb") as file:
            done_bytes = 0
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                done_bytes += len(chunk)
                if progress is not None:
                    progress.update(done_bytes, max(total_bytes, done_bytes), f"hashing {Path(path).name}")
    except OSError as cause:
        raise storage_error("read", Path(path), cause) from cause
    return digest.hexdigest()


_known_hashes: dict[tuple[str, int, int], str] = {}


def known_sha256(path: Path, progress: Progress | None = None) -> str:
    """Returns :func:`sha256_file` of a file, read once per process as long as its size and time stay the same.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        status = os.stat(path)
    except OSError as cause:
        raise storage_error("read", Path(path), cause) from cause
    key = (str(path), status.st_size, status.st_mtime_ns)
    if key not in _known_hashes:
        _known_hashes[key] = sha256_file(path, progress)
    return _known_hashes[key]


def link_or_copy(source: Path, target: Path) -> None:
    """Puts a file's content at a second place: a hard link where the disk allows it, else a copy; atomic.

    Raises:
        StorageError: Neither was possible.
    """
    source, target = Path(source), Path(target)
    _check_is_file(source)
    with atomic_path(target) as temporary:
        try:
            os.link(source, temporary)
        except OSError:  # another disk, a file system without hard links, or too many links: a copy does as well
            shutil.copyfile(source, temporary)


def link_or_copy_new(source: Path, target: Path) -> None:
    """As :func:`link_or_copy`, but never replaces: of two who want one name at one instant only the first gets it.

    Raises:
        FileExistsError: The target is there.
        StorageError: Neither was possible.
    """
    source, target = Path(source), Path(target)
    _check_is_file(source)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise storage_error("make the folder", target.parent, cause) from cause
    try:
        os.link(source, target)
        return
    except OSError as cause:
        if cause.errno == errno.EEXIST:
            raise
        # another disk, a file system without hard links, or too many links: a copy does as well
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))  # the name is ours from here on


def _check_is_file(source: Path) -> None:
    if not source.is_file():
        raise StorageError(f"could not copy {source}: it is not a file")


def safe_name(text: str, max_chars: int = 80) -> str:
    """Turns any text into a file name that Windows, macOS and Linux accept.

    Forbidden and control characters become ``_``, dots and spaces at the ends go, reserved device names get a
    ``_`` before them, and the length is limited in characters and in UTF-8 bytes.
    """
    text = unicodedata.normalize("NFC", text.encode("utf-8", "replace").decode("utf-8"))
    text = _FORBIDDEN_IN_NAMES.sub("_", text)
    text = re.sub(r"\s+", " ", text).strip(". ")[:max_chars]
    text = text.encode("utf-8")[:_MAX_NAME_BYTES].decode("utf-8", "ignore").strip(". ")
    if is_reserved_name(text):
        text = f"_{text}"[:max_chars].rstrip(". ")
    return text or "unnamed"


def free_bytes(path: Path) -> int:
    """Returns the free bytes of the disk a path lies on, whether or not the path exists yet.

    Raises:
        StorageError: The disk cannot be asked.
    """
    existing = Path(path).absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    try:
        return shutil.disk_usage(existing).free
    except OSError as cause:
        raise storage_error("measure the disk of", existing, cause) from cause


def ensure_space(path: Path, needed_bytes: int) -> None:
    """Refuses early what would not fit.

    Raises:
        StorageError: The disk has less free space than needed; both figures are named.
    """
    available_bytes = free_bytes(path)
    if available_bytes < needed_bytes:
        raise StorageError(
            f"{path} needs {needed_bytes / 2**20:,.0f} MiB of disk space and {available_bytes / 2**20:,.0f} MiB are "
            "free; free some space or choose another disk"
        )


def _sync_tree(path: Path) -> None:
    if not path.exists():
        raise StorageError(f"nothing was written to {path}; this is a fault of the program, please report it")
    if path.is_dir():
        for child in path.iterdir():
            _sync_tree(child)
        _sync_folder(path)
        return
    with open(path, "r+b" if os.name == "nt" else "rb") as file:  # Windows syncs writable files only
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot open folders; the rename itself is journalled there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as cause:
        # Some network file systems cannot sync folders; the file's own content is synced already.
        if cause.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _replace(source: Path, target: Path) -> None:
    # Windows: a virus scanner or an indexer may hold a fresh file for a moment, so that access is denied briefly.
    for attempt in range(_REPLACE_TRIES):
        try:
            os.replace(source, target)
        except PermissionError:
            if os.name != "nt" or attempt == _REPLACE_TRIES - 1:
                raise
            time.sleep(_REPLACE_PAUSE_S)
        else:
            return


def _remove(path: Path) -> None:
    # Also needed after success: renaming one hard link onto another of the same file leaves both in place (POSIX).
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
