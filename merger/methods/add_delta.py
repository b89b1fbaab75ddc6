"""A + alpha D, where D is a difference of two models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import WEIGHT_A, StrengthParams, first_if_zero
from ._spec import DELTA, WEIGHT, Input, KeyContext, Method


def merge(tensors: Sequence[Tensor], params: StrengthParams, context: KeyContext) -> Tensor:
    """Adds a difference."""
    return torch.add(tensors[0], tensors[1], alpha=params.alpha)


METHOD = Method(
    name="add_delta",
    title="Add Difference of a Model",
    summary="Adds a difference of two models to a third: A + alpha D",
    source="Ilharco et al. 2023 (Task Arithmetic), section 2; add_difference of sd-mecha",
    params=StrengthParams,
    merge=merge,
    inputs=(WEIGHT_A, Input(name="delta", doc="the difference that is added", kind=DELTA)),
    result=WEIGHT,
    blocks=("alpha",),
    unchanged=first_if_zero,
    shares=lambda params, count: (1.0, params.alpha),
)
