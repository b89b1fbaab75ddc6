"""Leaving out tags at random, with a chance of its own for each class of tags; the same seed drops the same tags."""

from dataclasses import dataclass

import numpy as np

from ...core.errors import InputError
from ...core.params import Params, param
from ...dataset.table import Dataset
from ._lists import numbers_by_entry
from ._match import Matcher, entries
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import drop_occurrences, fixed_mask, hash_of_names, hashed, row_hashes


@dataclass(frozen=True, kw_only=True)
class RandomDropParams(Params):
    """Chances and seed."""

    rates: str = param(
        "category:general = 0.1",
        doc="One line each: entry = chance from 0 to 1 that a tag is left out of a caption; tags, glob:, regex:, "
        "category: and class: entries, the first that fits counts; 'rest' is every other tag",
        multiline=True,
    )
    keep: str = param("", doc="Entries that are never left out; triggers and kept tags at the front never are",
                      multiline=True)  # fmt: skip
    seed: int = param(0, doc="Another seed leaves out other tags", minimum=0, maximum=2**53)


def apply(dataset: Dataset, params: RandomDropParams, context: StepContext) -> Outcome:
    """Draws once for each picture and tag, from their names: other pictures and the order of tags change nothing."""
    rates = numbers_by_entry(params.rates, what="rates", minimum=0.0, maximum=1.0)
    if not rates:
        raise InputError("there are no rates; write for instance  category:general = 0.1")
    tags = dataset.tags
    matcher = Matcher(tags)
    size = max(len(tags.vocabulary), 1)
    rule_of_tag = np.full(size, -1, dtype=np.int32)
    chances = np.array(list(rates.values()))
    unmatched: tuple[str, ...] = ()
    for number, text in enumerate(rates):
        if text.casefold() == "rest":
            continue
        wanted = entries(text, what="rates")
        mask = matcher.mask(wanted)
        rule_of_tag[np.flatnonzero(mask & (rule_of_tag[: len(mask)] < 0))] = number
        unmatched += matcher.unmatched(wanted)
    for number, text in enumerate(rates):
        if text.casefold() == "rest":
            rule_of_tag[rule_of_tag < 0] = number
    rules = rule_of_tag[tags.ids]
    chance = np.where(rules >= 0, chances[rules], 0.0)
    draws = hashed(params.seed, "random drop", row_hashes(dataset), hash_of_names(tags))
    drop = (draws < chance) & ~fixed_mask(dataset, params.keep)
    names = [f"{text} = {chance:g}" for text, chance in rates.items()]
    result, counts = drop_occurrences(tags, drop, rules, names)
    return outcome(dataset, result, STEP.name, params, counts, unmatched)


STEP = Step(
    name="random_drop",
    title="Random Drop",
    summary="Leaves out tags at random, each class of tags with its own chance, the same ones for the same seed",
    source="Caption fields with their own probability in anime_screenshot_pipeline; kohya's caption_tag_dropout_rate",
    params=RandomDropParams,
    apply=apply,
    main="rates",
)
