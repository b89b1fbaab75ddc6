"""Counts of people that contradict each other: 1girl beside 2girls, solo beside 1girl and 1boy."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.params import Params, param
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import normals
from ...dataset.table import Dataset
from ...dataset.words import counted
from ._lists import tag_list
from ._people import count_of, people_mask, people_per_row
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import RULE_SOURCE, drop_occurrences, rows_of

KINDS = ("girl", "boy", "other")
RULES = (
    "a smaller count of the same kind",
    "solo beside several people",
    "a count of people beside no humans",
)


@dataclass(frozen=True, kw_only=True)
class PeopleGuardParams(Params):
    """What is put right."""

    smaller_counts: bool = param(True, doc="Of 1girl and 2girls in one caption only the larger count stays")
    wrong_solo: bool = param(True, doc="solo goes where the other counts make two or more people")
    no_humans: str = param(
        "counts stay",
        doc="Where 'no humans' stands beside a count of people: the counts stay and it goes, or the other way round",
        choices=("counts stay", "no humans stays", "leave"),
    )
    missing: str = param(
        "",
        doc="Tags put at the front of captions that name no people at all, such as 1girl, solo; empty: only count them",
    )


def apply(dataset: Dataset, params: PeopleGuardParams, context: StepContext) -> Outcome:
    """Drops what contradicts; counts of people are what a trigger must not swallow."""
    tags = dataset.tags
    rule = _rules(tags, params)
    result, rules = drop_occurrences(tags, rule >= 0, rule, RULES)
    is_count = [count_of(name) is not None for name in normals(result.vocabulary)]
    has = np.zeros(len(result), dtype=bool)
    has[rows_of(result, np.flatnonzero(np.array(is_count or [False])[result.ids]))] = True
    bare = np.flatnonzero(~has)
    missing = tag_list(params.missing, what="missing")
    if missing and len(bare):
        column = result.with_vocabulary(missing)
        ids = np.array([column.id_of(tag) for tag in missing], dtype=np.int32)
        rows = np.repeat(bare, len(missing))
        if not bool(people_mask(missing).any()):
            # What is put in is no count, so a second run must not put it in again.
            rows, bare = _not_there(column, ids, bare)
        result = column.with_tags(rows, np.tile(ids, len(bare)), front=True, source=RULE_SOURCE)
        rules = (*rules, RuleCount(rule="no count of people", touched=len(bare), added=len(rows)))
    elif len(bare):
        note = f"{counted(len(bare), 'caption')} without; give 'missing' to put tags in"
        rules = (*rules, RuleCount(rule="no count of people", touched=0, note=note))
    return outcome(dataset, result, STEP.name, params, rules)


def _rules(tags: TagColumn, params: PeopleGuardParams) -> NDArray[np.int32]:
    """The rule by which each occurrence goes, -1 for those that stay."""
    names = normals(tags.vocabulary)
    counted = [count_of(name) for name in names] or [None]
    rows = tags.row_of_occurrence
    rule = np.full(len(tags.ids), -1, dtype=np.int32)
    some = np.zeros(len(tags), dtype=bool)
    for kind in KINDS:
        number = np.array([one[1] if one and one[0] == kind else 0 for one in counted], dtype=np.int32)
        places = np.flatnonzero(number[tags.ids] > 0)
        largest = np.zeros(len(tags), dtype=np.int32)
        np.maximum.at(largest, rows[places], number[tags.ids[places]])
        some |= largest > 0
        if params.smaller_counts:
            smaller = number[tags.ids[places]] < largest[rows[places]]
            rule[places[smaller]] = 0
    is_solo = np.array([name == "solo" for name in names] or [False])
    nobody = np.array([name in ("no humans", "zero pictured") for name in names] or [False])
    if params.wrong_solo:
        rule[is_solo[tags.ids] & (people_per_row(tags) >= 2)[rows]] = 1
    if params.no_humans == "counts stay":
        rule[nobody[tags.ids] & some[rows]] = 2
    elif params.no_humans == "no humans stays":
        empty = np.zeros(len(tags), dtype=bool)
        empty[rows[np.flatnonzero(nobody[tags.ids])]] = True
        is_count = np.array([one is not None for one in counted]) & ~nobody
        rule[is_count[tags.ids] & empty[rows]] = 2
    return rule


def _not_there(
    column: TagColumn, ids: NDArray[np.int32], bare: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    has = np.zeros(len(column), dtype=bool)
    for tag_id in ids.tolist():
        has[column.rows_with(tag_id)] = True
    left = bare[~has[bare]]
    return np.repeat(left, len(ids)), left


STEP = Step(
    name="people_guard",
    title="People-Count Guard",
    summary="Takes out counts of people that contradict each other, and finds captions that name none",
    source="Counts of people stay in the captions; danbooru's rules for solo and counts",
    params=PeopleGuardParams,
    apply=apply,
    main="missing",
)
