"""LoRA: a weight change of low rank, y = W x + (alpha / rank) * up(down(x))."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import FormatError
from ..core.params import Params, param
from ._spec import Network, Op, Parts

DOWN = "lora_down.weight"
UP = "lora_up.weight"
MID = "lora_mid.weight"


@dataclass(frozen=True, kw_only=True)
class LoraParams(Params):
    """Size and scale of a LoRA."""

    rank: int = param(
        16,
        doc="Width of the bottleneck (network dim). More can hold more detail, and makes a larger file.",
        minimum=1,
        maximum=1024,
        step=1,
    )
    alpha: float = param(
        8.0,
        doc="The weight change is scaled by alpha / rank. A higher alpha acts like a higher learning rate.",
        minimum=0.001,
        maximum=4096.0,
        step=0.5,
    )
    dropout: float = param(
        0.0,
        doc="Probability with which each of the rank values is set to zero in training (network dropout).",
        minimum=0.0,
        maximum=0.95,
        step=0.05,
        advanced=True,
    )


def init(weight_shape: Sequence[int], *, params: LoraParams, generator: torch.Generator) -> dict[str, Tensor]:
    """Down: kaiming uniform with a = sqrt(5), as nn.Linear and nn.Conv2d start; up: zeros. So the change starts at 0.

    Args:
        weight_shape: [out, in] or [out, in, kernel, kernel].
        params: rank is used.
        generator: CPU generator; decides the values of down alone.

    Returns:
        `lora_down.weight` [rank, in(, k, k)] and `lora_up.weight` [out, rank(, 1, 1)], fp32.

    Source: Hu et al. 2021 (arXiv 2106.09685) section 4.1; initial values as kohya's networks/lora.py.
    """
    out_features, *in_shape = weight_shape
    down = torch.empty(params.rank, *in_shape)
    bound = 1.0 / math.sqrt(down[0].numel())
    down.uniform_(-bound, bound, generator=generator)
    up = torch.zeros(out_features, params.rank, *(1 for _ in in_shape[1:]))
    return {DOWN: down, UP: up}


def forward(x: Tensor, y: Tensor, parts: Parts, *, params: LoraParams, scale: float, op: Op, training: bool) -> Tensor:
    """Y + scale * up(down(x)); two thin products, the weight change itself is never built.

    Args:
        x: the module's input, [..., in] or [batch, in, height, width].
        y: the base module's output for x; its dtype decides the dtype of the products.
        parts: down and up.
        params: dropout is used.
        scale: alpha / rank.
        op: how the base module applies its weight.
        training: dropout acts only in training.

    Returns:
        A tensor of y's shape and dtype.
    """
    down, up = parts[DOWN], parts[UP]
    if down.dtype != y.dtype:
        down, up = down.to(y.dtype), up.to(y.dtype)
    if op.kind == "linear":
        low = F.linear(x, down)
        if training and params.dropout > 0.0:
            low = F.dropout(low, params.dropout)
        rows = y.reshape(-1, y.shape[-1])
        return torch.addmm(rows, low.reshape(-1, low.shape[-1]), up.t(), alpha=scale).view(y.shape)
    low = F.conv2d(x, down, None, op.stride, op.padding, op.dilation)
    if training and params.dropout > 0.0:
        low = F.dropout(low, params.dropout)
    return y + F.conv2d(low * scale, up)


def delta(parts: Parts, *, alpha: float | None, weight_shape: Sequence[int] | None) -> Tensor:
    """The full weight change, (alpha / rank) * up down, with LyCORIS' optional Tucker core `lora_mid.weight`.

    Args:
        parts: down [r, in(, k, k)], up [out, r(, 1, 1)], optional mid [r, r, k, k]; any float dtype.
        alpha: None means a scale of 1, as ComfyUI reads a file without alpha.
        weight_shape: the shape of the result; None keeps the natural one, [out, in(, k, k)].

    Returns:
        fp32.

    Raises:
        FormatError: the parts do not give a weight of that shape.

    Source: kohya's and LyCORIS' file formats: dW[o,i,h,w] = sum_pq up[o,p] mid[p,q,h,w] down[q,i].
    """
    down, up = parts[DOWN].float(), parts[UP].float()
    rank = down.shape[0]
    scale = 1.0 if alpha is None else alpha / rank
    up_rows = up.reshape(up.shape[0], -1)
    if up_rows.shape[1] != rank:
        raise FormatError(
            f"a LoRA module has down of shape {list(down.shape)} and up of shape {list(up.shape)}; "
            "the first size of down must equal the second of up"
        )
    if MID in parts:
        mid = parts[MID].float()
        change = torch.einsum("op,pqhw,qi->oihw", up_rows, mid, down.reshape(rank, -1))
    else:
        change = (up_rows @ down.reshape(rank, -1)).reshape(up.shape[0], *down.shape[1:])
    change = change * scale
    if weight_shape is None or tuple(weight_shape) == tuple(change.shape):
        return change
    if math.prod(weight_shape) != change.numel() or weight_shape[0] != change.shape[0]:
        raise FormatError(
            f"a LoRA module changes a weight of shape {list(change.shape)}, but the base model has "
            f"{list(weight_shape)} there; the file was made for another architecture"
        )
    return change.reshape(tuple(weight_shape))


NETWORK = Network(
    name="lora",
    summary="Low-rank change of the linear layers; small, quick to train, read by every tool.",
    source="Hu et al. 2021, arXiv 2106.09685, equation 3; file format of kohya's sd-scripts",
    params=LoraParams,
    part_names=(DOWN, UP, MID),
    required_parts=(DOWN, UP),
    init=init,
    forward=forward,
    delta=delta,
    alpha=lambda params: float(params.alpha),
    rank=lambda params: int(params.rank),
)
