"""What taggers say of pictures: scores of a vocabulary, kept sparse because nearly all of them are nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..dataset._arrays import offsets_of, runs

FLOOR = 0.05
"""A lower score counts as none, wherever it comes from: one picture, a batch or the store."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Vocabulary:
    """The tags a tagger (or several together) can give, in the order of its scores.

    Attributes:
        names: As in the table.
        categories: Category word of each.
        thresholds: The model's own threshold per category.
        tag_thresholds: The model's own threshold of single tags, by place.
        argmax: Categories of which only the strongest tag counts.
        bounded: The scores lie in 0..1; False for features, of which all are kept.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    tag_thresholds: Mapping[int, float] = field(default_factory=dict)
    argmax: tuple[str, ...] = ("rating",)
    bounded: bool = True

    def __len__(self) -> int:
        return len(self.names)

    def places(self, category: str) -> NDArray[np.int64]:
        """Places of the tags of a category, int64."""
        return np.array([n for n, word in enumerate(self.categories) if word == category], dtype=np.int64)

    def limits(self, *, general: float = 0.0, by_category: Mapping[str, float] | None = None) -> NDArray[np.float32]:
        """The threshold of every tag, float32 [tags].

        Args:
            general: Threshold of general tags; 0 takes the model's own.
            by_category: Thresholds that go before the model's own, for single tags too.
        """
        given = dict(by_category or {})
        if general:
            given["general"] = general
        base = given.get("general", self.thresholds.get("general", 0.35))
        own = {word: self.thresholds.get(word, base) for word in set(self.categories)}
        limits = np.array([given.get(word, own[word]) for word in self.categories], dtype=np.float32)
        for place, limit in self.tag_thresholds.items():
            if self.categories[place] not in given:
                limits[place] = limit
        return limits


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseScores:
    """Scores of pictures, those that are not nothing.

    Attributes:
        offsets: int64 [pictures + 1]; picture r owns the entries from ``offsets[r]`` to ``offsets[r + 1]``.
        ids: int32 [entries], places in the vocabulary, ascending inside a picture.
        values: float32 [entries], 0..1.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[np.int32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, row: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Ids and scores of one picture."""
        place = slice(int(self.offsets[row]), int(self.offsets[row + 1]))
        return self.ids[place], self.values[place]

    def rows(self) -> NDArray[np.int32]:
        """The picture of each entry, int32."""
        return np.repeat(np.arange(len(self), dtype=np.int32), np.diff(self.offsets))

    def part(self, first: int, last: int) -> "SparseScores":
        """Pictures ``first`` to ``last`` (not included), sharing the arrays."""
        start, end = int(self.offsets[first]), int(self.offsets[last])
        return SparseScores(
            offsets=self.offsets[first : last + 1] - start, ids=self.ids[start:end], values=self.values[start:end]
        )

    def without_empty(self, keep: NDArray[np.bool_]) -> "SparseScores":
        """Only the pictures that are kept; those left out must have no entry."""
        lengths = np.diff(self.offsets)[keep]
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
        return SparseScores(offsets=offsets, ids=self.ids, values=self.values)

    def take(self, pictures: NDArray[np.int64]) -> "SparseScores":
        """Some pictures in the given order."""
        lengths = np.diff(self.offsets)[pictures]
        entries = runs(self.offsets[:-1][pictures], lengths)
        return SparseScores(offsets=offsets_of(lengths), ids=self.ids[entries], values=self.values[entries])

    def dense(self, size: int) -> NDArray[np.float32]:
        """All scores, float32 [pictures, size]; what is below the floor is 0."""
        table = np.zeros((len(self), size), dtype=np.float32)
        table[self.rows(), self.ids] = self.values
        return table


def sparse_of(values: NDArray[np.float32], vocabulary: Vocabulary) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """The entries of one picture that are kept: from `FLOOR` on, and the best of each argmax category.

    Args:
        values: float32 [tags].
        vocabulary: What they are scores of.

    Returns:
        Ids, ascending int32, and their scores, float32.
    """
    if not vocabulary.bounded:
        return np.arange(len(values), dtype=np.int32), values
    kept = values >= np.float32(FLOOR)
    for places in _argmax_places(vocabulary):
        kept[places[np.argmax(values[places])]] = True
    ids = np.flatnonzero(kept).astype(np.int32)
    return ids, values[ids]


def joined(parts: Sequence[tuple[NDArray[np.int32], NDArray[np.float32]]]) -> SparseScores:
    """The table of single pictures' entries."""
    lengths = np.array([len(ids) for ids, _ in parts], dtype=np.int64)
    return SparseScores(
        offsets=np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)]),
        ids=np.concatenate([np.zeros(0, dtype=np.int32), *(ids for ids, _ in parts)]).astype(np.int32),
        values=np.concatenate([np.zeros(0, dtype=np.float32), *(values for _, values in parts)]),
    )


_places: dict[int, tuple[Vocabulary, list[NDArray[np.int64]]]] = {}


def _argmax_places(vocabulary: Vocabulary) -> list[NDArray[np.int64]]:
    """Places of each argmax category; asked for every picture, so the last vocabularies are remembered."""
    known = _places.get(id(vocabulary))
    if known is None or known[0] is not vocabulary:
        if len(_places) > 8:
            _places.clear()
        found = [vocabulary.places(word) for word in vocabulary.argmax]
        known = _places[id(vocabulary)] = (vocabulary, [places for places in found if len(places)])
    return known[1]
