"""LoKr: the change is a Kronecker product, dW = kron(w1, w2) * alpha / rank, applied without building it.

(kron(w1, w2) x) = w1 X w2^T,   X = x as a matrix of [in_m, in_n]      (the "vec trick")
"""

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
    dropped_change,
    is_spatial,
    kaiming,
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

W1, W1_A, W1_B = "lokr_w1", "lokr_w1_a", "lokr_w1_b"
W2, W2_A, W2_B, T2 = "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"


@dataclass(frozen=True, kw_only=True)
class LokrParams(Params):
    """Size and scale of a LoKr."""

    rank: int = rank_param(8)
    alpha: float = alpha_param(1.0)
    factor: int = param(
        -1,
        doc="How the sizes of a layer are split: 8 makes w1 8 x 8 and w2 the rest (near a full change), -1 splits near "
        "the square root (smallest files).",
        minimum=-1,
        maximum=1024,
        step=1,
    )
    full_matrix: bool = param(False, doc="Keep w2 whole instead of as two factors of the rank; the scale is then 1.")
    decompose_both: bool = param(False, doc="Split w1 into two factors as well, where the rank allows.", advanced=True)
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

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        if self.factor == 0:
            raise InputError("factor is 0: give -1 for sizes near the square root, or a number such as 8.")
        if self.full_matrix and self.decompose_both:
            raise InputError("full_matrix and decompose_both are both on: switch one of them off.")
        if self.full_matrix and self.tucker:
            raise InputError("full_matrix and tucker are both on: a whole w2 has no core; switch one of them off.")


def factorization(dimension: int, factor: int) -> tuple[int, int]:
    """Splits a size into two, the smaller first: (factor, rest) where that divides, else the divisors nearest the root.

    Source: LyCORIS' functional/general.py: with a factor the first size is at most that; 1280 -> (32, 40) for -1.
    """
    if factor > 0 and dimension % factor == 0:
        pair = (factor, dimension // factor)
        return min(pair), max(pair)
    limit = dimension if factor < 0 else factor
    divisors = [m for m in range(1, int(dimension**0.5) + 1) if dimension % m == 0 and m <= limit]
    return divisors[-1], dimension // divisors[-1]


@dataclass(frozen=True, kw_only=True)
class _Shape:
    """Which factors a module has."""

    w1: tuple[int, int]
    w2: tuple[int, int]
    kernel: tuple[int, ...]
    split_w1: bool
    split_w2: bool

    @property
    def whole(self) -> bool:
        return not (self.split_w1 or self.split_w2)


def _shape_of(params: LokrParams, weight_shape: tuple[int, ...], rank: int) -> _Shape:
    """Source: LyCORIS' modules/lokr.py: a factor is split where the rank is below half of its longer side."""
    out_features, in_features, *kernel = weight_shape
    out_l, out_k = factorization(out_features, params.factor)
    in_m, in_n = factorization(in_features, params.factor)
    return _Shape(
        w1=(out_l, in_m),
        w2=(out_k, in_n),
        kernel=tuple(kernel),
        split_w1=params.decompose_both and rank < max(out_l, in_m) / 2,
        split_w2=not params.full_matrix and rank < max(out_k, in_n) / 2,
    )


def size(
    params: LokrParams, weight_shape: tuple[int, ...], *, rank: int | None = None, alpha: float | None = None
) -> Size:
    """As for every network, but alpha = rank (scale 1) where both factors are whole.

    A file then names no rank, and its readers use a scale of 1.
    """
    usual = usual_size(params, weight_shape, rank=rank, alpha=alpha)
    if _shape_of(params, weight_shape, usual.rank).whole:
        return Size(rank=usual.rank, alpha=float(usual.rank))
    return usual


def init(layer: Layer, *, params: LokrParams, size: Size, generator: torch.Generator) -> dict[str, Tensor]:
    """Kaiming uniform for all factors but the last of w2, which is zeros.

    Returns:
        `lokr_w1` [out_l, in_m] or `lokr_w1_a` [out_l, r] and `lokr_w1_b` [r, in_m]; `lokr_w2` [out_k, in_n(, k, k)] or
        `lokr_w2_a` [out_k, r] and `lokr_w2_b` [r, in_n * k * k], with Tucker [r, out_k], [r, in_n] and `lokr_t2`
        [r, r, k, k].

    Source: LyCORIS' modules/lokr.py.
    """
    shape, rank = _shape_of(params, layer.shape, size.rank), size.rank
    (out_l, in_m), (out_k, in_n), kernel = shape.w1, shape.w2, shape.kernel
    parts: dict[str, Tensor] = {}
    if shape.split_w1:
        parts[W1_A] = kaiming((out_l, rank), generator)
        parts[W1_B] = kaiming((rank, in_m), generator)
    else:
        parts[W1] = kaiming((out_l, in_m), generator)
    if not shape.split_w2:
        parts[W2] = torch.zeros(out_k, in_n, *kernel)
    elif params.tucker and is_spatial(layer.shape):
        parts[T2] = kaiming((rank, rank, *kernel), generator)
        parts[W2_A] = kaiming((rank, out_k), generator)
        parts[W2_B] = torch.zeros(rank, in_n)
    else:
        taps = 1
        for length in kernel:
            taps *= length
        parts[W2_A] = kaiming((out_k, rank), generator)
        parts[W2_B] = torch.zeros(rank, in_n * taps)
    return parts


def forward(
    x: Tensor, base: Base, parts: Parts, *, params: LokrParams, scale: float, layer: Layer, training: bool
) -> Tensor:
    """base(x) + scale * w1 X w2^T; neither kron(w1, w2) nor, where its rank is low, w2 is built.

    Args:
        x: the module's input, [..., in] or [batch, in, height, width].
        base: the frozen module.
        parts: as `init` makes them.
        params: the dropouts are used.
        scale: alpha / rank.
        layer: the frozen layer.
        training: dropout acts only in training.
    """
    y = base(x)
    named = dict(zip(parts, cast(y, *parts.values()), strict=True))
    w1 = (named[W1] if W1 in named else named[W1_A] @ named[W1_B]) * scale
    x = x.to(y.dtype)
    if layer.op.kind == "linear":
        extra, axis = _linear(x, w1, named).reshape(y.shape), -1
    else:
        extra, axis = _convolved(x, w1, named, layer).reshape(y.shape), 1
    return y + dropped_change(extra, params=params, training=training, channel_axis=axis)


def _linear(x: Tensor, w1: Tensor, parts: Parts) -> Tensor:
    """[rows, out_l, out_k] of an input [..., in_m * in_n]."""
    matrix = x.reshape(-1, w1.shape[1], x.shape[-1] // w1.shape[1])
    if W2 in parts:
        return _on_the_left(w1, F.linear(matrix, parts[W2]))
    w2_a, w2_b = parts[W2_A], parts[W2_B]
    rank, longer = w2_b.shape[0], w2_a.shape[0] * w2_b.shape[1] / (w2_a.shape[0] + w2_b.shape[1])
    if rank < longer:  # two thin products for every row cost less than one with w2
        # w1 goes on the narrow matrix in between
        return F.linear(_on_the_left(w1, F.linear(matrix, w2_b)), w2_a)
    return _on_the_left(w1, F.linear(matrix, w2_a @ w2_b))


def _on_the_left(w1: Tensor, matrices: Tensor) -> Tensor:
    """W1 times every matrix of [rows, in_m, n]."""
    rows, in_m, width = matrices.shape
    if width == 1:
        return F.linear(matrices.squeeze(2), w1).unsqueeze(2)
    return torch.matmul(w1, matrices)


def _convolved(x: Tensor, w1: Tensor, parts: Parts, layer: Layer) -> Tensor:
    """[batch, out_l, out_k * height * width]: w2 on in_m groups of channels, then w1 across the groups."""
    batch, channels, height, width = x.shape
    groups = w1.shape[1]
    split = x.reshape(batch * groups, channels // groups, height, width)
    if W2 in parts:
        y = layer.apply(split, parts[W2])
    elif T2 in parts:
        low = F.conv2d(split, parts[W2_B][:, :, None, None])
        y = F.conv2d(layer.apply(low, parts[T2]), parts[W2_A].t()[:, :, None, None])
    else:
        w2_b = parts[W2_B].reshape(parts[W2_B].shape[0], channels // groups, *layer.shape[2:])
        y = F.conv2d(layer.apply(split, w2_b), parts[W2_A][:, :, None, None])
    return torch.matmul(w1, y.reshape(batch, groups, -1))


def _rank_of(parts: Parts) -> int | None:
    if W2 not in parts:
        return int(parts[W2_B].shape[0])
    return int(parts[W1_B].shape[0]) if W1 not in parts else None


def delta(
    parts: Parts, *, alpha: float | None, weight_shape: tuple[int, ...] | None, weight: Tensor | None = None
) -> Tensor:
    """The full weight change in fp32; without a rank in the file the scale is 1.

    Raises:
        FormatError: the factors do not fit each other or the base weight.

    Source: LyCORIS' file format, as ComfyUI's weight_adapter/lokr.py reads it.
    """
    named = {name: value.float() for name, value in parts.items()}
    if not (W1 in named or {W1_A, W1_B} <= named.keys()) or not (W2 in named or {W2_A, W2_B} <= named.keys()):
        raise FormatError(f"a LoKr module holds {', '.join(sorted(parts))}: w1 or w2 is missing; the file is damaged")
    rank = _rank_of(named)
    scale = 1.0 if alpha is None or rank is None else alpha / rank
    try:
        change = torch.kron(*_both(named, weight_shape)) * scale
    except RuntimeError as cause:
        shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in parts.items())
        raise FormatError(f"a LoKr module's factors do not fit each other: {shapes}") from cause
    change = shaped(change, weight_shape, what="LoKr")
    if _dora.DORA in named:
        return _dora.decomposed_change(change, named[_dora.DORA], _dora.need_weight(weight))
    return change


def _both(parts: Parts, weight_shape: tuple[int, ...] | None) -> tuple[Tensor, Tensor]:
    w1 = parts[W1] if W1 in parts else parts[W1_A] @ parts[W1_B]
    if W2 in parts:
        w2 = parts[W2]
    elif T2 in parts:
        w2 = torch.einsum("ijhw,ip,jr->prhw", parts[T2], parts[W2_A], parts[W2_B]).contiguous()
    else:
        w2 = parts[W2_A] @ parts[W2_B]
        if weight_shape is not None and len(weight_shape) == 4:
            w2 = w2.reshape(w2.shape[0], -1, *weight_shape[2:])
    return (w1.reshape(*w1.shape, *(1 for _ in w2.shape[2:])), w2)


def to_file(parts: Parts, *, layer: Layer, size: Size) -> dict[str, Tensor]:
    """With Tucker, w2 as a whole: ComfyUI fails on `lokr_t2`.

    Its torch.kron refuses the strides of the einsum before it (0.3.64, weight_adapter/lokr.py), logs an error and
    leaves the weight as it is. Where w1 is whole too, readers use a scale of 1, so the scale goes into w2.
    """
    if T2 not in parts:
        return dict(parts)
    w1, w2 = _both(parts, layer.shape)
    scale = size.scale if W1 in parts else 1.0
    kept = {name: part for name, part in parts.items() if name in (W1, W1_A, W1_B)}
    return {**kept, W2: w2 * scale}


def shrink(parts: Parts, *, scale: float, max_norm: float) -> None:
    """Multiplies w1 where the change is longer than max_norm; ||kron(w1, w2)|| = ||w1|| ||w2||."""
    with torch.no_grad():
        w1, w2 = _both({name: part.detach() for name, part in parts.items()}, None)
        norm = torch.linalg.vector_norm(w1) * torch.linalg.vector_norm(w2) * scale
        parts[W1 if W1 in parts else W1_A].data.mul_(shrink_factor(norm, max_norm))


NETWORK = Network(
    name="lokr",
    title="LoKr",
    summary="Kronecker product of two small matrices: the smallest files, or with a factor near a full change.",
    source="Edalati et al. 2022 (KronA, arXiv 2212.10650), section 3; file format of LyCORIS",
    params=LokrParams,
    part_names=(W1, W1_A, W1_B, W2, W2_A, W2_B, T2, _dora.DORA),
    required_parts=((W1,), (W1_A, W1_B), (W2,), (W2_A, W2_B)),
    init=init,
    forward=forward,
    delta=delta,
    size=size,
    rank=lambda params: int(params.rank),
    alpha=lambda params: float(params.alpha),
    rank_of=_rank_of,
    to_file=to_file,
    shrink=shrink,
    groups=usual_groups,
    fp32_parts=(_dora.DORA,),
    algo="lokr",
)
