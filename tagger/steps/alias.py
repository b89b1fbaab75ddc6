"""Synonyms: several names of one thing become one tag."""

from dataclasses import dataclass

from ...core.params import Params, param
from ...dataset.table import Dataset
from ._lists import pairs, resolved
from ._renaming import rename_all
from ._spec import Outcome, Step, StepContext, outcome


@dataclass(frozen=True, kw_only=True)
class AliasParams(Params):
    """Which tags are the same."""

    aliases: str = param(
        "",
        doc="One pair to a line, 'kitty -> cat', or CSV 'kitty,cat'. Chains are followed; # begins a comment",
        multiline=True,
    )
    file: str = param(
        "",
        doc="A CSV file below an allowed folder with more pairs, such as danbooru's or e621's list of aliases",
    )


def apply(dataset: Dataset, params: AliasParams, context: StepContext) -> Outcome:
    """Merges synonyms; the spelling that the data set uses most is the one that stays."""
    given = pairs(params.aliases, what="aliases")
    given += pairs(context.text_of(params.file), what=f"file {params.file!r}", typed=False)
    targets = resolved(given, what="the list of aliases")
    tags, rules, unmatched = rename_all(dataset.tags, given, targets)
    return outcome(dataset, tags, STEP.name, params, rules, unmatched)


STEP = Step(
    name="alias",
    title="Merge Synonyms",
    summary="Makes one tag of several names of the same thing, from a list or a CSV file",
    source="Near-synonyms folded into one tag, as large sets do; tag aliases of danbooru and e621",
    params=AliasParams,
    apply=apply,
    main="aliases",
)
