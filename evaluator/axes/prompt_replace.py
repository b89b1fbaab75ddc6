"""Columns in which a word of the prompt is replaced."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ..cells import PROMPT_REPLACE
from ..values import split_lines, split_list
from ._spec import Axis, AxisContext, AxisValue


@dataclass(frozen=True, kw_only=True)
class PromptReplaceAxisParams(Params):
    """Search word and replacements."""

    words: str = param(
        "",
        doc="The first entry is searched in prompt and negative prompt and must occur there; it and each further entry "
        'takes its place. Separated by commas (quote entries with commas: "red, blue"), or one per line',
        multiline=True,
    )


def _values(params: PromptReplaceAxisParams, context: AxisContext) -> list[AxisValue]:
    split = split_lines if len(params.words.strip().splitlines()) > 1 else split_list
    words = split(params.words, what="prompt search and replace")
    if len(words) < 2:
        raise InputError(
            f"The search and replace axis has only '{words[0]}'; give the search word and at least one replacement."
        )
    return [AxisValue(label=word, changes={PROMPT_REPLACE: ((words[0], word),)}) for word in words]


AXIS = Axis(
    name="Prompt S/R",
    summary="Replaces a word of the prompt; the first column keeps it.",
    params=PromptReplaceAxisParams,
    values=_values,
)
