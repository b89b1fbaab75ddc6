"""What several networks share: parameters with the same meaning everywhere, starting values, dropout, sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import FormatError
from ..core.params import param
from ._spec import CONVENTIONAL_GROUPS, CONVOLUTION_GROUPS, Size

ALPHA_DOC = "The weight change is scaled by alpha / rank. A higher alpha acts like a higher learning rate."


def rank_param(default: int) -> Any:
    """The rank of linear layers and 1x1 convolutions."""
    return param(
        default,
        doc="Width of the bottleneck (network dim). More can hold more detail, and makes a larger file.",
        minimum=1,
        maximum=1024,
        step=1,
    )


def alpha_param(default: float) -> Any:
    """The scale's numerator."""
    return param(default, doc=ALPHA_DOC, minimum=0.001, maximum=4096.0, step=0.5)


def conv_rank_param() -> Any:
    """The rank of 3x3 convolutions; 0 leaves them out."""
    return param(
        0,
        doc="Rank of the 3x3 convolutions (conv dim). 0 leaves the resnets out, unless the targets name them: then "
        "they have the rank above.",
        minimum=0,
        maximum=1024,
        step=1,
    )


def conv_alpha_param(default: float = 1.0) -> Any:
    """Alpha of 3x3 convolutions."""
    return param(
        default,
        doc="Alpha of the 3x3 convolutions; used when conv_rank is set.",
        minimum=0.001,
        maximum=4096.0,
        step=0.5,
    )


def dropout_param(doc: str) -> Any:
    """Probability of network dropout."""
    return param(0.0, doc=doc, minimum=0.0, maximum=0.95, step=0.05, advanced=True)


def rank_dropout_param(doc: str) -> Any:
    """Probability of rank dropout."""
    return param(0.0, doc=doc, minimum=0.0, maximum=0.95, step=0.05, advanced=True)


def module_dropout_param() -> Any:
    """Probability of module dropout."""
    return param(
        0.0,
        doc="Probability with which a whole module is left out of a training step.",
        minimum=0.0,
        maximum=0.95,
        step=0.05,
        advanced=True,
    )


def max_norm_param() -> Any:
    """Limit of the change's norm."""
    return param(
        0.0,
        doc="Longest a module's weight change may be (its Frobenius norm, checked after every update; kohya's "
        "scale_weight_norms). 0 is off; 1 is usual.",
        minimum=0.0,
        maximum=1000.0,
        step=0.1,
        advanced=True,
    )


def tucker_param() -> Any:
    """Tucker form of convolutions."""
    return param(
        False,
        doc="Split 3x3 convolutions into three factors (Tucker decomposition), which makes smaller files.",
        advanced=True,
    )


def rank_stabilized_param() -> Any:
    """RsLoRA."""
    return param(
        False,
        doc="Scale by alpha / square root of rank (rsLoRA), so that a higher rank does not learn less.",
        advanced=True,
    )


def up_lr_ratio_param() -> Any:
    """LoRA+."""
    return param(
        1.0,
        doc="Learning rate of the up weights in parts of that of the down weights (LoRA+; its paper uses 16).",
        minimum=0.01,
        maximum=1000.0,
        step=1.0,
        advanced=True,
    )


def is_spatial(weight_shape: Sequence[int]) -> bool:
    """Whether a weight is of a convolution with a kernel larger than 1x1."""
    return any(size != 1 for size in weight_shape[2:])


def usual_size(
    params: Any, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
) -> Size:
    """Rank and alpha, or conv_rank and conv_alpha for 3x3 convolutions where conv_rank is set.

    With `rank_stabilized`, alpha becomes alpha * rank / sqrt(rank), so that alpha / rank of every loader is
    alpha / sqrt(rank).

    Source: kohya's networks/lora.py (conv_dim); Kalajdzievski 2023 (arXiv 2312.03732) as LyCORIS writes it to files.
    """
    spatial = is_spatial(weight_shape) and params.conv_rank > 0
    own_rank, own_alpha = (params.conv_rank, params.conv_alpha) if spatial else (params.rank, params.alpha)
    rank = own_rank if rank is None else rank
    alpha = float(own_alpha if alpha is None else alpha)
    if getattr(params, "rank_stabilized", False):
        alpha = alpha * rank / math.sqrt(rank)
    return Size(rank=rank, alpha=alpha)


def usual_groups(params: Any) -> tuple[str, ...]:
    """The transformers, and the resnets too where conv_rank is set."""
    return (*CONVENTIONAL_GROUPS, *CONVOLUTION_GROUPS) if params.conv_rank > 0 else CONVENTIONAL_GROUPS


def kaiming(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Kaiming uniform with a = sqrt(5), as nn.Linear and nn.Conv2d start: within 1 / sqrt(fan in)."""
    values = torch.empty(tuple(shape))
    bound = 1.0 / math.sqrt(values[0].numel())
    return values.uniform_(-bound, bound, generator=generator)


def rank_mask(low: Tensor, probability: float, *, channel_axis: int) -> Tensor:
    """Drops whole ranks per picture: [batch, 1 ..., rank] of 0 and 1 / (1 - p).

    Source: kohya's networks/lora.py, rank_dropout.
    """
    shape = [1] * low.ndim
    shape[0], shape[channel_axis] = low.shape[0], low.shape[channel_axis]
    kept = torch.rand(shape, device=low.device) >= probability
    return kept.to(low.dtype) / (1.0 - probability)


def dropped_change(change: Tensor, *, params: Any, training: bool, channel_axis: int) -> Tensor:
    """Network and rank dropout of networks without a bottleneck: both act on the change of the output.

    Rank dropout leaves out rows of the weight change, which are the channels of its output.

    Source: LyCORIS' modules/base.py: g(x) = W x + drop(dW x), and rows of dW for rank dropout.
    """
    if not training:
        return change
    if params.rank_dropout > 0.0:
        shape = [1] * change.ndim
        shape[channel_axis] = change.shape[channel_axis]
        kept = torch.rand(shape, device=change.device) >= params.rank_dropout
        change = change * (kept.to(change.dtype) / (1.0 - params.rank_dropout))
    if params.dropout > 0.0:
        change = F.dropout(change, params.dropout)
    return change


def shaped(change: Tensor, weight_shape: Sequence[int] | None, *, what: str) -> Tensor:
    """The change in the base weight's shape; 1x1 kernels and flattened files are the same numbers.

    Raises:
        FormatError: the file was made for another architecture.
    """
    if weight_shape is None or tuple(weight_shape) == tuple(change.shape):
        return change
    if math.prod(weight_shape) != change.numel() or weight_shape[0] != change.shape[0]:
        raise FormatError(
            f"a {what} module changes a weight of shape {list(change.shape)}, but the base model has "
            f"{list(weight_shape)} there; the file was made for another architecture"
        )
    return change.reshape(tuple(weight_shape))


def cast(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values in the dtype of `x`."""
    return tuple(value if value.dtype == x.dtype else value.to(x.dtype) for value in values)


def shrink_factor(norm: Tensor, max_norm: float) -> Tensor:
    """By how much a change of this norm is multiplied: 1, or max_norm / norm where it is longer."""
    return (max_norm / norm.clamp_min(1e-30)).clamp(max=1.0)
