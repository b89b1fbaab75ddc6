"""What the files of a data set contain, by hash; known from the index as long as size and time stay the same."""

import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..core.index import Index
from ..dataset.headers import CONTENT_KIND, PictureFile, file_key
from ..dataset.images import BadPicture, content_hash, content_hash_of
from ..dataset.table import Dataset

HASH_BYTES = 16
MOST_BYTES = 1 << 28
"""A larger file is not held in memory whole: it is hashed in pieces and decoded from the disk."""
_MEMORY_S, _MEMORY_BYTES_A_SECOND = 1e-3, 1e9


def known_contents(index: Index, dataset: Dataset, rows: Sequence[int]) -> list[bytes | None]:
    """Hashes of pictures as they were when the data set was opened; None where a file has not been read yet."""
    folders = [os.path.join(subset.folder, "") for subset in dataset.subsets]
    subsets, sizes, times = dataset.subset_index.tolist(), dataset.size_bytes.tolist(), dataset.mtime_ns.tolist()
    names = dataset.names
    # As `str` of the picture's path writes it, by which it is remembered: on Windows with its own separator.
    paths = (f"{folders[subsets[row]]}{names[row]}".replace("/", os.sep) for row in rows)
    files = (PictureFile(path, sizes[row], times[row]) for path, row in zip(paths, rows, strict=True))
    values = index.get_many(CONTENT_KIND, [file_key(file) for file in files])
    return [value if value is not None and len(value) == HASH_BYTES else None for value in values]


class ReadPicture(NamedTuple):
    """A picture file as it was read.

    ``file`` is its key in the index, ``content`` the hash of its bytes, ``data`` the bytes themselves (None for a file
    that is too large to be kept in memory). ``had_to_wait`` tells that they came from a disk, not from memory.
    """

    file: bytes
    content: bytes
    data: bytes | None
    had_to_wait: bool


def read_picture(path: Path, known: "KnownContent | None" = None) -> ReadPicture:
    """Reads a file once, for its hash and to be decoded, so that the scores of these bytes are kept under their hash.

    Args:
        path: The file.
        known: What its content is as long as its size and time are those.

    Raises:
        BadPicture: It cannot be read.
    """
    started = time.perf_counter()
    try:
        with open(path, "rb", buffering=0) as file:
            facts = os.fstat(file.fileno())
            data = file.read() if facts.st_size <= MOST_BYTES else None
    except FileNotFoundError as cause:
        raise BadPicture(path, "the file is gone") from cause
    except OSError as cause:
        raise BadPicture(path, f"the file cannot be read ({cause.strerror})") from cause
    had_to_wait = time.perf_counter() - started > _MEMORY_S + facts.st_size / _MEMORY_BYTES_A_SECOND
    key = file_key(PictureFile(str(path), facts.st_size, facts.st_mtime_ns))
    if known is not None and (known.size_bytes, known.mtime_ns) == (facts.st_size, facts.st_mtime_ns):
        return ReadPicture(key, known.content, data, had_to_wait)
    content = bytes.fromhex(content_hash(path)) if data is None else content_hash_of(data)
    return ReadPicture(key, content, data, had_to_wait)


class KnownContent(NamedTuple):
    """What a file was found to contain when it had this size and time."""

    content: bytes
    size_bytes: int
    mtime_ns: int


def remember(index: Index, found: Iterable[tuple[bytes, bytes]]) -> None:
    """Keeps hashes of files, in one transaction.

    Raises:
        StorageError: The index cannot be written.
    """
    index.put_many(CONTENT_KIND, found)
