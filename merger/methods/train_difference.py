"""A + the difference B - C, scaled where A has gone the same way already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import WEIGHT_A, WEIGHT_B, WEIGHT_C, StrengthParams, first_if_zero
from ._spec import WEIGHT, KeyContext, Method

GAIN = 1.8
"""SuperMerger's factor, which makes alpha 1 about as strong as add difference."""


def merge(tensors: Sequence[Tensor], params: StrengthParams, context: KeyContext) -> Tensor:
    """A + 1.8 alpha s (B - C) with s = |B - A| / (|B - C| + |B - A|), 0 where both are 0."""
    a, b, c = tensors
    change = b - c
    to_a = (b - a).abs_()
    together = change.abs().add_(to_a)
    scale = torch.where(together != 0, to_a / together, torch.zeros_like(together))
    return torch.add(a, change.mul_(scale), alpha=GAIN * params.alpha)


METHOD = Method(
    name="train_difference",
    title="Train Difference",
    summary="Adds what B has learned since C, less of it where A has learned the same already",
    source="trainDifference of SuperMerger (calcmode); the mask of sd-mecha's train_difference_mask times B - C",
    params=StrengthParams,
    merge=merge,
    inputs=(WEIGHT_A, WEIGHT_B, WEIGHT_C),
    result=WEIGHT,
    blocks=("alpha",),
    unchanged=first_if_zero,
    copies=5,
)
