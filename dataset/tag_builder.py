"""Filling a column of tags row by row."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._arrays import offsets_of
from .tag_column import TagColumn


class TagColumnBuilder:
    """Fills a :class:`TagColumn` row by row."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._categories: dict[int, int] = {}
        self._ids: list[NDArray[np.int32]] = []
        self._pending: list[int] = []
        self._lengths: list[int] = []
        self._sources: dict[int, tuple[int, int]] = {}
        self._scores: dict[int, Sequence[float]] = {}

    def append(
        self,
        tags: Sequence[str],
        *,
        categories: Sequence[int] = (),
        scores: Sequence[float] = (),
        source: int = 0,
        num_sourced: int | None = None,
    ) -> None:
        """Adds a row.

        Args:
            tags: Its tags.
            categories: Place in ``CATEGORIES`` of each tag; empty when they are not known. The first known one counts.
            scores: Score of each tag, nan for none; empty when none has one.
            source: Place in ``SOURCES`` of the row's tags.
            num_sourced: So many tags at the front come from there, the others from a caption; by default all.
        """
        place = self._place
        ids = [place.setdefault(tag, len(place)) for tag in tags]
        for number, category in zip(ids, categories, strict=False):
            if category:
                self._categories.setdefault(number, category)
        row = len(self._lengths)
        if source:
            self._sources[row] = (source, len(ids) if num_sourced is None else num_sourced)
        if scores:
            self._scores[row] = scores
        self._pending.extend(ids)
        self._lengths.append(len(ids))
        if len(self._pending) >= 65536:
            self._flush()

    def build(self) -> TagColumn:
        """The finished column."""
        self._flush()
        lengths = np.array(self._lengths, dtype=np.int64)
        categories = np.zeros(len(self._place), dtype=np.uint8)
        for number, category in self._categories.items():
            categories[number] = category
        offsets, ids = offsets_of(lengths), np.concatenate(self._ids)
        sources = scores = None
        if self._sources:
            sources = np.zeros(len(ids), dtype=np.uint8)
            for row, (source, count) in self._sources.items():
                sources[offsets[row] : offsets[row] + count] = source
        if self._scores:
            scores = np.full(len(ids), np.nan, dtype=np.float16)
            for row, values in self._scores.items():
                scores[offsets[row] : offsets[row] + len(values)] = values
        return TagColumn(tuple(self._place), offsets, ids, categories=categories, scores=scores, sources=sources)

    def _flush(self) -> None:
        self._ids.append(np.array(self._pending, dtype=np.int32))
        self._pending.clear()
