"""What pictures and base models hold: content hashes, remembered over runs."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..core.errors import InputError, StorageError
from ..core.files import storage_error
from ..core.index import Index
from ..core.progress import Progress
from ..dataset.headers import CONTENT_KIND, FILES_AT_ONCE, PictureFile, file_key
from ..dataset.images import BadPicture, content_hash, load_image
from ..dataset.table import Dataset
from ..families._base import Base, base_hash

REMEMBER_EVERY_FILES = 64
WHOLE_KIND = "whole:1"
"""Content of pictures that were decoded to their end."""
BASE_KIND = "sha256:1"

_Answer = TypeVar("_Answer")


class Contents(NamedTuple):
    """What the files of a data set hold.

    Attributes:
        hashes: content hash of every picture, "" for a damaged one.
        damaged: why a picture cannot be decoded, by its number.
    """

    hashes: list[str]
    damaged: dict[int, str]


class ContentIndex:
    """Remembers hashes of whole files by path, size and modification time, over runs and for several processes.

    Where the index cannot be used (on some network shares), the hashes are made without it.
    """

    def __init__(self, index: Index | None) -> None:
        """Remembers in ``index``; None remembers nothing."""
        self._index = index

    def contents(self, dataset: Dataset, progress: Progress) -> Contents:
        """Returns the content hash of every picture, and which ones cannot be decoded.

        Only what is not known to be whole is read: new and changed files, and damaged ones, which may be readable
        tomorrow with another library.
        """
        found = Contents(hashes=[], damaged={})
        for start in range(0, len(dataset), FILES_AT_ONCE):
            rows = range(start, min(start + FILES_AT_ONCE, len(dataset)))
            self._read(dataset, rows, found, progress)
        return found

    def _read(self, dataset: Dataset, rows: range, found: Contents, progress: Progress) -> None:
        files = [
            PictureFile(str(dataset.path(row)), int(dataset.size_bytes[row]), int(dataset.mtime_ns[row]))
            for row in rows
        ]
        keys = [file_key(file) for file in files]
        known = self.known(CONTENT_KIND, keys, progress)
        whole = self.known(WHOLE_KIND, [digest or b"" for digest in known], progress)
        fresh: list[tuple[bytes, bytes]] = []
        try:
            for row, key, digest, is_whole in zip(rows, keys, known, whole, strict=True):
                value = digest.hex() if digest is not None and is_whole is not None else None
                if value is None:
                    progress.update(row, len(dataset), "reading pictures")
                    try:
                        value = content_hash(dataset.path(row))
                        load_image(dataset.path(row))
                        fresh.append((key, bytes.fromhex(value)))
                    except BadPicture as damage:
                        value = ""
                        found.damaged[row] = damage.reason
                found.hashes.append(value)
                if len(fresh) >= REMEMBER_EVERY_FILES:
                    self._remember(fresh, progress)
                    fresh = []
        finally:
            self._remember(fresh, progress)

    def base_hash(self, base: Base, progress: Progress) -> str:
        """Returns the SHA-256 of a base model's file; only a new or changed file is read.

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            status = base.path.stat()
        except OSError as cause:
            raise storage_error("read", base.path, cause) from cause
        key = file_key(PictureFile(str(base.path), status.st_size, status.st_mtime_ns))
        (known,) = self.known(BASE_KIND, [key], progress)
        if known is not None:
            return known.hex()
        value = base_hash(base, progress)
        self._asked(lambda index: index.put_many(BASE_KIND, [(key, bytes.fromhex(value))]), progress)
        return value

    def file_hashes(self, paths: Sequence[Path], progress: Progress) -> list[str]:
        """Returns the content hashes of files that belong to pictures, such as masks; only changed ones are read.

        Raises:
            InputError: a file is gone or cannot be read.
        """
        files: list[PictureFile] = []
        for path in paths:
            try:
                status = path.stat()
            except OSError as cause:
                raise InputError(f"The mask {path.name} is gone ({cause.strerror}); set the masks again.") from cause
            files.append(PictureFile(str(path), status.st_size, status.st_mtime_ns))
        keys = [file_key(file) for file in files]
        found: list[str] = []
        fresh: list[tuple[bytes, bytes]] = []
        for path, key, digest in zip(paths, keys, self.known(CONTENT_KIND, keys, progress), strict=True):
            if digest is None:
                progress.check()
                try:
                    digest = bytes.fromhex(content_hash(path))
                except BadPicture as damage:
                    raise InputError(f"The mask {path.name} cannot be read: {damage.reason}; repair it.") from damage
                fresh.append((key, digest))
            found.append(digest.hex())
        self.remember(CONTENT_KIND, fresh, progress)
        return found

    def remember(self, kind: str, entries: Sequence[tuple[bytes, bytes]], progress: Progress) -> None:
        """Writes (key, value) pairs; where the index cannot be used, nothing is kept."""
        self._asked(lambda index: index.put_many(kind, entries), progress)

    def known(self, kind: str, keys: Sequence[bytes], progress: Progress) -> Sequence[bytes | None]:
        """Returns what is remembered under each key, None for what is not."""
        return self._asked(lambda index: index.get_many(kind, keys), progress) or [None] * len(keys)

    def _remember(self, entries: Sequence[tuple[bytes, bytes]], progress: Progress) -> None:
        self._asked(lambda index: index.put_many(CONTENT_KIND, entries), progress)
        self._asked(lambda index: index.put_many(WHOLE_KIND, [(digest, b"1") for _, digest in entries]), progress)

    def _asked(self, ask: Callable[[Index], _Answer], progress: Progress) -> _Answer | None:
        """Asks the index; None once it has failed, which is told."""
        if self._index is None:
            return None
        try:
            return ask(self._index)
        except StorageError as cause:
            self._index = None
            progress.status(f"Hashes are not remembered: {cause}")
            return None


@contextlib.contextmanager
def own_index(cache_dir: Path, progress: Progress) -> Iterator[Index | None]:
    """An index in the cache folder, for a training that is given none; None where it cannot be used, which is told."""
    try:
        index = Index(cache_dir / "index.sqlite", status=progress.status)
    except StorageError as cause:
        progress.status(f"Hashes are not remembered: {cause}")
        yield None
        return
    with index:
        yield index


def index_of(
    cache_dir: Path, index: Index | None, progress: Progress
) -> contextlib.AbstractContextManager[Index | None]:
    """The index that was given, which stays open, or one of its own in the cache folder."""
    return own_index(cache_dir, progress) if index is None else contextlib.nullcontext(index)
