"""A + alpha times the part of B - C that A - C has nothing of."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import WEIGHT_A, WEIGHT_B, WEIGHT_C, StrengthParams, first_if_zero
from ._spec import WEIGHT, KeyContext, Method


def merge(tensors: Sequence[Tensor], params: StrengthParams, context: KeyContext) -> Tensor:
    """Adds only what is at a right angle to A's own change; all of B - C where A is C."""
    a, b, c = tensors
    own, other = a - c, b - c
    return torch.add(a, perpendicular(own, other), alpha=params.alpha)


def perpendicular(own: Tensor, other: Tensor) -> Tensor:
    """The part of ``other`` at a right angle to ``own``, over the whole tensor; ``other`` itself where own is 0."""
    length = torch.linalg.vector_norm(own)
    if float(length) == 0.0:
        return other
    unit: Tensor = own / length
    return other - unit * torch.dot(unit.reshape(-1), other.reshape(-1))


METHOD = Method(
    name="perpendicular_add",
    title="Perpendicular Add",
    summary="Adds what B has learned since C without what A has learned already",
    source="add_perpendicular of sd-mecha; where A equals C all of B - C is added, there nothing",
    params=StrengthParams,
    merge=merge,
    inputs=(WEIGHT_A, WEIGHT_B, WEIGHT_C),
    result=WEIGHT,
    whole=True,
    blocks=("alpha",),
    unchanged=first_if_zero,
    copies=4,
)
