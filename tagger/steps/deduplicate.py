"""A tag that a caption holds twice, whatever its spelling, stays at its first place."""

from dataclasses import dataclass

import numpy as np

from ...core.params import Params, param
from ...dataset.diff import RuleCount
from ...dataset.normal import places_by_normal
from ...dataset.table import Dataset
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import captions_and_tags, rows_of


@dataclass(frozen=True, kw_only=True)
class DeduplicateParams(Params):
    """Which spelling stays."""

    one_spelling: bool = param(
        True,
        doc="Write a tag the same way in every caption: as it is written most often. Off: each caption keeps its own",
    )


def apply(dataset: Dataset, params: DeduplicateParams, context: StepContext) -> Outcome:
    """Compares in normal form and takes out what comes again."""
    tags = dataset.tags
    counts = tags.counts()
    first_of = np.arange(len(tags.vocabulary), dtype=np.int32)
    for places in places_by_normal(tags.vocabulary).values():
        if len(places) > 1:
            first_of[list(places)] = max(places, key=lambda place: (counts[place], -place))
    rules: list[RuleCount] = []
    unified = tags.translated(first_of, tags.vocabulary)
    removed = len(tags.ids) - len(unified.ids)
    if params.one_spelling:
        result = unified
        differs = (first_of != np.arange(len(first_of)))[tags.ids]
        places_changed = np.flatnonzero(differs)
        if len(places_changed):
            rows = rows_of(tags, places_changed)
            touched, _ = captions_and_tags(rows, np.zeros(len(rows), dtype=np.int64), 1)
            rules.append(RuleCount(rule="other spellings", touched=int(touched[0]), added=len(places_changed)))
        else:
            result = tags.deduplicated()
            removed = len(tags.ids) - len(result.ids)
    else:
        keys = tags.row_of_occurrence.astype(np.int64) * max(len(first_of), 1) + first_of[tags.ids]
        _, first_places = np.unique(keys, return_index=True)
        mask = np.zeros(len(tags.ids), dtype=bool)
        mask[first_places] = True
        result = tags.keep(mask)
        removed = len(tags.ids) - len(result.ids)
    if removed:
        touched_rows = int(np.count_nonzero(result.lengths != tags.lengths))
        rules.append(RuleCount(rule="tags that came twice", touched=touched_rows, removed=removed))
    return outcome(dataset, result, STEP.name, params, rules)


STEP = Step(
    name="deduplicate",
    title="Remove Repeated Tags",
    summary="Leaves each tag once in a caption, at its first place, whatever its spelling",
    source="Comparison by one normal form (NFKC, case, blanks, escapes); kohya's --append_tags",
    params=DeduplicateParams,
    apply=apply,
)
