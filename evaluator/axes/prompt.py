"""Columns of different prompts."""

from dataclasses import dataclass

from ...core.params import Params, param
from ..values import split_lines
from ._spec import Axis, AxisContext, AxisValue, field_values


@dataclass(frozen=True, kw_only=True)
class PromptAxisParams(Params):
    """Which prompts to compare."""

    prompts: str = param("", doc="One prompt per line", multiline=True)


def _values(params: PromptAxisParams, context: AxisContext) -> list[AxisValue]:
    prompts = split_lines(params.prompts, what="prompt")
    return field_values("prompt", prompts, prompts)


AXIS = Axis(name="Prompt", summary="Compares whole prompts, one per line.", params=PromptAxisParams, values=_values)
