"""DyLoRA: a LoRA whose first ranks are trained to be good without the others, so that it may be cut afterwards."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import InputError
from ..core.params import Params, param
from . import lora
from ._layer import Layer
from ._shared import (
    alpha_param,
    cast,
    conv_alpha_param,
    conv_rank_param,
    max_norm_param,
    module_dropout_param,
    rank_param,
    usual_groups,
    usual_size,
)
from ._spec import Base, Network, Parts, Size

DOWN, UP = lora.DOWN, lora.UP


@dataclass(frozen=True, kw_only=True)
class DyloraParams(Params):
    """Size of a DyLoRA and of the pieces it can be cut into."""

    rank: int = rank_param(16)
    alpha: float = alpha_param(8.0)
    unit: int = param(
        4,
        doc="Ranks that are learnt together: the file may be cut to any multiple of it. It must divide the rank.",
        minimum=1,
        maximum=1024,
        step=1,
    )
    conv_rank: int = conv_rank_param()
    conv_alpha: float = conv_alpha_param()
    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        for name, rank in (("rank", self.rank), ("conv_rank", self.conv_rank)):
            if rank % self.unit:
                raise InputError(f"{name} is {rank} and unit is {self.unit}: the unit must divide it, such as 4 in 16.")


def init(layer: Layer, *, params: DyloraParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """As a LoRA's: down kaiming uniform, up zeros."""
    return lora.init(layer, params=lora.LoraParams(), size=size, generator=generator)


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: DyloraParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """In training a random prefix of the ranks, of which the last unit alone learns; else the whole LoRA.

    The prefix is scaled by sqrt(rank / prefix), so that its change is as large as the whole one's.

    Args:
        x: the module's input.
        base: the frozen module.
        parts: down and up.
        params: unit is used.
        scale: alpha / rank.
        layer: the frozen layer.
        training: the prefix is only drawn in training.

    Source: Valipour et al. 2023 (arXiv 2210.07558), algorithm 1 with updates of the block b alone; the scale and the
    unit as in kohya's networks/dylora.py.
    """
    y = base(x)
    down, up = cast(y, parts[DOWN], parts[UP])
    if training:
        down, up, share = _prefix(down, up, params.unit)
        scale = scale * share
    if layer.op.kind == "linear":
        low = F.linear(x, down)
        rows = y.reshape(-1, y.shape[-1])
        return torch.addmm(rows, low.reshape(-1, low.shape[-1]), up.t(), alpha=scale).view(y.shape)
    return y + F.conv2d(layer.apply(x, down) * scale, up)


def _prefix(down: Tensor, up: Tensor, unit: int) -> tuple[Tensor, Tensor, float]:
    rank = down.shape[0]
    last = int(torch.randint(0, math.ceil(rank / unit), ()).item())  # on the CPU: nothing waits for the device
    start, end = last * unit, min(rank, (last + 1) * unit)
    if start:
        down = torch.cat((down[:start].detach(), down[start:end]))
        up = torch.cat((up[:, :start].detach(), up[:, start:end]), dim=1)
    else:
        down, up = down[:end], up[:, :end]
    return down, up, math.sqrt(rank / end)


NETWORK = Network(
    name="dylora",
    title="DyLoRA",
    summary="A LoRA that learns several ranks in one run; its file may be cut to a smaller rank afterwards.",
    source="Valipour et al. 2023, arXiv 2210.07558, algorithm 1; file format of LoRA",
    params=DyloraParams,
    part_names=(DOWN, UP),
    required_parts=((DOWN, UP),),
    init=init,
    forward=forward,
    delta=lora.delta,
    size=usual_size,
    rank=lambda params: int(params.rank),
    alpha=lambda params: float(params.alpha),
    rank_of=lora.rank_of,
    natural_shapes=lora.natural_shapes,
    unchanged=lora.unchanged,
    shrink=lora.shrink,
    groups=usual_groups,
    module="networks.dylora",
)
