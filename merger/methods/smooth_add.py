"""A + alpha times the smoothed difference B - C."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._filters import gaussian_filter, median_filter
from ._shared import WEIGHT_A, WEIGHT_B, WEIGHT_C, StrengthParams, first_if_zero
from ._spec import WEIGHT, KeyContext, Method


def merge(tensors: Sequence[Tensor], params: StrengthParams, context: KeyContext) -> Tensor:
    """Median of the neighbours, then a Gaussian of sigma 1, over all axes of B - C."""
    a, b, c = tensors
    return torch.add(a, gaussian_filter(median_filter(b - c)), alpha=params.alpha)


METHOD = Method(
    name="smooth_add",
    title="Smooth Add",
    summary="Adds what B has learned since C after smoothing it; slow, for the medians of many neighbours",
    source="smoothAdd of SuperMerger: scipy's median_filter(size=3) and gaussian_filter(sigma=1) over all axes",
    params=StrengthParams,
    merge=merge,
    inputs=(WEIGHT_A, WEIGHT_B, WEIGHT_C),
    result=WEIGHT,
    whole=True,
    blocks=("alpha",),
    unchanged=first_if_zero,
    copies=5,
)
