"""Columns of different samplers."""

from dataclasses import dataclass

from ...core.params import Params, param
from ..values import split_list
from ._spec import Axis, AxisContext, AxisValue, checked_names, field_values


@dataclass(frozen=True, kw_only=True)
class SamplerAxisParams(Params):
    """Which samplers to compare."""

    samplers: str = param(
        "euler, dpmpp_2m", doc="Names of samplers, separated by commas or line breaks", multiline=True
    )


def _values(params: SamplerAxisParams, context: AxisContext) -> list[AxisValue]:
    names = checked_names("sampler", split_list(params.samplers, what="sampler"), context.sampler_names)
    return field_values("sampler", names, names)


AXIS = Axis(name="Sampler", summary="Compares samplers.", params=SamplerAxisParams, values=_values)
