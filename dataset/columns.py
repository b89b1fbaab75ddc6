"""Columns of a data set: packed strings and interned tags. Immutable, so that tables can share them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

_Item = TypeVar("_Item", bound=np.generic)


class Digest(Protocol):
    """The part of a ``hashlib`` object that the columns use."""

    def update(self, data: bytes, /) -> None:
        """Adds bytes."""


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

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        if row < 0 or row >= len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self._data[self._offsets[row] : self._offsets[row + 1]].decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return (self[row] for row in range(len(self)))

    @property
    def nbytes(self) -> int:
        """Memory in bytes."""
        return len(self._data) + self._offsets.nbytes

    def take(self, rows: NDArray[np.int64]) -> "TextColumn":
        """The given rows in the given order."""
        return TextColumn.from_strings(self[int(row)] for row in rows)

    def joined(self, other: "TextColumn") -> "TextColumn":
        """This column with another one below it."""
        offsets = np.concatenate([self._offsets, other._offsets[1:] + self._offsets[-1]])
        return TextColumn(self._data + other._data, offsets)

    def update_digest(self, digest: Digest) -> None:
        """Adds the content to a hash."""
        digest.update(self._offsets.tobytes())
        digest.update(self._data)


class TagColumn:
    """Tags of every picture: a vocabulary and, per row, a run of ids into it.

    Attributes:
        vocabulary: Every tag once; ids are places in it. It may hold tags that no row uses any more.
        offsets: int64 [rows + 1]; row r owns ``ids[offsets[r]:offsets[r + 1]]``.
        ids: int32 [all tags of all rows].
    """

    __slots__ = ("ids", "offsets", "vocabulary")

    def __init__(self, vocabulary: tuple[str, ...], offsets: NDArray[np.int64], ids: NDArray[np.int32]) -> None:
        self.vocabulary = vocabulary
        self.offsets = offsets
        self.ids = ids
        offsets.setflags(write=False)
        ids.setflags(write=False)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[str]]) -> "TagColumn":
        """Interns lists of tags."""
        builder = TagColumnBuilder()
        for row in rows:
            builder.append(row)
        return builder.build()

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Memory of the ids and offsets in bytes, without the vocabulary."""
        return self.ids.nbytes + self.offsets.nbytes

    def row(self, row: int) -> tuple[str, ...]:
        """The tags of one row in order."""
        if row < 0 or row >= len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return tuple(self.vocabulary[tag] for tag in self.ids[self.offsets[row] : self.offsets[row + 1]])

    def counts(self) -> NDArray[np.int64]:
        """Occurrences of each tag of the vocabulary."""
        return np.bincount(self.ids, minlength=len(self.vocabulary)).astype(np.int64)

    def take(self, rows: NDArray[np.int64]) -> "TagColumn":
        """The given rows in the given order, with the same vocabulary."""
        lengths = np.diff(self.offsets)[rows]
        offsets = _offsets_of(lengths)
        return TagColumn(self.vocabulary, offsets, self.ids[_runs(self.offsets[:-1][rows], lengths)])

    def replaced(self, rows: Mapping[int, Sequence[str]]) -> "TagColumn":
        """A copy in which some rows have other tags; the vocabulary is shared when it holds them all."""
        if not rows:
            return self
        changed = np.array(sorted(rows), dtype=np.int64)
        place = {tag: number for number, tag in enumerate(self.vocabulary)}
        new_ids: list[int] = []
        lengths = np.diff(self.offsets)
        for row in changed:
            tags = rows[int(row)]
            new_ids.extend(place.setdefault(tag, len(place)) for tag in tags)
            lengths[row] = len(tags)
        offsets = _offsets_of(lengths)
        ids = np.empty(int(offsets[-1]), dtype=np.int32)
        kept = np.ones(len(self), dtype=bool)
        kept[changed] = False
        target, source = offsets[:-1][kept], self.offsets[:-1][kept]
        ids[_runs(target, lengths[kept])] = self.ids[_runs(source, lengths[kept])]
        ids[_runs(offsets[:-1][changed], lengths[changed])] = np.array(new_ids, dtype=np.int32)
        vocabulary = self.vocabulary if len(place) == len(self.vocabulary) else tuple(place)
        return TagColumn(vocabulary, offsets, ids)

    def joined(self, other: "TagColumn") -> "TagColumn":
        """This column with another one below it."""
        place = {tag: number for number, tag in enumerate(self.vocabulary)}
        translate = np.array([place.setdefault(tag, len(place)) for tag in other.vocabulary], dtype=np.int32)
        vocabulary = self.vocabulary if len(place) == len(self.vocabulary) else tuple(place)
        offsets = np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]])
        ids = np.concatenate([self.ids, translate[other.ids]]) if len(other.ids) else self.ids
        return TagColumn(vocabulary, offsets, ids)

    def update_digest(self, digest: Digest) -> None:
        """Adds the content to a hash, whatever the order of the vocabulary and the unused tags in it."""
        unique, first, inverse = np.unique(self.ids, return_index=True, return_inverse=True)
        order = np.argsort(first, kind="stable")
        rank = np.empty(len(unique), dtype=np.int32)
        rank[order] = np.arange(len(unique), dtype=np.int32)
        digest.update(self.offsets.tobytes())
        digest.update(rank[inverse.reshape(-1)].tobytes())
        for tag in unique[order]:
            digest.update(self.vocabulary[int(tag)].encode("utf-8", "surrogatepass") + b"\0")


class TagColumnBuilder:
    """Fills a :class:`TagColumn` row by row."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._ids: list[NDArray[np.int32]] = []
        self._pending: list[int] = []
        self._lengths: list[int] = []

    def append(self, tags: Sequence[str]) -> None:
        """Adds a row."""
        place = self._place
        self._pending.extend(place.setdefault(tag, len(place)) for tag in tags)
        self._lengths.append(len(tags))
        if len(self._pending) >= 65536:
            self._flush()

    def build(self) -> TagColumn:
        """The finished column."""
        self._flush()
        offsets = _offsets_of(np.array(self._lengths, dtype=np.int64))
        return TagColumn(tuple(self._place), offsets, np.concatenate(self._ids))

    def _flush(self) -> None:
        self._ids.append(np.array(self._pending, dtype=np.int32))
        self._pending.clear()


def frozen(column: NDArray[_Item]) -> NDArray[_Item]:
    """The same array, closed for writing."""
    column.setflags(write=False)
    return column


def new_digest() -> "hashlib.blake2b":
    """The hash that fingerprints of data sets use (32 hexadecimal digits)."""
    return hashlib.blake2b(digest_size=16)


def _offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def _runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indexes of all elements of runs that begin at ``starts``: s0, s0+1, ..., s1, s1+1, ..."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    return np.arange(total, dtype=np.int64) + shifts
