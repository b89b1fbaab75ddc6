"""Tags that are taken out: exactly, by glob, by regular expression, by category."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ...dataset.table import Dataset
from ._match import KINDS, Matcher, entries
from ._spec import Outcome, Step, StepContext, outcome
from ._vectors import drop_by_rule


@dataclass(frozen=True, kw_only=True)
class BlacklistParams(Params):
    """What is taken out."""

    entries: str = param(
        "",
        doc="Tags to take out, separated by commas or line ends; _ and blanks are the same. An entry may say how it "
        "is meant: glob:*_hair, regex:(red|blue) .*, category:meta, class:background",
        multiline=True,
    )
    match: str = param(
        "exact",
        doc="How an entry is meant that does not say it: the whole tag, * and ? as wildcards, a regular expression "
        "for the whole tag (one to a line), a category or a class",
        choices=KINDS,
    )
    except_for: str = param("", doc="Entries that stay even so, written the same way", multiline=True, advanced=True)
    file: str = param("", doc="A text file below an allowed folder with more entries")


def apply(dataset: Dataset, params: BlacklistParams, context: StepContext) -> Outcome:
    """Takes out whole tags only; what stays keeps its order."""
    wanted = entries(params.entries, what="entries", kind=params.match)
    wanted += entries(context.text_of(params.file), what=f"file {params.file!r}", kind=params.match, typed=False)
    if not wanted:
        raise InputError("the blacklist is empty; write the tags to take out, or take the step out")
    matcher = Matcher(dataset.tags)
    rule_of_tag = matcher.rule_of_tag(wanted)
    unmatched = matcher.unmatched(wanted)
    if params.except_for.strip():
        spared = entries(params.except_for, what="except_for", kind=params.match)
        rule_of_tag[matcher.mask(spared)] = -1
        unmatched += matcher.unmatched(spared)
    tags, rules = drop_by_rule(dataset.tags, rule_of_tag, [entry.shown for entry in wanted])
    return outcome(dataset, tags, STEP.name, params, rules, unmatched)


STEP = Step(
    name="blacklist",
    title="Blacklist",
    summary="Takes out tags by exact name, glob, regular expression or category; never by a part of a word",
    source="LoRA trainers' delete lists; the four match modes that users of tagging tools ask for",
    params=BlacklistParams,
    apply=apply,
    main="entries",
)
