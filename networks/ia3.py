"""(IA)^3: one trained factor per channel; keys and values are scaled after their layer, feed-forward before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import FormatError
from ..core.params import Params
from . import _dora
from ._layer import Layer
from ._shared import max_norm_param, module_dropout_param, shaped, shrink_factor
from ._spec import Base, Network, Parts, Size, every_part_zero

WEIGHT, ON_INPUT = "weight", "on_input"
DOWN, UP = "lora_down.weight", "lora_up.weight"
ON_INPUT_STEMS = ("ff_net_2", "mlp_fc2")
"""Layers whose input is the inner activation of a feed-forward block."""


@dataclass(frozen=True, kw_only=True)
class Ia3Params(Params):
    """(IA)^3 has no size of its own."""

    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()


def size(
    params: Ia3Params, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
) -> Size:
    """No rank, no alpha."""
    return Size(rank=1, alpha=None)


def on_input(layer: Layer) -> bool:
    """Whether a layer's input is scaled instead of its output.

    Source: Liu et al. 2022 (arXiv 2205.05638), section 3.3; LyCORIS' preset ia3 for the layers' names.
    """
    return layer.stem.endswith(ON_INPUT_STEMS)


def init(layer: Layer, *, params: Ia3Params, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """`weight` [1, in(, 1, 1)] or [out, 1(, 1, 1)] of zeros: a channel is multiplied by 1 + weight."""
    return {WEIGHT: torch.zeros(_dora.file_shape(layer.shape, _axis(layer)))}


def _axis(layer: Layer) -> _dora.Axis:
    return "input" if on_input(layer) else "output"


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: Ia3Params, scale: float, layer: Layer, training: bool
) -> Tensor:
    """W (x * (1 + w)), or (1 + w) * (W x) + bias."""
    factors = layer.over_channels(parts[WEIGHT].flatten())
    if on_input(layer):
        return base(x + x * factors.to(x.dtype))
    y = base(x)
    plain = y if layer.bias is None else y - layer.over_channels(layer.bias.to(y.dtype))
    return y + plain * factors.to(y.dtype)


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """The change of the base weight: its rows or columns times the factors.

    Args:
        parts: LyCORIS' `weight` and `on_input`; without `on_input` the shape [out, 1] or [1, in] tells the side.
        alpha: not used.
        weight_shape: of the base weight.
        weight: the base weight.

    Raises:
        FormatError: no base weight, or the factors do not fit it.
    """
    if weight is None:
        raise FormatError(
            "(IA)^3 multiplies the base model's weights, so its change cannot be built without them; apply the file to "
            "a base model"
        )
    factors, base = parts[WEIGHT].float(), weight.float()
    inward = bool(parts[ON_INPUT].item()) if ON_INPUT in parts else factors.shape[0] == 1
    channels = base.shape[1] if inward else base.shape[0]
    if factors.numel() != channels:
        raise FormatError(
            f"an (IA)^3 module has {factors.numel()} factors for a base weight of shape {list(base.shape)}; the file "
            "was made for another architecture"
        )
    ones = (1,) * (base.ndim - 2)
    change = base * factors.reshape((1, -1, *ones) if inward else (-1, 1, *ones))
    return shaped(change, weight_shape, what="(IA)^3")


def to_file(parts: Parts, *, layer: Layer, size: Size) -> dict[str, Tensor]:
    """The same change as a LoRA of zeros with `dora_scale`, because ComfyUI loads no (IA)^3 (issues 6381 and 6397).

    W * g / ||W|| with g = (1 + w) ||W|| is W * (1 + w); with a LoRA of zeros every reader of DoRA agrees on it.
    """
    axis = _axis(layer)
    weight = layer.weight.to(parts[WEIGHT].device)
    norms = _dora.channel_norms(weight, axis) + torch.finfo(torch.float32).eps
    scale = (1.0 + parts[WEIGHT].detach().float().flatten()) * norms
    ones = (1,) * (len(layer.shape) - 2)
    return {
        DOWN: torch.zeros((1, *layer.shape[1:]), device=scale.device),
        UP: torch.zeros((layer.shape[0], 1, *ones), device=scale.device),
        _dora.DORA: scale.reshape(_dora.file_shape(layer.shape, axis)),
    }


def from_file(parts: Parts, *, layer: Layer) -> dict[str, Tensor]:
    """The factors from our own file, or from one of LyCORIS.

    Raises:
        FormatError: the file scales the other side of this layer, or holds a LoRA too.
    """
    inward, shape = on_input(layer), _dora.file_shape(layer.shape, _axis(layer))
    if _dora.DORA in parts:
        scale = parts[_dora.DORA].float()
        axis = _dora.axis_of(scale, layer.shape)
        if bool(parts[UP].any()) or (axis == "input") != inward:
            raise FormatError(f"the module '{layer.stem}' of the file is a DoRA, not (IA)^3; use the network lora")
        norms = _dora.channel_norms(layer.weight.cpu(), axis) + torch.finfo(torch.float32).eps
        return {WEIGHT: (scale.cpu().flatten() / norms - 1.0).reshape(shape)}
    if ON_INPUT in parts and bool(parts[ON_INPUT].item()) != inward:
        raise FormatError(f"the module '{layer.stem}' of the file scales the other side of its layer")
    return {WEIGHT: parts[WEIGHT].float().reshape(shape)}


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Shortens the factors' distance from 1."""
    factors = parts[WEIGHT].data
    factors.mul_(shrink_factor(torch.linalg.vector_norm(factors), max_norm))


NETWORK = Network(
    name="ia3",
    title="(IA)³",
    summary="One factor per channel of keys, values and feed-forward; tiny, wants a learning rate of 0.005 and more.",
    source="Liu et al. 2022, arXiv 2205.05638, section 3.3; layers and format of LyCORIS' ia3",
    params=Ia3Params,
    part_names=(WEIGHT, ON_INPUT),
    required_parts=((WEIGHT, ON_INPUT),),
    init=init,
    forward=forward,
    delta=delta,
    size=size,
    rank=lambda params: None,
    alpha=lambda params: None,
    to_file=to_file,
    from_file=from_file,
    unchanged=every_part_zero,
    shrink=shrink,
    include=("*to_k", "*to_v", "*ff.net.2", "*k_proj", "*v_proj", "*mlp.fc2"),
    fp32_parts=(_dora.DORA,),
    relative=True,
    algo="ia3",
)
