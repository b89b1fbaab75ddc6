"""Putting a tagger's tags into captions that may hold some already."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import unknown_name
from ..dataset.columns import CATEGORIES, SOURCES, TagColumn
from ..dataset.diff import RuleCount
from ..dataset.normal import normals
from ..dataset.table import CAPTION_FOLDER, CAPTION_NONE, Dataset
from .picking import Picked, PickParams, by_name, written_by
from .scores import SparseScores, Vocabulary

MODES: Mapping[str, str] = {
    "overwrite": "the tagger's tags take the place of the caption",
    "append": "site or hand tags first, then those of the tagger that are not there yet",
    "prepend": "the tagger's tags first, then what else the caption held",
    "only missing": "pictures without a caption of their own are tagged, the others are left alone",
}
"""What may be done with existing captions."""

SOURCE_TAGGER = SOURCES.index("tagger")
_COLUMN_CATEGORIES: Mapping[str, str] = {"year": "meta", "model": "meta", "style": "artist", "lore": "meta"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Tags:
    """What to write: the picked tags of some pictures and everything the tagger said of them.

    Attributes:
        rows: Pictures, int64, ascending.
        picked: Their tags.
        scores: Their scores.
        vocabulary: What both are of.
    """

    rows: NDArray[np.int64]
    picked: Picked
    scores: SparseScores
    vocabulary: Vocabulary


def rows_for(dataset: Dataset, mode: str) -> NDArray[np.int64]:
    """The pictures a mode tags, int64.

    A caption that is only the words of its folder is missing, as kohya takes it; so is one without any tag. One that
    was tagged before is not, nor one that a site or a metadata file says.

    Raises:
        UnknownNameError: No such mode.
    """
    if mode not in MODES:
        raise unknown_name("mode", mode, MODES)
    if mode != "only missing":
        return np.arange(len(dataset), dtype=np.int64)
    tags = dataset.tags
    tagged = np.zeros(len(dataset), dtype=bool)
    if tags.sources is not None:
        tagged[tags.row_of_occurrence[tags.sources == SOURCE_TAGGER]] = True
    of_folder = np.isin(dataset.caption_source, (CAPTION_NONE, CAPTION_FOLDER))
    return np.flatnonzero((tags.lengths == 0) | (of_folder & ~tagged))


def with_tagger_tags(column: TagColumn, tags: Tags, params: PickParams, mode: str) -> tuple[TagColumn, list[RuleCount]]:
    """A column with the tagger's tags in it, and how many of each category were added.

    Two spellings of a tag are the same one (see `dataset.normal`); doing it twice changes nothing. What stays of the
    old captions gets the tagger's score where it has none, so that a score can choose between tags of a site.

    Args:
        column: The captions.
        tags: What the tagger says.
        params: How its tags are written.
        mode: One of `MODES`; ``only missing`` leaves the choice of pictures to `rows_for`.
    """
    names = [written_by(name, params) for name in tags.vocabulary.names]
    used = np.flatnonzero(np.bincount(tags.picked.ids, minlength=len(names)))
    column = column.with_vocabulary([names[place] for place in used.tolist()])
    categories = _categories(column, tags.vocabulary)
    canonical = _canonical(column.vocabulary)
    table = np.full(len(names), -1, dtype=np.int32)
    table[used] = np.array([column.id_of(names[place]) for place in used.tolist()], dtype=np.int32)
    rows = np.repeat(tags.rows, np.diff(tags.picked.offsets))
    ids, values = table[tags.picked.ids], tags.picked.values
    once = _first_of_each(rows * len(column.vocabulary) + canonical[ids])
    rows, ids, values = rows[once], ids[once], values[once]

    old_keys = column.row_of_occurrence.astype(np.int64) * len(column.vocabulary) + canonical[column.ids]
    new_keys = rows * len(column.vocabulary) + canonical[ids]
    removed = np.zeros(0, dtype=np.int32)
    if mode == "overwrite":
        chosen = np.zeros(len(column), dtype=bool)
        chosen[tags.rows] = True
        keep = ~chosen[column.row_of_occurrence]
        removed = column.row_of_occurrence[~keep & ~_among(old_keys, new_keys)]
        column = column.keep(keep)
    else:
        column = _scored(column, tags)
        if mode == "prepend":
            column = column.keep(~_among(old_keys, new_keys))
        else:
            fresh = ~_among(new_keys, old_keys)
            rows, ids, values = rows[fresh], ids[fresh], values[fresh]
    result = column.with_tags(
        rows, ids, front=mode == "prepend", scores=values.astype(np.float16), source=SOURCE_TAGGER
    )
    result = result.with_categories(categories)
    return result, _counts(rows, ids, result, removed)


def column_category(word: str) -> int:
    """The number of a tagger's category in a data set; 0 for those a data set does not know."""
    word = _COLUMN_CATEGORIES.get(word, "general" if word.startswith("category ") else word)
    return CATEGORIES.index(word) if word in CATEGORIES else 0


def _categories(column: TagColumn, vocabulary: Vocabulary) -> dict[str, str | int]:
    """Categories of tags that have none: the tagger's."""
    places = by_name(vocabulary)
    found: dict[str, str | int] = {}
    unknown = np.flatnonzero(column.categories == 0).tolist()
    spelled = normals(column.vocabulary)
    for number in unknown:
        place = places.get(spelled[number])
        if place is not None:
            found[column.vocabulary[number]] = column_category(vocabulary.categories[place])
    return found


def _canonical(vocabulary: tuple[str, ...]) -> NDArray[np.int64]:
    """One number for all spellings of a tag, int64 [vocabulary]."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(name, len(numbers)) for name in normals(vocabulary)], dtype=np.int64)


def _among(sought: NDArray[np.int64], keys: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each of the sought is one of the keys; quicker than hashing, as both are nearly sorted."""
    if not len(keys):
        return np.zeros(len(sought), dtype=bool)
    ordered = np.sort(keys, kind="stable")
    found = np.minimum(np.searchsorted(ordered, sought), len(ordered) - 1)
    same: NDArray[np.bool_] = ordered[found] == sought
    return same


def _distinct(ascending: NDArray[np.int64] | NDArray[np.int32]) -> int:
    """Number of different values."""
    return int(np.count_nonzero(np.diff(ascending))) + 1 if len(ascending) else 0


def _first_of_each(keys: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of the first occurrence of each key, ascending."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    again = np.concatenate([[False], ordered[1:] == ordered[:-1]]) if len(keys) else np.zeros(0, dtype=bool)
    return np.sort(order[~again])


def _scored(column: TagColumn, tags: Tags) -> TagColumn:
    """The column with the tagger's score at every occurrence that has none and that the tagger can judge."""
    places = by_name(tags.vocabulary)
    judged = np.array([places.get(name, -1) for name in normals(column.vocabulary)], dtype=np.int64)
    position = np.full(len(column), -1, dtype=np.int64)
    position[tags.rows] = np.arange(len(tags.rows))
    at_row, at_place = position[column.row_of_occurrence], judged[column.ids]
    scores = column.scores
    wanted = (at_row >= 0) & (at_place >= 0)
    if scores is not None:
        wanted &= np.isnan(scores)
    if not bool(wanted.any()):
        return column
    size = len(tags.vocabulary)
    keys = tags.scores.rows().astype(np.int64) * size + tags.scores.ids
    sought = at_row[wanted] * size + at_place[wanted]
    found = np.minimum(np.searchsorted(keys, sought), max(len(keys) - 1, 0))
    values = np.zeros(len(sought), dtype=np.float32)
    if len(keys):
        hit = keys[found] == sought
        values[hit] = tags.scores.values[found[hit]]
    changed = np.full(len(column.ids), np.nan, dtype=np.float16) if scores is None else scores.copy()
    changed[wanted] = values
    return column.with_scores(changed)


def _counts(
    rows: NDArray[np.int64], ids: NDArray[np.int32], column: TagColumn, removed: NDArray[np.int32]
) -> list[RuleCount]:
    """Added tags per category."""
    of_tag = column.categories[ids]
    counts = [
        RuleCount(
            rule=f"{CATEGORIES[number] or 'other'} tags",
            touched=_distinct(rows[of_tag == number]),
            added=int((of_tag == number).sum()),
        )
        for number in np.flatnonzero(np.bincount(of_tag)).tolist()
    ]
    if len(removed):
        counts.append(RuleCount(rule="tags the captions held before", touched=_distinct(removed), removed=len(removed)))
    return counts
