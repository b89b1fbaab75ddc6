"""Columns of different seeds."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ..cells import MAX_SEED
from ..values import parse_ints
from ._spec import Axis, AxisContext, AxisValue, field_values


@dataclass(frozen=True, kw_only=True)
class SeedAxisParams(Params):
    """Which seeds to compare."""

    seeds: str = param("1-4", doc="Seeds: a list, or a range such as 1-4 or 100-500 (+100)", multiline=True)


def _values(params: SeedAxisParams, context: AxisContext) -> list[AxisValue]:
    seeds = parse_ints(params.seeds, what="seed")
    for seed in seeds:
        if not 0 <= seed <= MAX_SEED:
            raise InputError(f"The seed axis has {seed}; seeds are whole numbers from 0 to {MAX_SEED}.")
    return field_values("seed", seeds, [f"seed {seed}" for seed in seeds])


AXIS = Axis(name="Seed", summary="Compares seeds.", params=SeedAxisParams, values=_values)
