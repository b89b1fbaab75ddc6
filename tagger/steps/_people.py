"""How many people a caption names, from danbooru's and e621's counting tags."""

import re

import numpy as np
from numpy.typing import NDArray

from ...dataset.columns import TagColumn
from ...dataset.normal import normals

UNKNOWN = -1
_KINDS = ("girl", "boy", "other")
_COUNT = re.compile(r"(\d{1,3})\+?\s?(girl|boy|other)s?")
_MANY = re.compile(r"multiple (girl|boy|other)s")
_WHOLE = {"no humans": 0, "zero pictured": 0, "solo": 1, "duo": 2, "trio": 3, "group": 4}
"""Tags that say how many there are in all."""
_EXEMPT = {"solo focus", "male focus", "female focus", "everyone", "crowd", "people", "couple"}


def count_of(name: str) -> tuple[str, int] | None:
    """What a tag (in normal form) counts and how many: ``2girls`` is ("girl", 2), ``solo`` ("", 1); else None."""
    if name in _WHOLE:
        return "", _WHOLE[name]
    found = _COUNT.fullmatch(name)
    if found:
        return found.group(2), int(found.group(1))
    many = _MANY.fullmatch(name)
    return (many.group(1), 2) if many else None


def is_people_tag(name: str) -> bool:
    """Whether a tag (in normal form) is about how many people there are; such tags teach the count and stay."""
    return count_of(name) is not None or name in _EXEMPT


def people_mask(vocabulary: tuple[str, ...]) -> NDArray[np.bool_]:
    """Whether each tag of a vocabulary is about the number of people."""
    return np.array([is_people_tag(name) for name in normals(vocabulary)], dtype=bool)


def people_per_row(tags: TagColumn) -> NDArray[np.int32]:
    """Number of people that each caption names, int32 [rows]; ``UNKNOWN`` where it has no such tag.

    The largest number of each kind counts (``1girl, 2girls`` is two), kinds are added up (``1girl, 1boy`` is two);
    ``solo``, ``duo`` ... count only where there is nothing else.
    """
    rows = tags.row_of_occurrence
    counted = [count_of(name) for name in normals(tags.vocabulary)]
    total = np.zeros(len(tags), dtype=np.int32)
    seen = np.zeros(len(tags), dtype=bool)
    for kind in _KINDS:
        number = np.array([one[1] if one is not None and one[0] == kind else 0 for one in counted], dtype=np.int32)
        places = np.flatnonzero(number[tags.ids] > 0)
        largest = np.zeros(len(tags), dtype=np.int32)
        np.maximum.at(largest, rows[places], number[tags.ids[places]])
        total += largest
        seen |= largest > 0
    whole = np.array([one[1] if one is not None and not one[0] else UNKNOWN for one in counted], dtype=np.int32)
    places = np.flatnonzero(whole[tags.ids] >= 0)
    in_all = np.full(len(tags), UNKNOWN, dtype=np.int32)
    np.maximum.at(in_all, rows[places], whole[tags.ids[places]])
    return np.where(seen, total, in_all).astype(np.int32)
