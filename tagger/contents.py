"""What the files of a data set contain, by hash; known from the index as long as size and time stay the same."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..core.index import Index
from ..dataset.headers import CONTENT_KIND, PictureFile, file_key
from ..dataset.images import BadPicture, content_hash
from ..dataset.table import Dataset

HASH_BYTES = 16


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


def read_content(path: Path) -> tuple[bytes, bytes]:
    """Key and hash of a file as it is now.

    Raises:
        BadPicture: It cannot be read.
    """
    try:
        facts = os.stat(path)
    except OSError as cause:
        raise BadPicture(path, "the file is gone or cannot be read") from cause
    return file_key(PictureFile(str(path), facts.st_size, facts.st_mtime_ns)), bytes.fromhex(content_hash(path))


def remember(index: Index, found: Iterable[tuple[bytes, bytes]]) -> None:
    """Keeps hashes of files, in one transaction.

    Raises:
        StorageError: The index cannot be written.
    """
    index.put_many(CONTENT_KIND, found)
