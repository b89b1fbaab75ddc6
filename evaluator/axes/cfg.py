"""Columns of different guidance scales."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ..values import parse_floats, show_number
from ._spec import Axis, AxisContext, AxisValue, field_values

MAX_CFG = 100.0


@dataclass(frozen=True, kw_only=True)
class CfgAxisParams(Params):
    """Which guidance scales to compare."""

    scales: str = param("3, 5, 7, 9", doc="CFG scales: a list, 3-9 (+2) or 3-9 [4]", multiline=True)


def _values(params: CfgAxisParams, context: AxisContext) -> list[AxisValue]:
    scales = parse_floats(params.scales, what="CFG")
    for scale in scales:
        if not 0.0 <= scale <= MAX_CFG:
            raise InputError(f"The CFG axis has {scale:g}; 0 to {MAX_CFG:g} are allowed.")
    return field_values("cfg", scales, [f"CFG {show_number(scale)}" for scale in scales])


AXIS = Axis(name="CFG", summary="Compares guidance scales.", params=CfgAxisParams, values=_values)
