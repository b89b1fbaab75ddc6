"""Trigger words of a data set: which tags they are, on which pictures they are missing, and which share a word."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .captions import split_tags
from .columns import CATEGORIES
from .normal import normal, places_by_normal

if TYPE_CHECKING:
    from .table import Dataset

COUNTS = re.compile(r"^(\d\+?(girl|boy|other)s?|multiple (girls|boys)|solo|no humans|couple)$")
"""People counts (in normal form): they belong on every picture, and are no trigger."""
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W\d_A-Za-z]+")
_LEVELS = re.compile(r"[~/]")
_MIN_WORD_CHARS = 3
_MIN_PREFIX_CHARS = 4
_GUESS_SHARE = 0.6
_CONCEPT_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class ClassTriggers:
    """The trigger words of one folder.

    Attributes:
        subset: Place in ``Dataset.subsets``.
        words: Its triggers, in the spelling of the captions where they are there.
        from_prefix: They stand in the caption prefix, so every caption has them at its front.
        any_of: One of the words is enough; else all of them belong on every picture.
        origin: How they were found, for a report.
    """

    subset: int
    words: tuple[str, ...]
    from_prefix: bool = False
    any_of: bool = False
    origin: str = ""


@dataclass(frozen=True, kw_only=True)
class SharedWord:
    """A word, or a beginning, that several triggers have in common."""

    word: str
    triggers: tuple[str, ...]


def class_triggers(dataset: "Dataset", given: str = "") -> list[ClassTriggers]:
    """The triggers of every training folder.

    Args:
        dataset: The table.
        given: Triggers separated by commas, any of which a picture may have; when it is empty they are taken from
            tags of the category trigger, the caption prefix, the folder's text where half of its captions hold it,
            or the first tag where most captions share it.
    """
    named = tuple(split_tags(given.replace("\n", ",")))
    found = []
    for number, subset in enumerate(dataset.subsets):
        rows = dataset.subset_index == number
        if subset.is_reg or not rows.any():
            continue
        if named:
            found.append(ClassTriggers(subset=number, words=named, any_of=True, origin="as given"))
        elif guessed := _guess(dataset, number, rows):
            found.append(guessed)
    return found


def rows_with_any(dataset: "Dataset", words: Iterable[str]) -> NDArray[np.bool_]:
    """Whether a picture has one of the tags, compared in their normal form; bool [pictures]."""
    return _rows_of(dataset, ids_of(dataset, words))


def ids_of(dataset: "Dataset", words: Iterable[str]) -> NDArray[np.int64]:
    """Vocabulary ids of all spellings of some tags, int64."""
    places = places_by_normal(dataset.tags.vocabulary)
    return np.array([number for word in words for number in places.get(normal(word), ())], dtype=np.int64)


def missing_and_late(dataset: "Dataset", triggers: ClassTriggers) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pictures of a folder without their trigger, and those that have it, but not at the front; places, ascending."""
    in_class = dataset.subset_index == triggers.subset
    if triggers.from_prefix:
        none = np.zeros(0, dtype=np.int64)
        return none, none
    words = [triggers.words] if triggers.any_of else [(word,) for word in triggers.words]
    has = np.ones(len(dataset), dtype=bool)
    for alternatives in words:
        has &= rows_with_any(dataset, alternatives)
    allowed = max(1, dataset.subsets[triggers.subset].keep_tokens, 1 if triggers.any_of else len(triggers.words))
    at_front = rows_with_front(dataset, ids_of(dataset, triggers.words), allowed)
    return np.flatnonzero(in_class & ~has), np.flatnonzero(in_class & has & ~at_front)


def rows_with_front(dataset: "Dataset", ids: NDArray[np.int64], places: int) -> NDArray[np.bool_]:
    """Whether one of the tags stands within the first places of a caption; bool [pictures]."""
    wanted = np.zeros(len(dataset.tags.vocabulary) + 1, dtype=bool)
    wanted[ids] = True
    result = np.zeros(len(dataset), dtype=bool)
    starts, lengths = dataset.tags.offsets[:-1], dataset.tags.lengths
    for place in range(places):
        rows = np.flatnonzero(lengths > place)
        result[rows] |= wanted[dataset.tags.ids[starts[rows] + place]]
    return result


def shared_words(triggers: Iterable[str]) -> list[SharedWord]:
    """Words and beginnings that triggers share: such triggers blend (OyamaMahiro, OyamaMihari)."""
    names = sorted(set(triggers), key=lambda name: (normal(name), name))
    by_word: dict[str, set[str]] = {}
    for name in names:
        for word in words_of(name):
            by_word.setdefault(word, set()).add(name)
    for left, right in combinations(names, 2):
        prefix = _common_prefix(normal(left), normal(right))
        known = any(word.startswith(prefix) or prefix.startswith(word) for word in words_of(left) & words_of(right))
        if len(prefix) >= _MIN_PREFIX_CHARS and not known:
            by_word.setdefault(prefix, set()).update((left, right))
    return [
        SharedWord(word=word, triggers=tuple(sorted(sharing)))
        for word, sharing in sorted(by_word.items())
        if len({normal(name) for name in sharing}) > 1
    ]


def words_of(name: str) -> set[str]:
    """The words of a trigger, also of one written together (``OyamaMahiro``), in lower case."""
    return {word.casefold() for word in _WORD.findall(name) if len(word) >= _MIN_WORD_CHARS}


def concept_words(concept: str) -> tuple[str, ...]:
    """The names in a folder's text: the last level of ``characters~fanart~A+B`` gives A and B."""
    last = _LEVELS.split(concept)[-1]
    return tuple(word.strip() for word in last.split("+") if word.strip())


def _guess(dataset: "Dataset", number: int, rows: NDArray[np.bool_]) -> ClassTriggers | None:
    subset = dataset.subsets[number]
    prefix = split_tags(subset.caption_prefix)
    if prefix:
        return ClassTriggers(subset=number, words=(prefix[0],), from_prefix=True, origin="the caption prefix")
    marked = _marked(dataset, rows)
    if marked:
        return ClassTriggers(subset=number, words=marked, any_of=True, origin="tags of the category trigger")
    total = int(rows.sum())
    words = concept_words(subset.concept)
    if words and all(int((rows_with_any(dataset, [word]) & rows).sum()) >= _CONCEPT_SHARE * total for word in words):
        return ClassTriggers(subset=number, words=words, origin="the folder's name")
    used = rows & (dataset.tags.lengths > 0)
    firsts = dataset.tags.ids[dataset.tags.offsets[:-1][used]]
    if not len(firsts):
        return None
    counts = np.bincount(firsts)
    best = int(np.argmax(counts))
    name = dataset.tags.vocabulary[best]
    if counts[best] < _GUESS_SHARE * total or COUNTS.match(normal(name)):
        return None
    return ClassTriggers(subset=number, words=(name,), origin="the first tag of most captions")


def _marked(dataset: "Dataset", rows: NDArray[np.bool_]) -> tuple[str, ...]:
    ids = np.flatnonzero(dataset.tags.categories == CATEGORIES.index("trigger"))
    return tuple(dataset.tags.vocabulary[tag] for tag in ids if (_rows_of(dataset, np.array([tag])) & rows).any())


def _rows_of(dataset: "Dataset", ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    result = np.zeros(len(dataset), dtype=bool)
    for tag in ids.tolist():
        result[dataset.tags.rows_with(tag)] = True
    return result


def _common_prefix(left: str, right: str) -> str:
    if left == right:
        return ""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return left[:place].strip()
    return min(left, right, key=len)


def all_trigger_words(found: Sequence[ClassTriggers], concepts: Iterable[str]) -> tuple[str, ...]:
    """Triggers and the names in folder texts, each once: what the lint for shared words looks at."""
    names = [word for entry in found for word in entry.words]
    names += [word for concept in concepts for word in concept_words(concept)]
    return tuple({normal(name): name for name in reversed(names)}.values())
