"""(1 - alpha) A + alpha B."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import MODEL_A, MODEL_B, AlphaParams
from ._spec import KeyContext, Method


def merge(tensors: Sequence[Tensor], params: AlphaParams, context: KeyContext) -> Tensor:
    """A linear interpolation."""
    return torch.lerp(tensors[0], tensors[1], params.alpha)


METHOD = Method(
    name="weighted_sum",
    title="Weighted Sum",
    summary="Mixes two models: (1 - alpha) A + alpha B",
    source="the weighted sum of A1111's checkpoint merger, of SuperMerger, meh and sd-mecha",
    params=AlphaParams,
    merge=merge,
    inputs=(MODEL_A, MODEL_B),
    blocks=("alpha",),
    unchanged=lambda params: {0.0: 0, 1.0: 1}.get(params.alpha),
    shares=lambda params, count: (1.0 - params.alpha, params.alpha),
)
