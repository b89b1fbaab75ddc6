"""Traits that should stick to a trigger are taken out of its captions: hair, eyes, horns; clothes stay."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.params import Params, param
from ...dataset.diff import RuleCount
from ...dataset.table import Dataset
from ._core import CLASS_CHOICES, Classes, CoreTag, classes_of, core_table
from ._match import Matcher, entries
from ._people import people_mask
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import TRIGGER, drop_occurrences, fixed_mask

MODES = ("none", "minimal", "character", "character_core")
MAX_RULES = 200


@dataclass(frozen=True, kw_only=True)
class PruneTraitsParams(Params):
    """What counts as a trait, and of whom."""

    mode: str = param(
        "character_core",
        doc="none: only report; minimal: hair, eyes and skin; character: every trait; character_core: traits that most "
        "pictures of the class show, so a hat worn once stays",
        choices=MODES,
    )
    body: bool = param(True, doc="Traits of the body: hair, eyes, ears, horns, wings, tail, halo")
    worn: bool = param(False, doc="Things worn on the head: ribbons, hats, glasses, earrings (clothes always stay)")
    class_by: str = param("folder", doc="What makes pictures one class (one character)", choices=CLASS_CHOICES)
    core_share: float = param(
        0.35,
        doc="A tag is a core tag where this share of the class's pictures with one person has it",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    keep: str = param("", doc="Tags that stay whatever the lists say", multiline=True)
    remove: str = param("", doc="Tags that go whatever the lists say, from captions of a class", multiline=True)
    skip_reg: bool = param(True, doc="Captions of regularisation pictures keep their traits")


def apply(dataset: Dataset, params: PruneTraitsParams, context: StepContext) -> Outcome:
    """Takes out the traits of each class from the captions of that class."""
    tags = dataset.tags
    classes = classes_of(dataset, params.class_by, skip_reg=params.skip_reg)
    table = core_table(dataset, classes, core_share=params.core_share)
    keep, remove, unmatched = _flips(dataset, params)
    doomed = {
        (row.class_name, row.tag_id)
        for row in table
        if not keep[row.tag_id] and (remove[row.tag_id] or is_trait(row, params))
    }
    drop = _occurrences(dataset, classes, doomed)
    if len(drop):
        drop &= ~fixed_mask(dataset) | remove[tags.ids]
    listed = np.unique(tags.ids[drop])
    rule_of_tag = np.full(max(len(tags.vocabulary), 1), -1, dtype=np.int32)
    rule_of_tag[listed] = np.arange(len(listed), dtype=np.int32)
    result, rules = drop_occurrences(
        tags, drop, rule_of_tag[tags.ids], [tags.vocabulary[place] for place in listed.tolist()]
    )
    rules = tuple(sorted(rules, key=lambda rule: (-rule.touched, rule.rule)))
    return outcome(dataset, result, STEP.name, params, (*rules, *_hints(table, doomed)), unmatched)


def is_trait(row: CoreTag, params: PruneTraitsParams) -> bool:
    """Whether the mode takes a tag of a class out."""
    trait = row.trait
    if trait is None or params.mode == "none":
        return False
    if not (params.body if trait.kind == "body" else params.worn):
        return False
    if params.mode == "minimal":
        return trait.level == 0
    return row.is_core if params.mode == "character_core" else True


def _flips(dataset: Dataset, params: PruneTraitsParams) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[str, ...]]:
    """Tags [vocabulary] that stay and that go by hand; triggers and counts of people always stay."""
    tags = dataset.tags
    matcher = Matcher(tags)
    kept, removed = entries(params.keep, what="keep"), entries(params.remove, what="remove")
    keep = matcher.mask(kept) | (tags.categories == TRIGGER)
    remove = matcher.mask(removed) & ~keep
    keep |= people_mask(tags.vocabulary) & ~remove
    return keep, remove, (*matcher.unmatched(kept), *matcher.unmatched(removed))


def _occurrences(dataset: Dataset, classes: Classes, doomed: set[tuple[str, int]]) -> NDArray[np.bool_]:
    tags = dataset.tags
    size = max(len(tags.vocabulary), 1)
    place = {name: number for number, name in enumerate(classes.names)}
    keys = np.array(sorted(place[name] * size + tag_id for name, tag_id in doomed), dtype=np.int64)
    is_doomed = np.zeros(size, dtype=bool)
    is_doomed[[tag_id for _, tag_id in doomed]] = True
    drop: NDArray[np.bool_] = is_doomed[tags.ids] if len(tags.ids) else np.zeros(0, dtype=bool)
    places = np.flatnonzero(drop)
    of_class = classes.of_row[tags.row_of_occurrence[places]].astype(np.int64)
    wanted = np.isin(of_class * size + tags.ids[places], keys) & (of_class >= 0)
    drop[places[~wanted]] = False
    return drop


def _hints(table: list[CoreTag], doomed: set[tuple[str, int]]) -> list[RuleCount]:
    """Traits that are still in the captions, so that a person can flip them."""
    left = [row for row in table if row.trait is not None and row.trait.kind == "body"]
    left = [row for row in left if (row.class_name, row.tag_id) not in doomed]
    if not left:
        return []
    shown = ", ".join(f"{row.tag} ({row.share:.0%})" for row in sorted(left, key=lambda row: -row.share)[:8])
    return [RuleCount(rule="traits still in captions", touched=0, note=shown + (" ..." if len(left) > 8 else ""))]


STEP = Step(
    name="prune_traits",
    title="Prune Traits",
    summary="Takes a character's traits out of its captions, so that they stick to the trigger; clothes stay",
    source="Records 003 and 004; the trait rule of imgutils 0.19 and the core tags of anime_screenshot_pipeline",
    params=PruneTraitsParams,
    apply=apply,
    main="remove",
)
