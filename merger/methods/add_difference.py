"""A + alpha (B - C)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import WEIGHT_A, WEIGHT_B, WEIGHT_C, StrengthParams, first_if_zero
from ._spec import WEIGHT, KeyContext, Method


def merge(tensors: Sequence[Tensor], params: StrengthParams, context: KeyContext) -> Tensor:
    """Adds what B has learned since C."""
    a, b, c = tensors
    return torch.add(a, b - c, alpha=params.alpha)


METHOD = Method(
    name="add_difference",
    title="Add Difference",
    summary="Adds what B has learned since C: A + alpha (B - C)",
    source="the add difference of A1111's checkpoint merger; Ilharco et al. 2023 (Task Arithmetic), section 2",
    params=StrengthParams,
    merge=merge,
    inputs=(WEIGHT_A, WEIGHT_B, WEIGHT_C),
    result=WEIGHT,
    blocks=("alpha",),
    unchanged=first_if_zero,
    shares=lambda params, count: (1.0, params.alpha, -params.alpha),
)
