"""Full: every weight's difference itself is trained; the most that can be learned, and the largest file."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import FormatError
from ..core.params import Params, param
from ._layer import Layer
from ._shared import cast, max_norm_param, module_dropout_param, shaped, shrink_factor
from ._spec import Base, Network, Parts, Size, every_part_zero

DIFF, DIFF_BIAS = "diff", "diff_b"


@dataclass(frozen=True, kw_only=True)
class FullParams(Params):
    """What is trained besides the weights."""

    train_bias: bool = param(True, doc="Train the biases too.")
    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()


def size(
    params: FullParams, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
) -> Size:
    """No rank, no alpha."""
    return Size(rank=1, alpha=None)


def init(layer: Layer, *, params: FullParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """`diff` of the weight's shape and, with train_bias, `diff_b` [out]; zeros."""
    parts = {DIFF: torch.zeros(layer.shape)}
    if params.train_bias and layer.bias is not None:
        parts[DIFF_BIAS] = torch.zeros(tuple(layer.bias.shape))
    return parts


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: FullParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """The layer with W + diff; one product where nothing is rounded on the way, else base(x) + diff(x)."""
    if layer.plain and layer.in_full_precision(x):
        bias = layer.bias
        if bias is not None and DIFF_BIAS in parts:
            bias = bias + parts[DIFF_BIAS]
        return layer.apply(x, layer.weight + parts[DIFF], bias)
    y = base(x)
    diff, *bias_diff = cast(y, parts[DIFF], *([parts[DIFF_BIAS]] if DIFF_BIAS in parts else []))
    return y + layer.apply(x.to(y.dtype), diff, bias_diff[0] if bias_diff else None)


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """The difference itself, fp32. A file that changes the bias alone changes the weight by nothing.

    Raises:
        FormatError: the difference has another shape than the base weight.
    """
    if DIFF in parts:
        return shaped(parts[DIFF].float(), weight_shape, what="full")
    if weight_shape is None:
        raise FormatError("a module of the LoRA file holds diff_b alone, whose weight change has no shape of its own")
    return torch.zeros(weight_shape)


def bias_delta(parts: Parts) -> Tensor | None:
    """The bias' difference, fp32 [out], or None."""
    return parts[DIFF_BIAS].float() if DIFF_BIAS in parts else None


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Shortens the weight's difference."""
    diff = parts[DIFF].data
    diff.mul_(shrink_factor(torch.linalg.vector_norm(diff), max_norm))


NETWORK = Network(
    name="full",
    title="Full Difference",
    summary="Trains the weights themselves and keeps their difference: the most can be learned, files are large.",
    source="Plain fine-tuning kept as a difference; file format of LyCORIS' full (diff, diff_b)",
    params=FullParams,
    part_names=(DIFF, DIFF_BIAS),
    required_parts=((DIFF,), (DIFF_BIAS,)),
    init=init,
    forward=forward,
    delta=delta,
    size=size,
    rank=lambda params: None,
    alpha=lambda params: None,
    bias_delta=bias_delta,
    unchanged=every_part_zero,
    shrink=shrink,
    algo="full",
)
