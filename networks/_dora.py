"""DoRA: the changed weight keeps a trained length per input (or output) channel.

    W' = (W + s dW) * g / ||W + s dW||,    g starts as ||W||

The norm takes no part in the gradient (paper, section 4.3). Source: Liu et al. 2024, arXiv 2402.09353, equations 5
and 11; the axes are LyCORIS' (output) and OneTrainer's (input). ComfyUI reads the input axis as written here; on the
output axis it divides by the norm of W alone, so files for ComfyUI use the input axis.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..core.errors import FormatError

DORA = "dora_scale"
Axis = Literal["input", "output"]


def channel_norms(weight: Tensor, axis: Axis) -> Tensor:
    """[channels] fp32: the Frobenius norm of the weight's columns (input) or rows (output)."""
    rows = weight.float() if axis == "output" else weight.float().transpose(0, 1)
    norms: Tensor = torch.linalg.vector_norm(rows.reshape(rows.shape[0], -1), dim=1)
    return norms


def file_shape(weight_shape: tuple[int, ...], axis: Axis) -> tuple[int, ...]:
    """[out, 1(, 1, 1)] or [1, in(, 1, 1)]."""
    ones = (1,) * (len(weight_shape) - 2)
    return (weight_shape[0], 1, *ones) if axis == "output" else (1, weight_shape[1], *ones)


def axis_of(scale: Tensor, weight_shape: tuple[int, ...]) -> Axis:
    """The axis of a file's `dora_scale`, decided as ComfyUI does.

    Raises:
        FormatError: its length is neither that of the inputs nor of the outputs.
    """
    if scale.numel() == weight_shape[0] and scale.shape[0] == weight_shape[0]:
        return "output"
    if scale.numel() == weight_shape[1]:
        return "input"
    raise FormatError(
        f"dora_scale has shape {list(scale.shape)}, but the base weight is {list(weight_shape)}; the file was made for "
        "another architecture"
    )


def decomposed_change(change: Tensor, dora_scale: Tensor, weight: Tensor) -> Tensor:
    """W' - W in fp32, from the plain change and the base weight."""
    base = weight.float()
    axis = axis_of(dora_scale, tuple(base.shape))
    moved = base + change.reshape(base.shape)
    shape = file_shape(tuple(base.shape), axis)
    norms = channel_norms(moved, axis).reshape(shape) + torch.finfo(torch.float32).eps
    return moved * (dora_scale.float().reshape(shape) / norms) - base


def need_weight(weight: Tensor | None) -> Tensor:
    """The base weight that a file with `dora_scale` is relative to.

    Raises:
        FormatError: it was not given.
    """
    if weight is None:
        raise FormatError(
            "the LoRA file holds dora_scale (DoRA), whose change depends on the base model's weight; apply it to a "
            "base model instead"
        )
    return weight


def moved_norms(weight: Tensor, norms: Tensor, down: Tensor, up: Tensor, *, scale: float, axis: Axis) -> Tensor:
    """||W + s up down|| per channel, [channels] fp32, without building the change.

    ||W_j||^2 + 2 s <W_j, (up down)_j> + s^2 ||(up down)_j||^2, each term by the factors.

    Args:
        weight: [out, in(, k, k)].
        norms: of the weight alone, `channel_norms`.
        down: [r, in(, k, k)].
        up: [out, r(, 1, 1)].
        scale: alpha / rank.
        axis: of the channels.
    """
    with torch.no_grad():
        rank = down.shape[0]
        flat_down, flat_up = down.reshape(rank, -1).float(), up.reshape(up.shape[0], rank).float()
        rows = weight.reshape(weight.shape[0], -1)
        if rows.element_size() == 1:  # fp8 storage knows no products
            rows = rows.to(torch.bfloat16)
        if axis == "output":
            crossed = (rows @ flat_down.t().to(rows.dtype)).float()
            own = flat_up @ (flat_down @ flat_down.t())
            extra = ((2.0 * scale) * crossed + (scale * scale) * own).mul_(flat_up).sum(dim=1)
        else:
            crossed = (flat_up.t().to(rows.dtype) @ rows).float()
            own = (flat_up.t() @ flat_up) @ flat_down
            terms = ((2.0 * scale) * crossed + (scale * scale) * own).mul_(flat_down)
            extra = terms.reshape(rank, weight.shape[1], -1).sum(dim=(0, 2))
        return (norms.square() + extra).clamp_min(0.0).sqrt()
