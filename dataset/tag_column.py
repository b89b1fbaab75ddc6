"""Tags of a data set: interned, with category, score and source. Immutable; a change shares what stays the same."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ._arrays import Digest, offsets_of, runs

CATEGORIES = ("", "general", "character", "copyright", "artist", "meta", "species", "rating", "quality", "trigger")
"""What a tag is about; its place here is its number, 0 is not known."""

SOURCES = ("caption", "site", "tagger", "classifier", "rule", "hand")
"""Who put a tag on a picture; its place here is its number."""

_ROWS_AT_ONCE = 16384


class TagColumn:
    """Tags of every picture: a vocabulary and, per row, a run of ids into it.

    Attributes:
        vocabulary: Every tag once; ids are places in it. It may hold tags that no row uses any more.
        offsets: int64 [rows + 1]; row r owns ``ids[offsets[r]:offsets[r + 1]]``.
        ids: int32 [occurrences], all tags of all rows.
        categories: uint8 [vocabulary], place in ``CATEGORIES``.
        scores: float16 [occurrences], 0..1, nan where there is none; None until somebody sets them.
        sources: uint8 [occurrences], place in ``SOURCES``; None as long as all come from captions.
    """

    __slots__ = ("_places", "categories", "ids", "offsets", "scores", "sources", "vocabulary")

    def __init__(
        self,
        vocabulary: tuple[str, ...],
        offsets: NDArray[np.int64],
        ids: NDArray[np.int32],
        *,
        categories: NDArray[np.uint8] | None = None,
        scores: NDArray[np.float16] | None = None,
        sources: NDArray[np.uint8] | None = None,
    ) -> None:
        self.vocabulary = vocabulary
        self.offsets = offsets
        self.ids = ids
        self.categories = np.zeros(len(vocabulary), dtype=np.uint8) if categories is None else categories
        self.scores = scores
        self.sources = sources
        self._places: dict[str, int] | None = None
        if len(self.categories) != len(vocabulary) or any(
            column is not None and len(column) != len(ids) for column in (scores, sources)
        ):
            raise ValueError("categories belong to the vocabulary, scores and sources to the ids: one for each")
        for column in (offsets, ids, self.categories, scores, sources):
            if column is not None:
                column.setflags(write=False)

    @classmethod
    def from_rows(cls, rows: Iterable[Sequence[str]]) -> "TagColumn":
        """Interns lists of tags."""
        from .tag_builder import TagColumnBuilder

        builder = TagColumnBuilder()
        for row in rows:
            builder.append(row)
        return builder.build()

    @classmethod
    def concatenated(cls, parts: Sequence["TagColumn"]) -> "TagColumn":
        """Columns below one another; linear in their number, unlike :meth:`joined` again and again."""
        place: dict[str, int] = {}
        ids: list[NDArray[np.int32]] = [np.zeros(0, dtype=np.int32)]
        tables: list[NDArray[np.int32]] = []
        for part in parts:
            table = np.array([place.setdefault(tag, len(place)) for tag in part.vocabulary], dtype=np.int32)
            tables.append(table)
            ids.append(table[part.ids] if len(part.ids) else np.zeros(0, dtype=np.int32))
        categories = np.zeros(len(place), dtype=np.uint8)
        for part, table in zip(reversed(parts), reversed(tables), strict=True):
            known = np.flatnonzero(part.categories)
            categories[table[known]] = part.categories[known]
        lengths = np.concatenate([np.zeros(0, dtype=np.int64), *(part.lengths for part in parts)])
        scores = sources = None
        if any(part.scores is not None for part in parts):
            scores = np.concatenate([_scores_of(part) for part in parts])
        if any(part.sources is not None for part in parts):
            sources = np.concatenate([_sources_of(part) for part in parts])
        return cls(
            tuple(place),
            offsets_of(lengths),
            np.concatenate(ids),
            categories=categories,
            scores=scores,
            sources=sources,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Memory of the arrays in bytes, without the vocabulary's texts."""
        columns = (self.ids, self.offsets, self.categories, self.scores, self.sources)
        return sum(column.nbytes for column in columns if column is not None)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Number of tags of each row, int64 [rows]."""
        return np.diff(self.offsets)

    @property
    def row_of_occurrence(self) -> NDArray[np.int32]:
        """The row of each occurrence, int32 [occurrences]."""
        return np.repeat(np.arange(len(self), dtype=np.int32), self.lengths)

    def row(self, row: int) -> tuple[str, ...]:
        """The tags of one row in order."""
        if row < 0 or row >= len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return tuple(self.vocabulary[tag] for tag in self.ids[self.offsets[row] : self.offsets[row + 1]])

    def id_of(self, tag: str) -> int | None:
        """The id of a tag (as it is written), or None."""
        if self._places is None:
            self._places = {known: number for number, known in enumerate(self.vocabulary)}
        return self._places.get(tag)

    def rows_with(self, tag_id: int) -> NDArray[np.int64]:
        """The rows that hold a tag, ascending, each once: int64."""
        places = np.flatnonzero(self.ids == tag_id)
        return np.unique(np.searchsorted(self.offsets, places, side="right") - 1)

    def counts(self) -> NDArray[np.int64]:
        """Occurrences of each tag of the vocabulary, int64."""
        return np.bincount(self.ids, minlength=len(self.vocabulary)).astype(np.int64)

    # changes ---------------------------------------------------------------------------------------------------
    def take(self, rows: NDArray[np.int64]) -> "TagColumn":
        """The given rows in the given order, with the same vocabulary."""
        lengths = self.lengths[rows]
        return self._gathered(offsets_of(lengths), runs(self.offsets[:-1][rows], lengths))

    def keep(self, mask: NDArray[np.bool_]) -> "TagColumn":
        """Without the occurrences whose mask is False.

        Args:
            mask: bool [occurrences].
        """
        if len(mask) != len(self.ids):
            raise ValueError(f"a mask of {len(mask)} was given for {len(self.ids)} occurrences")
        if bool(mask.all()):
            return self
        kept = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(mask, dtype=np.int64)])
        return self._gathered(kept[self.offsets], mask)

    def reordered(self, order: NDArray[np.int64]) -> "TagColumn":
        """With the tags of each row in another order.

        Args:
            order: int64 [occurrences], a permutation that leaves every occurrence in its row.
        """
        rows = self.row_of_occurrence
        if len(order) != len(self.ids) or not np.array_equal(rows[order], rows):
            raise ValueError("the order must be a permutation that leaves every tag in its row")
        return self._gathered(self.offsets, order)

    def translated(
        self,
        table: NDArray[np.int32],
        vocabulary: tuple[str, ...],
        categories: NDArray[np.uint8] | None = None,
    ) -> "TagColumn":
        """With other tags: renamed, merged or dropped. A tag that a row then has twice stays at its first place.

        Args:
            table: int32 [old vocabulary], the new id of each old one; -1 drops it.
            vocabulary: The new tags.
            categories: uint8 [new vocabulary]; by default a new tag takes the category of the first old one that
                became it and has one.
        """
        if len(table) != len(self.vocabulary):
            raise ValueError(f"a table of {len(table)} was given for a vocabulary of {len(self.vocabulary)}")
        if categories is None:
            categories = self._carried_categories(table, len(vocabulary))
        used = np.flatnonzero(self.counts())
        targets = table[used]
        if np.array_equal(targets, used):  # tags were only written otherwise: the ids stay the same
            return self._with(vocabulary=vocabulary, categories=categories)
        result = self._with(vocabulary=vocabulary, categories=categories, ids=table.astype(np.int32)[self.ids])
        if bool((targets < 0).any()):
            result = result.keep(result.ids >= 0)
        return result.deduplicated()

    def deduplicated(self) -> "TagColumn":
        """Every tag once per row, at its first place."""
        mask = np.ones(len(self.ids), dtype=bool)
        size = len(self.vocabulary)
        for first in range(0, len(self), _ROWS_AT_ONCE):
            bounds = self.offsets[first : first + _ROWS_AT_ONCE + 1]
            start, end = int(bounds[0]), int(bounds[-1])
            rows = np.repeat(np.arange(len(bounds) - 1, dtype=np.int64), np.diff(bounds))
            keys = rows * size + self.ids[start:end]
            order = np.argsort(keys, kind="stable")
            again = np.flatnonzero(np.diff(keys[order]) == 0) + 1
            mask[start + order[again]] = False
        return self.keep(mask)

    def with_vocabulary(self, tags: Iterable[str], *, category: int = 0) -> "TagColumn":
        """With these tags in the vocabulary, where they are missing; no row changes.

        Args:
            tags: The tags; :meth:`id_of` then knows them all.
            category: Place in ``CATEGORIES`` of those that are new.
        """
        new = [tag for tag in dict.fromkeys(tags) if self.id_of(tag) is None]
        if not new:
            return self
        categories = np.concatenate([self.categories, np.full(len(new), category, dtype=np.uint8)])
        return self._with(vocabulary=(*self.vocabulary, *new), categories=categories)

    def with_front(self, tag_ids: int | NDArray[np.int32], *, source: int = 0) -> "TagColumn":
        """With a tag at the front of the rows; a row that has it already gets it moved there, not doubled.

        Args:
            tag_ids: One id for all rows, or int32 [rows] with -1 where nothing is put.
            source: Place in ``SOURCES`` of the tags that are new.
        """
        per_row = np.full(len(self), tag_ids, dtype=np.int32) if isinstance(tag_ids, int) else tag_ids
        if len(per_row) != len(self):
            raise ValueError(f"{len(per_row)} tags were given for {len(self)} rows")
        same = self.ids == np.repeat(per_row, self.lengths)
        has = np.unique(np.searchsorted(self.offsets, np.flatnonzero(same), side="right") - 1)
        moved = self
        if len(has):
            # A stable sort by (row, not the tag) moves the tag to the front and leaves the rest in its order.
            key = self.row_of_occurrence.astype(np.int64) * 2 + ~same
            moved = self.reordered(np.argsort(key, kind="stable"))
        wanted = per_row >= 0
        wanted[has] = False
        rows = np.flatnonzero(wanted)
        return moved.with_tags(rows, per_row[rows], front=True, source=source)

    def with_tags(
        self,
        rows: NDArray[np.int64],
        tag_ids: NDArray[np.int32],
        *,
        front: bool = False,
        scores: NDArray[np.float16] | None = None,
        source: int = 0,
    ) -> "TagColumn":
        """With more occurrences, whether or not a row has the tag already (see :meth:`deduplicated`).

        Args:
            rows: int64 [new], the row of each new occurrence; a row may come several times.
            tag_ids: int32 [new], in the order in which a row gets them.
            front: Before a row's tags; else after them.
            scores: float16 [new]; by default they have none.
            source: Place in ``SOURCES``.
        """
        if not len(rows):
            return self
        by_row = np.argsort(rows, kind="stable")
        added = np.bincount(rows, minlength=len(self)).astype(np.int64)
        lengths = self.lengths
        offsets = offsets_of(lengths + added)
        old_places = runs(offsets[:-1] + (added if front else 0), lengths)
        new_places = runs(offsets[:-1] + (0 if front else lengths), added)
        ids = np.empty(len(self.ids) + len(rows), dtype=np.int32)
        ids[old_places], ids[new_places] = self.ids, tag_ids[by_row]
        new_scores = new_sources = None
        if self.scores is not None or scores is not None:
            new_scores = np.full(len(ids), np.nan, dtype=np.float16)
            if self.scores is not None:
                new_scores[old_places] = self.scores
            if scores is not None:
                new_scores[new_places] = scores[by_row]
        if self.sources is not None or source:
            new_sources = np.zeros(len(ids), dtype=np.uint8)
            if self.sources is not None:
                new_sources[old_places] = self.sources
            new_sources[new_places] = source
        return TagColumn(
            self.vocabulary, offsets, ids, categories=self.categories, scores=new_scores, sources=new_sources
        )._sharing_places(self)

    def with_categories(self, categories: Mapping[str, str | int]) -> "TagColumn":
        """With the category of some tags set, by name or number; tags that are not in the vocabulary are left out.

        Raises:
            ValueError: A category is not one of ``CATEGORIES``.
        """
        changed = self.categories.copy()
        for tag, category in categories.items():
            number = CATEGORIES.index(category) if isinstance(category, str) else category
            if not 0 <= number < len(CATEGORIES):
                raise ValueError(f"the category {category} is none of {CATEGORIES}")
            place = self.id_of(tag)
            if place is not None:
                changed[place] = number
        return self._with(categories=changed)

    def with_scores(self, scores: NDArray[np.float16] | None, sources: NDArray[np.uint8] | None = None) -> "TagColumn":
        """With scores [occurrences], and sources [occurrences] where they are given."""
        return TagColumn(
            self.vocabulary,
            self.offsets,
            self.ids,
            categories=self.categories,
            scores=scores,
            sources=self.sources if sources is None else sources,
        )._sharing_places(self)

    def replaced(self, rows: Mapping[int, Sequence[str]], *, source: int = 0) -> "TagColumn":
        """A copy in which some rows have other tags; a tag that its row had keeps its score and source.

        Args:
            rows: New tags by row.
            source: Place in ``SOURCES`` of the tags that are new in their row.
        """
        if not rows:
            return self
        changed = np.array(sorted(rows), dtype=np.int64)
        column = self.with_vocabulary(tag for row in changed for tag in rows[int(row)])
        new_ids: list[int] = []
        origins: list[int] = []
        for row in changed.tolist():
            start = int(self.offsets[row])
            had = {int(tag): start + place for place, tag in enumerate(self.ids[start : self.offsets[row + 1]])}
            for tag in rows[row]:
                number = column.id_of(tag)
                new_ids.append(-1 if number is None else number)
                origins.append(had.get(new_ids[-1], -1))
        others = np.ones(len(self), dtype=bool)
        others[changed] = False
        emptied = column.keep(np.repeat(others, self.lengths))
        counts = np.array([len(rows[row]) for row in changed.tolist()], dtype=np.int64)
        result = emptied.with_tags(np.repeat(changed, counts), np.array(new_ids, dtype=np.int32), source=source)
        known = np.array(origins, dtype=np.int64)
        places = runs(result.offsets[:-1][changed], counts)[known >= 0]
        return result._annotated_from(self, places, known[known >= 0])

    def joined(self, other: "TagColumn") -> "TagColumn":
        """This column with another one below it."""
        return TagColumn.concatenated([self, other])

    def update_digest(self, digest: Digest) -> None:
        """Adds the captions to a hash, whatever the order of the vocabulary and the unused tags in it."""
        used, rank = self._ranked()
        digest.update(self.offsets.tobytes())
        for start in range(0, len(self.ids), 1 << 20):
            digest.update(rank[self.ids[start : start + (1 << 20)]].tobytes())
        for tag in used.tolist():
            digest.update(self.vocabulary[tag].encode("utf-8", "surrogatepass") + b"\0")

    def update_annotations_digest(self, digest: Digest) -> None:
        """Adds categories of the tags in use, scores and sources to a hash, where there are any."""
        used, _ = self._ranked()
        categories = self.categories[used]
        if bool(categories.any()):
            digest.update(b"categories" + categories.tobytes())
        for name, column in ((b"scores", self.scores), (b"sources", self.sources)):
            if column is not None:
                digest.update(name + column.tobytes())

    # parts -----------------------------------------------------------------------------------------------------
    def _ranked(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """Ids in use by their first occurrence, and the place of each id in that order."""
        first = np.full(len(self.vocabulary), len(self.ids), dtype=np.int64)
        places = np.arange(len(self.ids) - 1, -1, -1, dtype=np.int64)
        first[self.ids[::-1]] = places  # of several writes to one place the last counts: the first occurrence
        used = np.flatnonzero(first < len(self.ids))
        used = used[np.argsort(first[used], kind="stable")]
        rank = np.zeros(len(self.vocabulary), dtype=np.int32)
        rank[used] = np.arange(len(used), dtype=np.int32)
        return used, rank

    def _carried_categories(self, table: NDArray[np.int32], size: int) -> NDArray[np.uint8]:
        carried = np.zeros(size, dtype=np.uint8)
        known = np.flatnonzero((self.categories > 0) & (table >= 0))[::-1]
        carried[table[known]] = self.categories[known]
        return carried

    def _gathered(self, offsets: NDArray[np.int64], which: NDArray[np.int64] | NDArray[np.bool_]) -> "TagColumn":
        return TagColumn(
            self.vocabulary,
            offsets,
            self.ids[which],
            categories=self.categories,
            scores=None if self.scores is None else self.scores[which],
            sources=None if self.sources is None else self.sources[which],
        )._sharing_places(self)

    def _with(
        self,
        *,
        vocabulary: tuple[str, ...] | None = None,
        categories: NDArray[np.uint8] | None = None,
        ids: NDArray[np.int32] | None = None,
    ) -> "TagColumn":
        return TagColumn(
            self.vocabulary if vocabulary is None else vocabulary,
            self.offsets,
            self.ids if ids is None else ids,
            categories=self.categories if categories is None else categories,
            scores=self.scores,
            sources=self.sources,
        )._sharing_places(self)

    def _sharing_places(self, other: "TagColumn") -> "TagColumn":
        if self.vocabulary is other.vocabulary:
            self._places = other._places
        return self

    def _annotated_from(self, other: "TagColumn", places: NDArray[np.int64], origins: NDArray[np.int64]) -> "TagColumn":
        """With scores and sources at some places taken from places of another column."""
        scores, sources = self.scores, self.sources
        if other.scores is not None and scores is not None:
            scores = scores.copy()
            scores[places] = other.scores[origins]
        if sources is not None:
            sources = sources.copy()
            sources[places] = 0 if other.sources is None else other.sources[origins]
        return self.with_scores(scores, sources)


def _scores_of(part: TagColumn) -> NDArray[np.float16]:
    return np.full(len(part.ids), np.nan, dtype=np.float16) if part.scores is None else part.scores


def _sources_of(part: TagColumn) -> NDArray[np.uint8]:
    return np.zeros(len(part.ids), dtype=np.uint8) if part.sources is None else part.sources
