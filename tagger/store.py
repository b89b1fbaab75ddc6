"""Scores that were once computed, in the index: sparse, by content of the picture, tagger and preparation.

A picture's entry is a run of packed records (place in the vocabulary, score), little-endian: two bytes and four, or
four and four where the vocabulary has more than 65,536 tags. Scores are float32, so that what comes out of the store
is to the bit what the graph gave.
"""

import struct
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.index import Index
from .scores import SparseScores, Vocabulary

SMALL_VOCABULARY = 1 << 16
_SMALL = np.dtype([("id", "<u2"), ("score", "<f4")])
_LARGE = np.dtype([("id", "<u4"), ("score", "<f4")])
_KEYS_AT_ONCE = 20_000

Entry = tuple[NDArray[np.int32], NDArray[np.float32]]
"""Ids and scores of one picture."""


class Scorer(Protocol):
    """What gives scores that can be stored: a tagger, or a classifier made here."""

    @property
    def identity(self) -> str:
        """Changes when the same input could get other scores."""

    @property
    def preparation(self) -> str:
        """Changes when the same file could become another input."""

    @property
    def scored(self) -> Vocabulary:
        """What is scored."""


def picture_key(content: bytes, crop: tuple[int, int, int, int] | None) -> bytes:
    """The key of a picture, or of a part of one.

    Args:
        content: Hash of the file.
        crop: Left, top, right, bottom in px; None for the whole picture.
    """
    return content if crop is None else content + struct.pack("<4i", *crop)


class ScoreStore:
    """The scores of one tagger in an index."""

    def __init__(self, index: Index, scorer: Scorer) -> None:
        """Binds a tagger to an index.

        Args:
            index: The index.
            scorer: Whose scores are kept.
        """
        self.kind = f"scores:{scorer.identity}:{scorer.preparation}"
        self._index = index
        self._size = len(scorer.scored)
        self._highest = 1.0 if scorer.scored.bounded else np.inf
        self._record = _SMALL if self._size <= SMALL_VOCABULARY else _LARGE

    def get(self, keys: Sequence[bytes | None]) -> tuple[SparseScores, NDArray[np.bool_]]:
        """The stored scores of pictures, and which of them were there.

        A damaged entry counts as not there, so it is computed again.

        Args:
            keys: From `picture_key`; None for a picture whose content is not known.

        Returns:
            Scores of all keys (nothing for those that are missing) and bool [keys].
        """
        tables, there = [], np.zeros(len(keys), dtype=bool)
        for first in range(0, len(keys), _KEYS_AT_ONCE):
            part = keys[first : first + _KEYS_AT_ONCE]
            answers = iter(self._index.get_many(self.kind, [key for key in part if key is not None]))
            blobs = [None if key is None else next(answers) for key in part]
            table, found = self._decoded(blobs)
            there[first : first + len(part)] = found
            tables.append(table)
        return _stacked(tables), there

    def entries(self, keys: Sequence[bytes]) -> list[Entry | None]:
        """The stored scores of single pictures, each None where there is none; cheap where there are none."""
        blobs = self._index.get_many(self.kind, keys)
        if not any(blob is not None for blob in blobs):
            return [None] * len(keys)
        table, found = self._decoded(blobs)
        return [table.row(place) if there else None for place, there in enumerate(found.tolist())]

    def put(self, items: Sequence[tuple[bytes, NDArray[np.int32], NDArray[np.float32]]]) -> None:
        """Stores pictures' entries (key, ids, scores) in one transaction.

        Raises:
            StorageError: The index cannot be written.
        """
        self._index.put_many(self.kind, [(key, self._encoded(ids, values)) for key, ids, values in items])

    def count(self) -> int:
        """How many pictures have scores of this tagger."""
        return self._index.count(self.kind)

    def _encoded(self, ids: NDArray[np.int32], values: NDArray[np.float32]) -> bytes:
        records = np.empty(len(ids), dtype=self._record)
        records["id"], records["score"] = ids, values
        return records.tobytes()

    def _decoded(self, blobs: Sequence[bytes | None]) -> tuple[SparseScores, NDArray[np.bool_]]:
        width = self._record.itemsize
        found = np.array([blob is not None and len(blob) % width == 0 for blob in blobs], dtype=bool)
        good = [blob if blob is not None and fine else b"" for blob, fine in zip(blobs, found, strict=True)]
        records = np.frombuffer(b"".join(good), dtype=self._record)
        lengths = np.array([len(blob) // width for blob in good], dtype=np.int64)
        ids, values = records["id"].astype(np.int32), records["score"].astype(np.float32)
        table = SparseScores(offsets=_offsets(lengths), ids=ids, values=values)
        lowest = 0.0 if self._highest == 1.0 else -np.inf
        wrong = (ids < 0) | (ids >= self._size) | ~((values >= lowest) & (values <= self._highest))
        wrong[1:] |= (np.diff(ids) <= 0) & ~_first_of_row(table)[1:]
        if not bool(wrong.any()):
            return table, found
        damaged = np.unique(table.rows()[wrong])
        found[damaged] = False
        return self._decoded([blob if fine else None for blob, fine in zip(blobs, found, strict=True)])


def merged(stored: SparseScores, places: NDArray[np.int64], fresh: SparseScores) -> SparseScores:
    """Stored scores with those of some pictures put in.

    Args:
        stored: Of all pictures; nothing where there was none.
        places: Those that are put in, int64, each once.
        fresh: Their scores, in that order.
    """
    if not len(places):
        return stored
    order = np.argsort(places)
    places, fresh = places[order], fresh.take(order)
    lengths = np.diff(stored.offsets)
    is_new = np.zeros(len(lengths), dtype=bool)
    is_new[places] = True
    kept = np.repeat(~is_new, lengths)
    lengths[places] = np.diff(fresh.offsets)
    of_new = np.repeat(is_new, lengths)
    ids, values = np.empty(len(of_new), dtype=np.int32), np.empty(len(of_new), dtype=np.float32)
    ids[of_new], values[of_new] = fresh.ids, fresh.values
    ids[~of_new], values[~of_new] = stored.ids[kept], stored.values[kept]
    return SparseScores(offsets=_offsets(lengths), ids=ids, values=values)


def _first_of_row(table: SparseScores) -> NDArray[np.bool_]:
    first = np.zeros(len(table.ids) + 1, dtype=bool)
    first[table.offsets] = True
    return first[:-1]


def _stacked(tables: Sequence[SparseScores]) -> SparseScores:
    lengths = [np.diff(table.offsets) for table in tables]
    return SparseScores(
        offsets=_offsets(np.concatenate([np.zeros(0, dtype=np.int64), *lengths])),
        ids=np.concatenate([np.zeros(0, dtype=np.int32), *(table.ids for table in tables)]),
        values=np.concatenate([np.zeros(0, dtype=np.float32), *(table.values for table in tables)]),
    )


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
