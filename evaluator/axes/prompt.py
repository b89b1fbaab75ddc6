"""Columns of different prompts."""

from dataclasses import dataclass

from ...core.params import Params, param
from ..cells import SEED_SHIFT
from ..values import split_lines
from ._spec import Axis, AxisContext, AxisValue, field_values


@dataclass(frozen=True, kw_only=True)
class PromptAxisParams(Params):
    """Which prompts to compare."""

    prompts: str = param("", doc="One prompt per line", multiline=True)
    seed_step: int = param(
        0,
        doc="How much higher the seed of each prompt is than the one before. 0 draws all with one seed; 1 gives "
        "every prompt noise of its own, so that one unlucky seed does not decide a score",
        minimum=0,
        maximum=1_000_000,
        advanced=True,
    )


def _values(params: PromptAxisParams, context: AxisContext) -> list[AxisValue]:
    prompts = split_lines(params.prompts, what="prompt")
    values = field_values("prompt", prompts, prompts)
    if not params.seed_step:
        return values
    return [
        AxisValue(label=value.label, changes={**value.changes, SEED_SHIFT: number * params.seed_step})
        for number, value in enumerate(values)
    ]


AXIS = Axis(name="Prompt", summary="Compares whole prompts, one per line.", params=PromptAxisParams, values=_values)
