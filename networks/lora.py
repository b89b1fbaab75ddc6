"""LoRA: a weight change of low rank, y = W x + (alpha / rank) * up(down(x)); with conv_rank, LoCon; with dora, DoRA."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import FormatError, InputError
from ..core.params import Params, param
from . import _dora
from ._layer import Layer
from ._shared import (
    alpha_param,
    cast,
    conv_alpha_param,
    conv_rank_param,
    dropout_param,
    is_spatial,
    kaiming,
    max_norm_param,
    module_dropout_param,
    rank_dropout_param,
    rank_mask,
    rank_param,
    rank_stabilized_param,
    shaped,
    shrink_factor,
    tucker_param,
    up_lr_ratio_param,
    usual_groups,
    usual_size,
)
from ._spec import Base, Network, Parts, Size

DOWN = "lora_down.weight"
UP = "lora_up.weight"
MID = "lora_mid.weight"
DORA_AXES = ("off", "input", "output")


@dataclass(frozen=True, kw_only=True)
class LoraParams(Params):
    """Size and scale of a LoRA."""

    rank: int = rank_param(16)
    alpha: float = alpha_param(8.0)
    dropout: float = dropout_param(
        "Probability with which each of the rank values is set to zero in training (network dropout)."
    )
    conv_rank: int = conv_rank_param()
    conv_alpha: float = conv_alpha_param()
    dora: str = param(
        "off",
        doc="DoRA: also train the length of every weight column. input is read rightly by ComfyUI; output is the "
        "paper's and LyCORIS' axis, which ComfyUI draws differently.",
        choices=DORA_AXES,
        advanced=True,
    )
    rank_stabilized: bool = rank_stabilized_param()
    tucker: bool = tucker_param()
    rank_dropout: float = rank_dropout_param("Probability with which whole ranks are left out of a training step.")
    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()
    up_lr_ratio: float = up_lr_ratio_param()

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        if self.dora != "off" and self.tucker:
            raise InputError("dora and tucker are both on: a DoRA has two factors; switch one of them off.")
        if self.dora != "off" and self.max_norm > 0:
            raise InputError(
                "dora and max_norm are both on: DoRA trains the length itself; set max_norm to 0 or dora to off."
            )


def init(layer: Layer, *, params: LoraParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """Down (and mid): kaiming uniform with a = sqrt(5); up: zeros. So the change starts at 0.

    Args:
        layer: of weight [out, in] or [out, in, kernel, kernel].
        params: tucker and dora are used.
        size: rank is used.
        generator: CPU generator; decides the values of down and mid alone.

    Returns:
        `lora_down.weight` [rank, in(, k, k)] and `lora_up.weight` [out, rank(, 1, 1)], fp32; with tucker
        `lora_mid.weight` [rank, rank, k, k] and a down of [rank, in, 1, 1]; with dora `dora_scale`.

    Source: Hu et al. 2021 (arXiv 2106.09685) section 4.1; initial values as kohya's networks/lora.py.
    """
    out_features, *in_shape = layer.shape
    ones = [1] * (len(in_shape) - 1)
    parts: dict[str, Tensor] = {}
    if params.tucker and is_spatial(layer.shape):
        parts[DOWN] = kaiming((size.rank, in_shape[0], *ones), generator)
        parts[MID] = kaiming((size.rank, size.rank, *in_shape[1:]), generator)
    else:
        parts[DOWN] = kaiming((size.rank, *in_shape), generator)
    parts[UP] = torch.zeros(out_features, size.rank, *ones)
    if params.dora != "off":
        axis: _dora.Axis = "output" if params.dora == "output" else "input"
        norms = _dora.channel_norms(layer.weight.cpu(), axis)
        parts[_dora.DORA] = norms.reshape(_dora.file_shape(layer.shape, axis)).clone()
    return parts


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: LoraParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """base(x) + scale * up(down(x)); thin products, the weight change itself is never built.

    With dora on the input axis both see x * g / ||W + s dW||; on the output axis the sum without bias is multiplied.

    Args:
        x: the module's input, [..., in] or [batch, in, height, width].
        base: the frozen module; its dtype decides the dtype of the products.
        parts: down and up, mid with Tucker, dora_scale with DoRA.
        params: the dropouts are used.
        scale: alpha / rank.
        layer: the frozen layer.
        training: dropout acts only in training.

    Returns:
        A tensor of base(x)'s shape and dtype.
    """
    if _dora.DORA not in parts:
        return _add(x, base(x), parts, params=params, scale=scale, layer=layer, training=training)
    axis = _dora.axis_of(parts[_dora.DORA], layer.shape)
    norms = _dora.moved_norms(
        layer.weight, layer.once(f"norms {axis}", lambda weight: _dora.channel_norms(weight, axis)),
        parts[DOWN], parts[UP], scale=scale, axis=axis,
    )  # fmt: skip
    lengths = layer.over_channels(parts[_dora.DORA].flatten() / (norms + torch.finfo(torch.float32).eps))
    if axis == "input":
        x = x * lengths.to(x.dtype)
        return _add(x, base(x), parts, params=params, scale=scale, layer=layer, training=training)
    y = _add(x, base(x), parts, params=params, scale=scale, layer=layer, training=training)
    if layer.bias is None:
        return y * lengths.to(y.dtype)
    bias = layer.over_channels(layer.bias.to(y.dtype))
    return (y - bias) * lengths.to(y.dtype) + bias


def _add(
    x: Tensor, y: Tensor, parts: Parts, *, params: LoraParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """Y + scale * up(down(x))."""
    down, up = cast(y, parts[DOWN], parts[UP])
    if layer.op.kind == "linear":
        low = _dropped(F.linear(x, down), params, training=training, channel_axis=-1)
        rows = y.reshape(-1, y.shape[-1])
        return torch.addmm(rows, low.reshape(-1, low.shape[-1]), up.t(), alpha=scale).view(y.shape)
    if MID in parts:
        low = layer.apply(F.conv2d(x, down), *cast(y, parts[MID]))
    else:
        low = layer.apply(x, down)
    low = _dropped(low, params, training=training, channel_axis=1)
    return y + F.conv2d(low * scale, up)


def _dropped(low: Tensor, params: LoraParams, *, training: bool, channel_axis: int) -> Tensor:
    if not training:
        return low
    if params.dropout > 0.0:
        low = F.dropout(low, params.dropout)
    if params.rank_dropout > 0.0:
        low = low * rank_mask(low, params.rank_dropout, channel_axis=channel_axis)
    return low


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """The full weight change, (alpha / rank) * up down, with LyCORIS' optional Tucker core `lora_mid.weight`.

    Args:
        parts: down [r, in(, k, k)], up [out, r(, 1, 1)], optional mid [r, r, k, k] and dora_scale; any float dtype.
        alpha: None means a scale of 1, as ComfyUI reads a file without alpha.
        weight_shape: the shape of the result; None keeps the natural one, [out, in(, k, k)].
        weight: the base weight, which a file with dora_scale needs.

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
    change = shaped(change * scale, weight_shape, what="LoRA")
    if _dora.DORA in parts:
        return _dora.decomposed_change(change, parts[_dora.DORA], _dora.need_weight(weight))
    return change


def rank_of(parts: Parts) -> int:
    """The rank of a module of a file."""
    return int(parts[DOWN].shape[0])


def natural_shapes(parts: Parts, layer: Layer) -> dict[str, tuple[int, ...]]:
    """Down and up as this layer has them: some tools write convolutions as matrices."""
    rank = rank_of(parts)
    out_features, *in_shape = layer.shape
    ones = (1,) * (len(in_shape) - 1)
    down = (rank, in_shape[0], *ones) if MID in parts else (rank, *in_shape)
    return {DOWN: down, UP: (out_features, rank, *ones)}


def unchanged(parts: Parts, *, layer: Layer) -> Tensor:
    """Whether up (or another factor) is zero and, for a DoRA, no length has moved."""
    zero = torch.stack([(parts[name].detach() == 0).all() for name in (DOWN, UP, MID) if name in parts]).any()
    if _dora.DORA not in parts:
        return zero
    lengths = parts[_dora.DORA].detach()
    started = _dora.channel_norms(layer.weight.to(lengths.device), _dora.axis_of(lengths, layer.shape))
    return zero & torch.isclose(lengths.flatten(), started, rtol=1e-6, atol=0.0).all()


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Multiplies the factors alike where the change is longer than max_norm.

    ||up down||^2 = sum of (up^T up) * (down down^T), so the change is not built.

    Source: kohya's networks/lora.py, apply_max_norm_regularization.
    """
    down, up = parts[DOWN].detach(), parts[UP].detach()
    rank = down.shape[0]
    left, right = up.reshape(-1, rank), down.reshape(rank, -1)
    if MID in parts:
        norm = torch.linalg.vector_norm(delta(parts, alpha=None, weight_shape=None)) * scale
    else:
        norm = ((left.t() @ left) * (right @ right.t())).sum().clamp_min(0.0).sqrt() * scale
    factors = [parts[name] for name in (DOWN, UP, MID) if name in parts]
    share = shrink_factor(norm, max_norm) ** (1.0 / len(factors))
    for factor in factors:
        factor.data.mul_(share)


NETWORK = Network(
    name="lora",
    title="LoRA",
    summary="Low-rank change of the linear layers; small, quick to train, read by every tool.",
    source="Hu et al. 2021, arXiv 2106.09685, equation 3; file format of kohya's sd-scripts",
    params=LoraParams,
    part_names=(DOWN, UP, MID, _dora.DORA),
    required_parts=((DOWN, UP),),
    init=init,
    forward=forward,
    delta=delta,
    size=usual_size,
    rank=lambda params: int(params.rank),
    alpha=lambda params: float(params.alpha),
    rank_of=rank_of,
    natural_shapes=natural_shapes,
    unchanged=unchanged,
    shrink=shrink,
    groups=usual_groups,
    up_parts=(UP,),
    fp32_parts=(_dora.DORA,),
    module="networks.lora",
)
