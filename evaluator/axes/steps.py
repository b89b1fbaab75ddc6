"""Columns of different numbers of sampling steps."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ..values import parse_ints
from ._spec import Axis, AxisContext, AxisValue, field_values

MAX_STEPS = 10_000


@dataclass(frozen=True, kw_only=True)
class StepsAxisParams(Params):
    """Which numbers of steps to compare."""

    steps: str = param("10-30 (+10)", doc="Sampling steps: a list, or a range such as 10-30 (+5)", multiline=True)


def _values(params: StepsAxisParams, context: AxisContext) -> list[AxisValue]:
    steps = parse_ints(params.steps, what="steps")
    for count in steps:
        if not 1 <= count <= MAX_STEPS:
            raise InputError(f"The steps axis has {count}; sampling takes 1 to {MAX_STEPS} steps.")
    return field_values("steps", steps, [f"{count} steps" for count in steps])


AXIS = Axis(name="Steps", summary="Compares numbers of sampling steps.", params=StepsAxisParams, values=_values)
