"""Spherical interpolation of two models."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._shared import MODEL_A, MODEL_B, AlphaParams
from ._spec import KeyContext, Method


def merge(tensors: Sequence[Tensor], params: AlphaParams, context: KeyContext) -> Tensor:
    """Turns A towards B by alpha of their angle; the lengths are interpolated. A plain sum where there is no angle."""
    a, b = tensors
    length_a, length_b = torch.linalg.vector_norm(a), torch.linalg.vector_norm(b)
    cosine = (torch.dot(a.reshape(-1), b.reshape(-1)) / (length_a * length_b)).clamp(-1.0, 1.0)
    angle = torch.arccos(cosine)
    factors = torch.stack((torch.sin((1.0 - params.alpha) * angle), torch.sin(params.alpha * angle))) / torch.sin(angle)
    if not bool(torch.isfinite(factors).all()) or not bool(torch.isfinite(cosine)):
        return torch.lerp(a, b, params.alpha)
    length = torch.lerp(length_a, length_b, params.alpha)
    turned: Tensor = (a * (factors[0] * length / length_a)).add_(b * (factors[1] * length / length_b))
    return turned


METHOD = Method(
    name="slerp",
    title="Slerp",
    summary="Turns A towards B along the arc between them, so that the size of the weights is kept",
    source="Shoemake 1985, section 3.3, over a whole tensor with its length interpolated, as slerp of sd-mecha",
    params=AlphaParams,
    merge=merge,
    inputs=(MODEL_A, MODEL_B),
    whole=True,
    blocks=("alpha",),
    unchanged=lambda params: {0.0: 0, 1.0: 1}.get(params.alpha),
)
