"""Diag-OFT: the outputs of a layer are rotated in small blocks, W' = R^T W, so that angles between them stay."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import FormatError
from ..core.params import Params, param
from ._layer import Layer
from ._shared import conv_rank_param, max_norm_param, module_dropout_param, shaped, shrink_factor, usual_groups
from ._spec import Base, Network, Parts, Size
from .lokr import factorization

BLOCKS, RESCALE = "oft_blocks", "rescale"


@dataclass(frozen=True, kw_only=True)
class DiagOftParams(Params):
    """Size of the rotated blocks."""

    rank: int = param(
        8,
        doc="Channels of a block (where the layer's width divides by it). Larger blocks can turn further.",
        minimum=2,
        maximum=1024,
        step=1,
    )
    conv_rank: int = conv_rank_param()
    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()


def size(
    params: DiagOftParams, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
) -> Size:
    """The block's size; alpha is 0, which in these files means that the rotation is not limited."""
    spatial = any(length != 1 for length in weight_shape[2:]) and params.conv_rank > 0
    wanted = rank if rank is not None else params.conv_rank if spatial else params.rank
    return Size(rank=factorization(weight_shape[0], wanted)[0], alpha=0.0)


def init(layer: Layer, *, params: DiagOftParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """`oft_blocks` [out / size, size, size] of zeros: no rotation."""
    return {BLOCKS: torch.zeros(layer.shape[0] // size.rank, size.rank, size.rank)}


def rotation(blocks: Tensor) -> Tensor:
    """R = (I + Q)(I - Q)^-1 per block with the skew Q = blocks - blocks^T, [blocks, size, size] fp32.

    I - Q can always be inverted, so the inverse is taken without the check that would wait for the device.

    Source: Qiu et al. 2023 (arXiv 2306.07280), section 3.3 (Cayley); LyCORIS' modules/diag_oft.py.
    """
    blocks = blocks.float()
    skew = blocks - blocks.transpose(1, 2)
    one = torch.eye(skew.shape[-1], device=skew.device)
    inverse: Tensor = torch.linalg.inv_ex(one - skew, check_errors=False)[0]
    return (one + skew) @ inverse


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: DiagOftParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """base(x) + (R^T - I)(base(x) - bias): the rotation acts on the output, no weight is built."""
    y = base(x)
    blocks = parts[BLOCKS]
    turn = rotation(blocks) - torch.eye(blocks.shape[-1], device=blocks.device)
    turn = turn.to(y.dtype)
    count, width = blocks.shape[0], blocks.shape[-1]
    plain = y if layer.bias is None else y - layer.over_channels(layer.bias.to(y.dtype))
    if layer.op.kind == "linear":
        # [..., blocks, n] [blocks, n, m] -> [..., blocks, m]
        rows = plain.reshape(-1, count, width).transpose(0, 1)
        turned = torch.bmm(rows, turn).transpose(0, 1)
        return y + turned.reshape(y.shape)
    pixels = plain.reshape(plain.shape[0], count, width, -1)
    turned = torch.matmul(turn.transpose(1, 2), pixels)
    return y + turned.reshape(y.shape)


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """(R^T - I) W in fp32; a positive alpha limits the norm of Q, as ComfyUI reads it; `rescale` multiplies the rows.

    Raises:
        FormatError: no base weight, or the blocks do not fit it.

    Source: LyCORIS' functional/diag_oft.py; ComfyUI's weight_adapter/oft.py.
    """
    if weight is None:
        raise FormatError(
            "OFT rotates the base model's weights, so its change cannot be built without them; apply the file to a "
            "base model"
        )
    blocks, base = parts[BLOCKS].float(), weight.float()
    if blocks.ndim != 3 or blocks.shape[0] * blocks.shape[1] != base.shape[0]:
        raise FormatError(
            f"an OFT module has blocks of shape {list(blocks.shape)} for a base weight of {list(base.shape)}; the file "
            "was made for another architecture, or is BOFT, which cannot be read"
        )
    if alpha is not None and alpha > 0.0:
        length = torch.linalg.vector_norm(blocks - blocks.transpose(1, 2)) + 1e-8
        blocks = blocks * (alpha / length).clamp(max=1.0)
    rows = base.reshape(blocks.shape[0], blocks.shape[1], -1)
    changed = torch.matmul(rotation(blocks).transpose(1, 2), rows).reshape(base.shape)
    if RESCALE in parts:
        changed = changed * parts[RESCALE].float().reshape(-1, *(1 for _ in base.shape[1:]))
    return shaped(changed - base, weight_shape, what="OFT")


def unchanged(parts: Parts, *, layer: Layer) -> Tensor:
    """Whether no block turns: Q is zero."""
    blocks = parts[BLOCKS].detach()
    return (blocks == blocks.transpose(1, 2)).all()


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Shortens Q where its norm is larger than max_norm.

    Source: LyCORIS' modules/diag_oft.py, apply_max_norm.
    """
    blocks = parts[BLOCKS].data
    blocks.mul_(shrink_factor(torch.linalg.vector_norm(blocks - blocks.transpose(1, 2)), max_norm))


NETWORK = Network(
    name="diag_oft",
    title="Diag-OFT",
    summary="Rotates the outputs of every layer in blocks; keeps what the model knows, learns slowly.",
    source="Qiu et al. 2023, arXiv 2306.07280, equation 4; file format of LyCORIS' diag-oft",
    params=DiagOftParams,
    part_names=(BLOCKS, RESCALE),
    required_parts=((BLOCKS,),),
    init=init,
    forward=forward,
    delta=delta,
    size=size,
    rank=lambda params: int(params.rank),
    alpha=lambda params: 0.0,
    rank_of=lambda parts: int(parts[BLOCKS].shape[-1]),
    unchanged=unchanged,
    shrink=shrink,
    groups=usual_groups,
    relative=True,
    strength_power=2,
    algo="diag-oft",
)
