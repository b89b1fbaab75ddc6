"""Norm: scale and shift of the UNet's normalisation layers are trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.params import Params
from ._layer import Layer
from ._shared import max_norm_param, module_dropout_param, shaped, shrink_factor
from ._spec import Base, Network, Parts, Size, every_part_zero

WEIGHT, BIAS = "w_norm", "b_norm"


@dataclass(frozen=True, kw_only=True)
class NormParams(Params):
    """Norm training has no size of its own."""

    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()


def size(
    params: NormParams, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
) -> Size:
    """No rank, no alpha."""
    return Size(rank=1, alpha=None)


def init(layer: Layer, *, params: NormParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """`w_norm` and, where the norm has a bias, `b_norm` [channels]; zeros."""
    parts = {WEIGHT: torch.zeros(layer.shape)}
    if layer.bias is not None:
        parts[BIAS] = torch.zeros(layer.shape)
    return parts


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: NormParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """The norm with weight + w_norm and bias + b_norm; added to base(x) where something would be rounded."""
    if layer.plain and layer.in_full_precision(x):
        bias = layer.bias
        return layer.apply(x, layer.weight + parts[WEIGHT], None if bias is None else bias + parts[BIAS])
    y = base(x)
    bias = parts[BIAS].float() if BIAS in parts else None
    return y + layer.apply(x.float(), parts[WEIGHT].float(), bias).to(y.dtype)


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """The change of the norm's weight, fp32 [channels]."""
    return shaped(parts[WEIGHT].float(), weight_shape, what="norm")


def bias_delta(parts: Parts) -> Tensor | None:
    """The change of the norm's bias, fp32 [channels], or None."""
    return parts[BIAS].float() if BIAS in parts else None


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Shortens the weight's change."""
    change = parts[WEIGHT].data
    change.mul_(shrink_factor(torch.linalg.vector_norm(change), max_norm))


NETWORK = Network(
    name="norm",
    title="Norm",
    summary="Trains only the normalisation layers of the UNet; tiny, for colours and contrast.",
    source="Frankle et al. 2021 (arXiv 2003.00152); file format of LyCORIS' norms (w_norm, b_norm)",
    params=NormParams,
    part_names=(WEIGHT, BIAS),
    required_parts=((WEIGHT,),),
    init=init,
    forward=forward,
    delta=delta,
    size=size,
    rank=lambda params: None,
    alpha=lambda params: None,
    bias_delta=bias_delta,
    unchanged=every_part_zero,
    shrink=shrink,
    adapts=("layer_norm", "group_norm"),
    groups=lambda params: ("norms",),
    algo="full",
)
