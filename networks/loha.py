"""LoHa: the change is the Hadamard product of two low-rank matrices, so that rank r reaches a matrix of rank r^2.

    dW = (w1_a w1_b) * (w2_a w2_b) * alpha / r

A Hadamard product of two products is one product of face-splitting (Khatri-Rao) factors:

    dW = U V,   U[o, p r + q] = w1_a[o, p] w2_a[o, q],   V[p r + q, i] = w1_b[p, i] w2_b[q, i]

so the change can be applied as two thin products of width r^2 and is not built. Where r^2 is too wide for that to pay,
the change is built, and one product with W + dW takes the place of two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.errors import FormatError
from ..core.params import Params
from . import _dora
from ._layer import Layer
from ._shared import (
    alpha_param,
    cast,
    conv_alpha_param,
    conv_rank_param,
    dropout_param,
    dropped_change,
    is_spatial,
    max_norm_param,
    module_dropout_param,
    rank_dropout_param,
    rank_param,
    rank_stabilized_param,
    shaped,
    shrink_factor,
    tucker_param,
    usual_groups,
    usual_size,
)
from ._spec import Base, Network, Parts, Size

W1_A, W1_B, W2_A, W2_B = "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"
T1, T2 = "hada_t1", "hada_t2"


@dataclass(frozen=True, kw_only=True)
class LohaParams(Params):
    """Size and scale of a LoHa."""

    rank: int = rank_param(8)
    alpha: float = alpha_param(1.0)
    conv_rank: int = conv_rank_param()
    conv_alpha: float = conv_alpha_param()
    tucker: bool = tucker_param()
    rank_stabilized: bool = rank_stabilized_param()
    dropout: float = dropout_param("Probability with which a value of the change is set to zero in training.")
    rank_dropout: float = rank_dropout_param(
        "Probability with which a row of the weight change is left out of a training step."
    )
    module_dropout: float = module_dropout_param()
    max_norm: float = max_norm_param()


def init(layer: Layer, *, params: LohaParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """Normal values for three factors (deviation 1, 1 and 0.1; cores 0.1), zeros for `hada_w2_a`.

    Source: LyCORIS' modules/loha.py; file format there: w_a [out, r] and w_b [r, in * k * k], with Tucker w_a [r, out],
    w_b [r, in] and cores [r, r, k, k].
    """
    out_features, in_features, *kernel = layer.shape
    rank, tucker = size.rank, params.tucker and is_spatial(layer.shape)

    def normal(*shape: int, deviation: float) -> Tensor:
        return torch.empty(shape).normal_(0.0, deviation, generator=generator)

    width = in_features if tucker else in_features * _product(kernel)
    a_shape = (rank, out_features) if tucker else (out_features, rank)
    parts = {
        W1_A: normal(*a_shape, deviation=0.1),
        W1_B: normal(rank, width, deviation=1.0),
        W2_A: torch.zeros(a_shape),
        W2_B: normal(rank, width, deviation=1.0),
    }
    if tucker:
        parts[T1] = normal(rank, rank, *kernel, deviation=0.1)
        parts[T2] = normal(rank, rank, *kernel, deviation=0.1)
    return parts


def face_splitting(left: Tensor, right: Tensor) -> Tensor:
    """[n, p] and [n, q] -> [n, p q]: every column of one times every column of the other.

    Source: Slyusar 1999 (face-splitting product); (A B) * (C D) = (A . C)(B^T . D^T)^T with . this product.
    """
    return (left.unsqueeze(2) * right.unsqueeze(1)).reshape(left.shape[0], -1)


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: LohaParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """base(x) + scale * dW(x); see the head of this file for the two ways it is computed.

    Args:
        x: the module's input, [..., in] or [batch, in, height, width].
        base: the frozen module.
        parts: as `init` makes them.
        params: the dropouts are used.
        scale: alpha / rank.
        layer: the frozen layer.
        training: dropout acts only in training.
    """
    dropping = training and (params.dropout > 0.0 or params.rank_dropout > 0.0)
    is_linear = layer.op.kind == "linear"
    thin = _thin_is_cheaper(layer.shape, parts[W1_B].shape[0], tucker=T1 in parts)
    in_one = layer.plain and layer.in_full_precision(x) and parts[W1_A].dtype == torch.float32
    if is_linear and not thin and not dropping and in_one:
        return _whole(x, layer.weight, layer.bias, parts[W1_A], parts[W1_B], parts[W2_A], parts[W2_B], scale)
    y = base(x)
    if thin:
        change = _thin(x, y, parts, scale=scale, layer=layer)
        if is_linear and not dropping:
            low, up = change
            rows = y.reshape(-1, y.shape[-1])
            return torch.addmm(rows, low.reshape(-1, low.shape[-1]), up.t(), alpha=scale).view(y.shape)
        low, up = change
        extra = F.linear(low, up) if is_linear else F.conv2d(low, up[:, :, None, None])
        extra = extra * scale
    else:
        extra = layer.apply(x, *cast(y, _built(parts, scale).reshape(layer.shape)))
    return y + dropped_change(extra, params=params, training=training, channel_axis=-1 if is_linear else 1)


def _thin_is_cheaper(weight_shape: tuple[int, ...], rank: int, *, tucker: bool) -> bool:
    """Compares the products a row of the input takes: r^2 (in + out), and the r^4 of a core, with in * out."""
    out_features, in_features, *kernel = weight_shape
    taps, wide = _product(kernel), rank * rank
    thin = wide * (in_features + out_features + wide * taps) if tucker else wide * (in_features * taps + out_features)
    return thin < in_features * out_features * taps


def _thin(x: Tensor, y: Tensor, parts: Parts, *, scale: float, layer: Layer) -> tuple[Tensor, Tensor]:
    """(V x, U): the input on r^2 values, and the matrix [out, r^2] that goes on it."""
    w1_a, w1_b, w2_a, w2_b = cast(y, parts[W1_A], parts[W1_B], parts[W2_A], parts[W2_B])
    if T1 in parts:
        t1, t2 = cast(y, parts[T1], parts[T2])
        # both chains at once: [p, q] ranks of the outputs, [s, t] of the inputs
        core = torch.einsum("pshw,qthw->pqsthw", t1, t2)
        wide = t1.shape[0] * t2.shape[0]
        core = core.reshape(wide, wide, *t1.shape[2:])
        narrow = face_splitting(w1_b.t(), w2_b.t()).t()
        low = layer.apply(F.conv2d(x, narrow[:, :, None, None]), core)
        return low, face_splitting(w1_a.t(), w2_a.t())
    down = face_splitting(w1_b.t(), w2_b.t()).t()
    if layer.op.kind == "linear":
        return F.linear(x, down), face_splitting(w1_a, w2_a)
    return layer.apply(x, down.reshape(down.shape[0], *layer.shape[1:])), face_splitting(w1_a, w2_a)


class _Hadamard(torch.autograd.Function):
    """(a b) * (c d) * scale, which keeps the factors for the backward pass and not the products."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor, d: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(a, b, c, d)
        ctx.scale = scale
        with torch.autocast(a.device.type, enabled=False):  # the factors' own dtype, as in the backward pass
            return (a @ b).mul_(c @ d).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        a, b, c, d = ctx.saved_tensors
        return (*_factor_gradients(gradients[0], a, b, c, d, ctx.scale), None)


def _factor_gradients(
    gradient: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scaled = gradient * scale
    first = scaled * (c @ d)
    second = scaled.mul_(a @ b)
    return first @ b.t(), a.t() @ first, second @ d.t(), c.t() @ second


class _WholeLinear(torch.autograd.Function):
    """F.linear with W + (a b) * (c d) * scale in one product; the changed weight is built again for the backward."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        d: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, a, b, c, d)
        ctx.scale = scale
        return F.linear(x, (a @ b).mul_(c @ d).mul_(scale).add_(weight), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b, c, d = ctx.saved_tensors
        gradient, scale = gradients[0], ctx.scale
        one, other = a @ b, c @ d
        to_x = None
        if ctx.needs_input_grad[0]:
            to_x = gradient @ (one * other).mul_(scale).add_(weight)
        rows = gradient.reshape(-1, gradient.shape[-1]).t() @ x.reshape(-1, x.shape[-1])
        rows = rows.mul_(scale)
        first, second = other.mul_(rows), one.mul_(rows)
        return to_x, None, None, first @ b.t(), a.t() @ first, second @ d.t(), c.t() @ second, None


def _whole(x: Tensor, *given: Any) -> Tensor:
    result: Tensor = _WholeLinear.apply(x, *given)  # type: ignore[no-untyped-call]
    return result


def _built(parts: Parts, scale: float) -> Tensor:
    """The full change with its gradient, [out, in * k * k] or, with Tucker, [out, in, k, k]."""
    if T1 in parts:
        one = torch.einsum("ijhw,jr,ip->prhw", parts[T1], parts[W1_B], parts[W1_A])
        other = torch.einsum("ijhw,jr,ip->prhw", parts[T2], parts[W2_B], parts[W2_A])
        return one * other * scale
    factors = (parts[W1_A], parts[W1_B], parts[W2_A], parts[W2_B])
    change: Tensor = _Hadamard.apply(*factors, scale)  # type: ignore[no-untyped-call]
    return change


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """The full weight change in fp32.

    Raises:
        FormatError: the factors do not fit each other or the base weight.

    Source: LyCORIS' functional/loha.py, as ComfyUI's weight_adapter/loha.py reads it.
    """
    values = {name: value.float() for name, value in parts.items()}
    rank = values[W1_B].shape[0]
    try:
        change = _built(values, 1.0 if alpha is None else alpha / rank).detach()
    except RuntimeError as cause:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in parts.items())
        raise FormatError(f"a LoHa module's factors do not fit each other: {shapes}") from cause
    change = shaped(change, weight_shape, what="LoHa")
    if _dora.DORA in parts:
        return _dora.decomposed_change(change, parts[_dora.DORA], _dora.need_weight(weight))
    return change


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Multiplies `hada_w1_a` where the change is longer than max_norm.

    Source: LyCORIS' modules/loha.py, apply_max_norm, whose scalar is folded into w1_a in files.
    """
    with torch.no_grad():
        norm = torch.linalg.vector_norm(_built({name: part.detach() for name, part in parts.items()}, scale))
        parts[W1_A].data.mul_(shrink_factor(norm, max_norm))


def _product(sizes: list[int]) -> int:
    found = 1
    for size in sizes:
        found *= size
    return found


NETWORK = Network(
    name="loha",
    title="LoHa",
    summary="Hadamard product of two low-rank changes: rank r reaches r squared; good for styles and many concepts.",
    source="Hyeon-Woo et al. 2022 (FedPara, arXiv 2108.06098), proposition 2; file format of LyCORIS",
    params=LohaParams,
    part_names=(W1_A, W1_B, W2_A, W2_B, T1, T2, _dora.DORA),
    required_parts=((W1_A, W1_B, W2_A, W2_B),),
    init=init,
    forward=forward,
    delta=delta,
    size=usual_size,
    rank=lambda params: int(params.rank),
    alpha=lambda params: float(params.alpha),
    rank_of=lambda parts: int(parts[W1_B].shape[0]),
    shrink=shrink,
    groups=usual_groups,
    fp32_parts=(_dora.DORA,),
    algo="loha",
)
