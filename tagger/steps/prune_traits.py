"""Traits that should stick to a trigger are taken out of its captions: hair, eyes, horns; clothes stay."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.params import Params, param
from ...dataset.diff import RuleCount
from ...dataset.table import Dataset
from ._core import CLASS_CHOICES, TRAITS, Classes, CoreTable, classes_of, core_table
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
    doomed = ~keep[table.tag_ids] & (remove[table.tag_ids] | trait_rows(table, params))
    drop = _occurrences(dataset, classes, table, doomed)
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


def trait_rows(table: CoreTable, params: PruneTraitsParams) -> NDArray[np.bool_]:
    """Which tags of which classes the mode takes out, bool [rows of the table]."""
    wanted = [
        params.mode != "none"
        and (params.body if trait.kind == "body" else params.worn)
        and (params.mode != "minimal" or trait.level == 0)
        for trait in TRAITS
    ]
    goes: NDArray[np.bool_] = np.array([*wanted, False], dtype=bool)[table.traits]  # -1: no trait
    return goes & table.is_core if params.mode == "character_core" else goes


def _flips(dataset: Dataset, params: PruneTraitsParams) -> tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[str, ...]]:
    """Tags [vocabulary] that stay and that go by hand; triggers and counts of people always stay."""
    tags = dataset.tags
    matcher = Matcher(tags)
    kept, removed = entries(params.keep, what="keep"), entries(params.remove, what="remove")
    keep = matcher.mask(kept) | (tags.categories == TRIGGER)
    remove = matcher.mask(removed) & ~keep
    keep |= people_mask(tags.vocabulary) & ~remove
    return keep, remove, (*matcher.unmatched(kept), *matcher.unmatched(removed))


def _occurrences(dataset: Dataset, classes: Classes, table: CoreTable, doomed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    tags = dataset.tags
    size = max(len(tags.vocabulary), 1)
    keys = np.sort(table.class_of_rows()[doomed] * size + table.tag_ids[doomed])
    is_doomed = np.zeros(size, dtype=bool)
    is_doomed[table.tag_ids[doomed]] = True
    drop: NDArray[np.bool_] = is_doomed[tags.ids] if len(tags.ids) else np.zeros(0, dtype=bool)
    places = np.flatnonzero(drop)
    of_class = classes.of_row[tags.row_of_occurrence[places]].astype(np.int64)
    wanted = np.isin(of_class * size + tags.ids[places], keys) & (of_class >= 0)
    drop[places[~wanted]] = False
    return drop


def _hints(table: CoreTable, doomed: NDArray[np.bool_]) -> list[RuleCount]:
    """Traits that are still in the captions, so that a person can flip them."""
    is_body = np.array([*(trait.kind == "body" for trait in TRAITS), False], dtype=bool)
    left = np.flatnonzero(is_body[table.traits] & ~doomed)
    if not len(left):
        return []
    first = left[np.argsort(-table.share[left], kind="stable")[:8]]
    shown = ", ".join(f"{table[place].tag} ({table[place].share:.0%})" for place in first.tolist())
    return [RuleCount(rule="traits still in captions", touched=0, note=shown + (" ..." if len(left) > 8 else ""))]


STEP = Step(
    name="prune_traits",
    title="Prune Traits",
    summary="Takes a character's traits out of its captions, so that they stick to the trigger; clothes stay",
    source="LoRA trainers' notes; the trait rule of imgutils 0.19 and the core tags of anime_screenshot_pipeline",
    params=PruneTraitsParams,
    apply=apply,
    main="remove",
)
