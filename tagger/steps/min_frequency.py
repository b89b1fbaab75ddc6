"""Tags on very few pictures cannot be learnt: they are taken out, or replaced by what they are a kind of."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.params import Params, param
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount, changed_rows
from ...dataset.normal import normals, places_by_normal
from ...dataset.table import Dataset
from ...dataset.words import counted
from ._general import last_word_generals
from ._match import Entry, Matcher, entries
from ._people import people_mask
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import drop_by_rule, fixed_mask, images_per_tag

_MAX_ROUNDS = 16


@dataclass(frozen=True, kw_only=True)
class MinFrequencyParams(Params):
    """What is too rare."""

    min_images: int = param(2, doc="A tag stays when at least so many pictures have it", minimum=1, maximum=1_000_000)
    min_share: float = param(
        0.0, doc="And at least this share of all pictures", minimum=0.0, maximum=1.0, step=0.001, advanced=True
    )
    use_parent: bool = param(
        True,
        doc="A rare 'white frilled shirt' becomes 'frilled shirt' or 'shirt' where the data set has that tag",
    )
    keep: str = param("", doc="Tags that stay however rare; triggers and counts of people always do", multiline=True)


def apply(dataset: Dataset, params: MinFrequencyParams, context: StepContext) -> Outcome:
    """Replaces, then drops; counts are of pictures, over the whole data set."""
    least = max(params.min_images, math.ceil(params.min_share * len(dataset)))
    spared = entries(params.keep, what="keep")
    tags = dataset.tags
    unmatched = Matcher(tags).unmatched(spared)
    kept = frozenset(tags.vocabulary[place] for place in np.unique(tags.ids[fixed_mask(dataset)]).tolist())
    rules: list[RuleCount] = []
    if params.use_parent:
        tags, rules = _with_parents(tags, least, spared, kept)
    rare = _rare(tags, least, spared, kept)
    names = ["tags on too few pictures"]
    result, dropped = drop_by_rule(tags, np.where(rare, 0, -1).astype(np.int32), names)
    note = _names(tags, rare)
    rules += [
        RuleCount(rule=f"on fewer than {least} pictures", touched=count.touched, removed=count.removed, note=note)
        for count in dropped
    ]
    return outcome(dataset, result, STEP.name, params, rules, unmatched)


def _rare(tags: TagColumn, least: int, spared: tuple[Entry, ...], kept: frozenset[str]) -> NDArray[np.bool_]:
    counts = images_per_tag(tags)
    rare: NDArray[np.bool_] = (counts > 0) & (counts < least)
    rare &= np.array([tag not in kept for tag in tags.vocabulary], dtype=bool)
    rare &= ~people_mask(tags.vocabulary)
    if spared:
        rare &= ~Matcher(tags).mask(spared)
    return rare


def _with_parents(
    tags: TagColumn, least: int, spared: tuple[Entry, ...], kept: frozenset[str]
) -> tuple[TagColumn, list[RuleCount]]:
    """Each round makes rare tags one step more general; a general tag that stays rare goes on in the next."""
    replaced = 0
    kinds = 0
    before = tags
    for _ in range(_MAX_ROUNDS):
        rare = np.flatnonzero(_rare(tags, least, spared, kept))
        counts = tags.counts()
        names = normals(tags.vocabulary)
        places = places_by_normal(tags.vocabulary)
        table = np.arange(len(tags.vocabulary), dtype=np.int32)
        for tag_id in rare.tolist():
            for general in last_word_generals(names[tag_id]):
                known = [place for place in places.get(general, ()) if counts[place]]
                if known:
                    table[tag_id] = max(known, key=lambda place: counts[place])
                    break
        changed = np.flatnonzero(table != np.arange(len(table)))
        if not len(changed):
            break
        replaced += int(counts[changed].sum())
        kinds += len(changed)
        tags = tags.translated(table, tags.vocabulary)
    if not kinds:
        return before, []
    touched = int(np.count_nonzero(_rows_changed(before, tags)))
    merged = len(before.ids) - len(tags.ids)
    note = f"{kinds} tags became more general" + (f", {merged} stood there already" if merged else "")
    return tags, [RuleCount(rule="rare tags made general", touched=touched, removed=merged, added=replaced, note=note)]


def _names(tags: TagColumn, rare: NDArray[np.bool_]) -> str:
    places = np.flatnonzero(rare).tolist()
    shown = ", ".join(tags.vocabulary[place] for place in places[:6])
    return f"{counted(len(places), 'tag')}: {shown}" + (" ..." if len(places) > 6 else "")


def _rows_changed(before: TagColumn, after: TagColumn) -> NDArray[np.bool_]:
    mask = np.zeros(len(before), dtype=bool)
    mask[changed_rows(before, after)] = True
    return mask


STEP = Step(
    name="min_frequency",
    title="Minimum Frequency",
    summary="Takes out tags that too few pictures have, or replaces them by a more general tag",
    source="Tags need pictures to be learnt from; taggers' own limit of 600 pictures per tag",
    params=MinFrequencyParams,
    apply=apply,
    main="keep",
)
