"""The plain mean of any number of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.params import Params
from ._shared import MODELS
from ._spec import KeyContext, Method


@dataclass(frozen=True, kw_only=True)
class AverageParams(Params):
    """There are none."""


def merge(tensors: Sequence[Tensor], params: AverageParams, context: KeyContext) -> Tensor:
    """The sum over the number."""
    total = tensors[0] + tensors[1]
    for value in tensors[2:]:
        total += value
    return total.div_(len(tensors))


METHOD = Method(
    name="n_average",
    title="Average of Many",
    summary="The plain mean of two or more models, each with the same share",
    source="Wortsman et al. 2022 (Model Soups), the uniform soup; n_average of sd-mecha",
    params=AverageParams,
    merge=merge,
    inputs=(),
    many=MODELS,
    shares=lambda params, count: (1.0 / count,) * count,
)
