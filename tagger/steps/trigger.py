"""The trigger at the front of every caption, and tags that a whole data set shares."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ...core.errors import FormatError, InputError
from ...core.params import Params, param
from ...dataset.columns import CATEGORIES, TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import matched_nothing, normal, places_by_normal
from ...dataset.table import Dataset
from ._core import folder_rule
from ._lists import checked_tag, content_lines, tag_list
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import RULE_SOURCE, TRIGGER, rows_of


@dataclass(frozen=True, kw_only=True)
class TriggerParams(Params):
    """What is put into the captions."""

    trigger: str = param(
        "",
        doc="The trigger, one tag or several separated by commas, put first. Empty: the text of the folder's name "
        "(10_kayoko gives kayoko)",
    )
    by_folder: str = param(
        "",
        doc="Other triggers for some folders, one to a line: 'OyamaMah*: mahiro'. The first line that fits counts",
        multiline=True,
    )
    fixed: str = param("", doc="Tags put behind the trigger of every caption, such as a type ('fanart') or 'by artist'")
    at_end: str = param("", doc="Tags put at the end of every caption", advanced=True)
    use_folder_name: bool = param(True, doc="Where no trigger is given, take the text of the kohya folder's name")
    skip_reg: bool = param(True, doc="Leave captions of regularisation pictures alone")
    keep_at_front: bool = param(
        False,
        doc="Make the folders keep the trigger at the front when captions are shuffled (kohya's keep_tokens), and "
        "shuffle the rest",
    )


def apply(dataset: Dataset, params: TriggerParams, context: StepContext) -> Outcome:
    """Puts the tags in; one that a caption has already is moved, not doubled."""
    heads, unmatched = _heads(dataset, params)
    fixed = tag_list(params.fixed, what="fixed")
    tail = tag_list(params.at_end, what="at_end")
    if not any(heads) and not fixed and not tail:
        raise InputError(
            "there is no trigger: none is given and no folder's name holds one (10_name); write the trigger"
        )
    wanted = np.ones(len(dataset), dtype=bool)
    if params.skip_reg:
        wanted &= ~dataset.is_reg
    tags = dataset.tags
    rules: list[RuleCount] = []
    for tag in reversed(fixed):
        tags, rules = _put_first(tags, tag, wanted, rules, category=0)
    for tag in dict.fromkeys(tag for head in heads for tag in reversed(head)):
        of_subset = np.array([tag in head for head in heads], dtype=bool)
        tags, rules = _put_first(tags, tag, wanted & of_subset[dataset.subset_index], rules, category=TRIGGER)
    for tag in tail:
        tags, rules = _put_last(tags, tag, wanted, rules)
    result = dataset
    if params.keep_at_front:
        result = _keeping(dataset, [len(head) for head in heads], skip_reg=params.skip_reg)
    return outcome(result, tags, STEP.name, params, rules, unmatched)


def _heads(dataset: Dataset, params: TriggerParams) -> tuple[list[tuple[str, ...]], tuple[str, ...]]:
    """The triggers of each subset, and lines that fit no folder."""
    given = tag_list(params.trigger, what="trigger")
    by_folder: list[tuple[str, str]] = []
    for number, line in content_lines(params.by_folder):
        pattern, colon, text = line.partition(":")
        if not colon or not pattern.strip() or not text.strip():
            raise FormatError(f"by_folder, line {number}: {line[:60]!r} is not  folder: trigger")
        by_folder.append((pattern.strip(), text.strip()))
    heads: list[tuple[str, ...]] = []
    used: set[str] = set()
    names = [subset.concept or subset.folder.name for subset in dataset.subsets]
    for subset, name in zip(dataset.subsets, names, strict=True):
        own = [rule for rule in by_folder if folder_rule([rule], name) is not None]
        concept = " ".join(subset.concept.split())
        if own:
            used.add(own[0][0])
            heads.append(tag_list(own[0][1], what="by_folder"))
        elif given or not params.use_folder_name or not concept:
            heads.append(given)
        else:
            heads.append((checked_tag(concept, "folder"),))
    missing = [pattern for pattern, _ in by_folder if pattern not in used]
    return heads, tuple(matched_nothing(pattern, names, what="folder") for pattern in missing)


def _put_first(
    tags: TagColumn, tag: str, wanted: NDArray[np.bool_], rules: list[RuleCount], *, category: int
) -> tuple[TagColumn, list[RuleCount]]:
    column, spellings = _with_tag(tags, tag, category)
    tag_id = column.id_of(tag)
    places = np.flatnonzero(np.isin(column.ids, spellings))
    rows = rows_of(column, places)
    places, rows = places[wanted[rows]], rows[wanted[rows]]
    first = np.zeros(len(column), dtype=bool)
    first[rows[column.offsets[rows] == places]] = True
    has = np.zeros(len(column), dtype=bool)
    has[rows] = True
    again = places[column.offsets[rows] != places]  # repetitions behind the front
    drop = np.zeros(len(column.ids), dtype=bool)
    drop[again] = True
    slim = column.keep(~drop)
    new = np.flatnonzero(wanted & ~first)
    result = slim.with_tags(new, np.full(len(new), tag_id, dtype=np.int32), front=True, source=RULE_SOURCE)
    moved = int(np.count_nonzero(has & ~first & wanted))
    added = len(new) - moved
    note = f"{moved} moved to the front" if moved else ""
    kind = "trigger" if category == TRIGGER else "fixed tag"
    rule = RuleCount(rule=f"{kind} {tag}", touched=len(new), added=added, note=note)
    changed = len(new) or len(again)
    return (result if changed else column), [*rules, rule]


def _put_last(
    tags: TagColumn, tag: str, wanted: NDArray[np.bool_], rules: list[RuleCount]
) -> tuple[TagColumn, list[RuleCount]]:
    column, spellings = _with_tag(tags, tag, 0)
    has = np.zeros(len(column), dtype=bool)
    has[rows_of(column, np.flatnonzero(np.isin(column.ids, spellings)))] = True
    new = np.flatnonzero(wanted & ~has)
    ids = np.full(len(new), column.id_of(tag), dtype=np.int32)
    result = column.with_tags(new, ids, source=RULE_SOURCE)
    return result, [*rules, RuleCount(rule=f"last tag {tag}", touched=len(new), added=len(new))]


def _with_tag(tags: TagColumn, tag: str, category: int) -> tuple[TagColumn, NDArray[np.int64]]:
    """The column with the tag in its vocabulary, and the ids of all its spellings."""
    column = tags.with_vocabulary([tag], category=category)
    if category:
        column = column.with_categories({tag: CATEGORIES[category]})
    return column, np.array(places_by_normal(column.vocabulary)[normal(tag)], dtype=np.int64)


def _keeping(dataset: Dataset, lengths: Sequence[int], *, skip_reg: bool) -> Dataset:
    subsets = [
        subset
        if (subset.is_reg and skip_reg) or not length
        else replace(subset, keep_tokens=length, shuffle_captions=True)
        for subset, length in zip(dataset.subsets, lengths, strict=True)
    ]
    return replace(dataset, subsets=tuple(subsets))


STEP = Step(
    name="trigger",
    title="Trigger and Fixed Tags",
    summary="Puts the trigger at the front of every caption, and fixed tags behind it or at the end",
    source="LoRA trainers' notes: the trigger first, keep tokens 1, shuffle on; type and artist tags on all",
    params=TriggerParams,
    apply=apply,
    main="trigger",
)
