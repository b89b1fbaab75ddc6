"""A keyed cache on disk with a quota, safe for several processes.

One file per key; a file appears whole or not at all. What was used least recently goes first when the quota is
passed. The time a file was last used is its modification time.
"""

import hashlib
import os
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from .errors import InputError, StorageError
from .files import atomic_path

_SUFFIX = re.compile(r"\.[a-z0-9]{1,12}$")
_EVICT_TO = 0.9
_RECENT_S = 60.0
_STALE_TEMPORARY_S = 24 * 3600.0
_LIVING: "weakref.WeakSet[Store]" = weakref.WeakSet()


class Store:
    """Files by key below one folder.

    A file handed out is in use, and kept, until :meth:`release` or until its store object is gone. Files that any
    process touched within the last minute are kept too: it may be about to open them.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        """Opens the cache; nothing is read or made yet.

        Args:
            folder: Where the files lie; made at the first :meth:`put`.
            quota_bytes: Total size above which files are evicted.

        Raises:
            InputError: The quota is negative.
        """
        if quota_bytes < 0:
            raise InputError(f"the quota of the cache is {quota_bytes} bytes, allowed is 0 or more")
        self.folder = Path(folder)
        self.quota_bytes = quota_bytes
        self._used: set[Path] = set()
        self._lock = threading.Lock()
        self._total_bytes: int | None = None
        self._look_again_bytes = quota_bytes
        _LIVING.add(self)

    def path(self, key: str) -> Path | None:
        """Returns the file of a key and marks it as used now, or None when it is not in the cache."""
        path = self._file_of(key)
        return path if self.use(path) else None

    def files(self) -> list[Path]:
        """Returns every file that is in the cache now, sorted; none is marked as used."""
        return sorted(path for _, _, path in self._scan())

    def total_bytes(self) -> int:
        """Returns the size of all files that are in the cache now."""
        return sum(size_bytes for _, size_bytes, _ in self._scan())

    def use(self, path: Path) -> bool:
        """Marks a file of the cache as used now; returns whether it is still there."""
        with self._lock:
            self._used.add(path)
            try:
                os.utime(path)
            except PermissionError:  # a cache that can only be read still serves
                pass
            except OSError:
                self._used.discard(path)
                return False
        return True

    def discard(self, path: Path) -> None:
        """Removes a file found by :meth:`files`, e.g. a broken one; one that is held open elsewhere stays."""
        with self._lock:
            self._used.discard(path)
        with suppress(OSError):
            path.unlink()

    def put(self, key: str, write: Callable[[Path], None]) -> Path:
        """Returns the file of a key; if it is not there, lets ``write`` make it first.

        When two processes put the same key at once, both write and one of the two equal files stays.

        Args:
            key: The key; it must name everything the content depends on. An ending such as ``.safetensors`` is kept.
            write: Writes the content to the path it is given (a temporary one).

        Raises:
            StorageError: No space or no permission.
        """
        existing = self.path(key)
        if existing is not None:
            return existing
        path = self._file_of(key)
        with self._lock:
            self._used.add(path)
        try:
            with atomic_path(path) as temporary:
                write(temporary)
        except StorageError:
            # Windows does not replace a file that another process has open; that file is as good as ours.
            if not path.exists():
                self.release(key)
                raise
        except BaseException:
            self.release(key)
            raise
        self._added(path)
        return path

    def remove(self, key: str) -> None:
        """Removes a file, e.g. one found broken; does nothing when it is not there."""
        self.release(key)
        with suppress(FileNotFoundError):
            self._file_of(key).unlink()

    def release(self, key: str) -> None:
        """Says that this process no longer uses the file; it may be evicted when its time comes."""
        with self._lock:
            self._used.discard(self._file_of(key))

    def evict(self) -> int:
        """Removes the least recently used files until nine tenths of the quota are left; returns the bytes freed.

        Does nothing while the total is within the quota. Files in use stay, even above the quota.
        """
        rows = sorted(self._scan())
        total_bytes = sum(size_bytes for _, size_bytes, _ in rows)
        freed_bytes = 0
        if total_bytes > self.quota_bytes:
            in_use = self._in_use()
            newest_allowed = time.time() - _RECENT_S
            for used_at, size_bytes, path in rows:
                if total_bytes - freed_bytes <= self.quota_bytes * _EVICT_TO or used_at > newest_allowed:
                    break
                if path in in_use:
                    continue
                with suppress(OSError):  # open in another process (Windows) or already gone: the next one then
                    path.unlink()
                    freed_bytes += size_bytes
        self._total_bytes = total_bytes - freed_bytes
        return freed_bytes

    def _file_of(self, key: str) -> Path:
        digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
        suffix = _SUFFIX.search(key)
        return self.folder / digest[:2] / (digest[2:42] + (suffix.group() if suffix else ".bin"))

    def _added(self, path: Path) -> None:
        if self._total_bytes is None:
            self.evict()
            return
        self._total_bytes += path.stat().st_size
        if self._total_bytes > self._look_again_bytes:
            self.evict()
            # When all is in use, looking at every file after every put would cost the square of their number.
            self._look_again_bytes = max(self.quota_bytes, self._total_bytes + self.quota_bytes // 20)

    def _scan(self) -> Iterator[tuple[float, int, Path]]:
        if not self.folder.is_dir():
            return
        for shelf in sorted(self.folder.iterdir()):
            if len(shelf.name) != 2 or not shelf.is_dir():
                continue
            for entry in os.scandir(shelf):
                with suppress(FileNotFoundError):  # evicted by another process meanwhile
                    facts = entry.stat(follow_symlinks=False)
                    if entry.name.startswith("."):
                        if time.time() - facts.st_mtime > _STALE_TEMPORARY_S:
                            os.unlink(entry.path)
                    else:
                        yield facts.st_mtime, facts.st_size, Path(entry.path)

    def _in_use(self) -> set[Path]:
        in_use: set[Path] = set()
        for store in list(_LIVING):
            with store._lock:
                in_use |= store._used
        return in_use
