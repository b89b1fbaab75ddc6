"""A - B, a difference that can be added to other models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.params import Params
from ._spec import DELTA, WEIGHT, Input, KeyContext, Method


@dataclass(frozen=True, kw_only=True)
class DifferenceParams(Params):
    """There are none."""


def merge(tensors: Sequence[Tensor], params: DifferenceParams, context: KeyContext) -> Tensor:
    """What A adds to B."""
    return tensors[0] - tensors[1]


METHOD = Method(
    name="difference",
    title="Difference",
    summary="What one model adds to another: A - B. It is no model; add it to one with Add Difference of a Model",
    source="Ilharco et al. 2023 (Task Arithmetic), section 2: the task vector; subtract of sd-mecha",
    params=DifferenceParams,
    merge=merge,
    inputs=(
        Input(name="a", doc="the model whose difference is taken", kind=WEIGHT),
        Input(name="b", doc="the model it was made from", kind=WEIGHT),
    ),
    result=DELTA,
    shares=lambda params, count: (1.0, -1.0),
)
