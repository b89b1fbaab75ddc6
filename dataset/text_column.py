"""A column of strings, packed so that 200,000 names are one block of memory."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from ._arrays import Digest, offsets_of, runs

_ROWS_AT_ONCE = 65536


class TextColumn:
    """A column of strings, packed as UTF-8 in one block: about 9 bytes above the text itself per row."""

    __slots__ = ("_data", "_offsets")

    def __init__(self, data: bytes, offsets: NDArray[np.int64]) -> None:
        self._data = data
        self._offsets = offsets
        offsets.setflags(write=False)

    @classmethod
    def from_strings(cls, values: Iterable[str]) -> "TextColumn":
        """Packs strings (valid Unicode)."""
        data = bytearray()
        offsets = [0]
        for value in values:
            data += value.encode("utf-8")
            offsets.append(len(data))
        return cls(bytes(data), np.array(offsets, dtype=np.int64))

    @classmethod
    def empty(cls, num_rows: int) -> "TextColumn":
        """A column of empty strings."""
        return cls(b"", np.zeros(num_rows + 1, dtype=np.int64))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        if row < 0 or row >= len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._data[self._offsets[row] : self._offsets[row + 1]].decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        bounds = self._offsets.tolist()
        return (self._data[start:end].decode("utf-8") for start, end in zip(bounds[:-1], bounds[1:], strict=True))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return len(self._data) + self._offsets.nbytes

    def take(self, rows: NDArray[np.int64]) -> "TextColumn":
        """The given rows in the given order."""
        lengths = np.diff(self._offsets)[rows]
        source = np.frombuffer(self._data, dtype=np.uint8)
        data = bytearray()
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            data += source[runs(self._offsets[:-1][rows[part]], lengths[part])].tobytes()
        return TextColumn(bytes(data), offsets_of(lengths))

    def joined(self, other: "TextColumn") -> "TextColumn":
        """This column with another one below it."""
        offsets = np.concatenate([self._offsets, other._offsets[1:] + self._offsets[-1]])
        return TextColumn(self._data + other._data, offsets)

    def update_digest(self, digest: Digest) -> None:
        """Adds the content to a hash."""
        digest.update(self._offsets.tobytes())
        digest.update(self._data)
