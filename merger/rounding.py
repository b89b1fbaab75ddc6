"""From fp32 to the type of the file: the nearest value, or one of the two neighbours by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core.tensors import torch_dtype

MANTISSA_BITS = {"F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
LEAST_EXPONENT = {"F32": -126, "F16": -14, "BF16": -126, "F8_E4M3": -6, "F8_E5M2": -14}
"""Of the smallest normal number; below it the steps stay as wide."""
_F16_SQUARED = 65504.0**2
EIGHT_BIT = ("F8_E4M3", "F8_E5M2")


def greatest(dtype: str) -> float:
    """The largest finite number of a type."""
    return float(torch.finfo(torch_dtype(dtype)).max)


def round_into(values: Tensor, out: Tensor, dtype: str, generator: torch.Generator | None = None) -> None:
    """Writes fp32 values into a tensor of the file's type.

    Args:
        values: fp32, finite and not larger than the type can hold (8-bit types are cut off at their largest).
        out: Of the type and as many elements.
        dtype: The type in the format's words.
        generator: For stochastic rounding; None takes the nearest value.
    """
    if generator is not None and dtype != "F32":
        values = stochastic(values, dtype, generator)
    if dtype in EIGHT_BIT:
        limit = greatest(dtype)
        values = values.clamp(-limit, limit)
    out.copy_(values)


def stochastic(values: Tensor, dtype: str, generator: torch.Generator) -> Tensor:
    """One of the two neighbours that the type can hold, the nearer the likelier, so that the mean is the value.

    Source: Gupta et al. 2015 (Deep Learning with Limited Numerical Precision), section 3.
    """
    _, exponent = torch.frexp(values)
    steps = torch.ldexp(
        torch.ones_like(values), exponent.sub_(1).clamp_(min=LEAST_EXPONENT[dtype]) - MANTISSA_BITS[dtype]
    )
    chance = torch.rand(values.shape, generator=generator)
    limit = greatest(dtype)
    return torch.floor(values / steps + chance).mul_(steps).clamp_(-limit, limit)


def fits(values: Tensor) -> float:
    """A bound on the greatest magnitude: not larger than fp16 holds, or exact; NaN where a value is not finite.

    A sum of squares settles most tensors in one pass; only one that is large or broken is looked at again.
    """
    flat = values.reshape(-1)
    if flat.numel() == 0:
        return 0.0
    squares = float(torch.dot(flat, flat))
    if squares < _F16_SQUARED:
        return math.sqrt(squares)
    least, most = torch.aminmax(flat)
    ends = float(least), float(most)
    return max(abs(ends[0]), abs(ends[1])) if math.isfinite(ends[0]) and math.isfinite(ends[1]) else math.nan
