"""Several taggers together: each one's scores put on one scale by its own thresholds, then combined."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError, unknown_name
from ..dataset.normal import normal, normals
from .scores import FLOOR, SparseScores, Vocabulary

CALIBRATED_THRESHOLD = 0.5
"""Where every model's own threshold lies after calibration."""
_EDGE = 1e-6

COMBINE: Mapping[str, str] = {
    "mean": "mean of the models that know the tag",
    "max": "the surest model decides",
    "vote": "share of the models that know the tag and see it",
}
"""How the calibrated scores of several models become one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Member:
    """One model's word on the same pictures as the others'.

    Attributes:
        name: Of the model.
        scores: Of the pictures.
        vocabulary: Its tags.
        weight: In the mean and the vote.
    """

    name: str
    scores: SparseScores
    vocabulary: Vocabulary
    weight: float = 1.0


def member_lines(text: str) -> list[tuple[str, float]]:
    """Model names with their weights as typed: one a line, ``name`` or ``name = 0.5``.

    Raises:
        InputError: No name, one given twice, or a weight that is none.
    """
    found: dict[str, float] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, sign, number = (part.strip() for part in line.partition("="))
        try:
            weight = float(number) if sign else 1.0
        except ValueError as cause:
            raise InputError(f"{line!r} must be a tagger's name or read like 'name = 0.5'") from cause
        if not name or not 0.0 < weight <= 1000.0:
            raise InputError(f"{line!r} must be a tagger's name or read like 'name = 0.5', with a weight above 0")
        if name in found:
            raise InputError(f"the tagger {name!r} is given twice; name each once, with a weight where it counts more")
        found[name] = weight
    if not found:
        raise InputError("no tagger is named; write the names of two or more, one a line")
    return list(found.items())


def calibrated(scores: NDArray[np.float32], limits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scores shifted so that a threshold becomes 0.5: sigmoid(logit(s) - logit(t)).

    Args:
        scores: 0..1.
        limits: The model's threshold for each of them.
    """
    odds = np.log(np.clip(scores, _EDGE, 1 - _EDGE).astype(np.float64))
    odds -= np.log1p(-np.clip(scores, _EDGE, 1 - _EDGE).astype(np.float64))
    limit = np.clip(limits, _EDGE, 1 - _EDGE).astype(np.float64)
    shifted: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-(odds - np.log(limit) + np.log1p(-limit))))).astype(np.float32)
    return shifted


def combine(
    members: Sequence[Member], how: str, aliases: Mapping[str, str] | None = None
) -> tuple[SparseScores, Vocabulary]:
    """One table of scores out of several models', over the union of their tags; every threshold is 0.5 then.

    Tags are the same where their names compare equal, whatever the spelling, or where ``aliases`` says so; of several
    that one model has for the same thing its surest counts, so that each model has one voice on it. Ratings are
    combined among ratings. A score below the floor counts as 0.

    Args:
        members: The models, of the same pictures.
        how: One of `COMBINE`.
        aliases: Normal form of a tag to the tag it is counted as.

    Raises:
        UnknownNameError: No such way.
        InputError: No member.
    """
    if how not in COMBINE:
        raise unknown_name("way to combine", how, COMBINE)
    if not members:
        raise InputError("an ensemble needs at least one tagger")
    vocabulary, tables = _union([member.vocabulary for member in members], aliases or {})
    size = len(vocabulary)
    known = np.zeros(size, dtype=np.float64)
    keys, values = [], []
    for member, table in zip(members, tables, strict=True):
        weight = 1.0 if how == "max" else member.weight
        known[np.unique(table[table >= 0])] += weight
        limits = _limits(member.vocabulary)[member.scores.ids]
        shifted = calibrated(member.scores.values, limits).astype(np.float64)
        if how == "vote":
            shifted = (shifted >= CALIBRATED_THRESHOLD).astype(np.float64)
        key = member.scores.rows().astype(np.int64) * size + table[member.scores.ids]
        if len(np.unique(table)) < len(table):
            key, shifted = _each_once(key, shifted, np.maximum)
        keys.append(key)
        values.append(shifted * weight)
    key, value = _each_once(np.concatenate(keys), np.concatenate(values), np.maximum if how == "max" else np.add)
    ids = (key % size).astype(np.int32)
    if how != "max":
        value = value / known[ids]
    return _table(key // size, ids, value.astype(np.float32), len(members[0].scores)), vocabulary


def _each_once(
    key: NDArray[np.int64], value: NDArray[np.float64], of_several: np.ufunc
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Each key once, ascending, with what is made of its values."""
    if not len(key):
        return key, value
    order = np.argsort(key, kind="stable")
    key, value = key[order], value[order]
    firsts = np.flatnonzero(np.concatenate([[True], np.diff(key) > 0]))
    return key[firsts], of_several.reduceat(value, firsts)


def _table(rows: NDArray[np.int64], ids: NDArray[np.int32], values: NDArray[np.float32], num_rows: int) -> SparseScores:
    kept = values >= np.float32(FLOOR)
    lengths = np.bincount(rows[kept], minlength=num_rows).astype(np.int64)
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    return SparseScores(offsets=offsets, ids=ids[kept], values=values[kept])


def _limits(vocabulary: Vocabulary) -> NDArray[np.float32]:
    """The model's own threshold of each tag; the middle for those of which only the strongest counts."""
    limits = vocabulary.limits()
    limits[[word in vocabulary.argmax for word in vocabulary.categories]] = CALIBRATED_THRESHOLD
    return limits


def _union(
    vocabularies: Sequence[Vocabulary], aliases: Mapping[str, str]
) -> tuple[Vocabulary, list[NDArray[np.int64]]]:
    """All tags once, and per vocabulary the place of each of its tags in it.

    A category is the first that a model gives a tag; ratings are kept apart, as ``general`` is also a tag's name.
    """
    places: dict[tuple[str, str], int] = {}
    names: list[str] = []
    categories: list[str] = []
    tables = []
    for vocabulary in vocabularies:
        table = np.zeros(len(vocabulary), dtype=np.int64)
        triples = zip(normals(vocabulary.names), vocabulary.names, vocabulary.categories, strict=True)
        for number, (plain, name, word) in enumerate(triples):
            apart = word if word in vocabulary.argmax else ""
            if not apart and plain in aliases:
                name = aliases[plain]
                plain = normal(name)
            place = places.setdefault((apart, plain), len(places))
            if place == len(names):
                names.append(name)
                categories.append(word)
            table[number] = place
        tables.append(table)
    argmax = tuple(dict.fromkeys(word for vocabulary in vocabularies for word in vocabulary.argmax))
    thresholds = dict.fromkeys({*categories, "general"}, CALIBRATED_THRESHOLD)
    return Vocabulary(names=tuple(names), categories=tuple(categories), thresholds=thresholds, argmax=argmax), tables
