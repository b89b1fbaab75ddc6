"""(1 - beta) ((1 - alpha) A + alpha B) + beta C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.params import param
from ._shared import MODEL_A, MODEL_B, AlphaParams
from ._spec import Input, KeyContext, Method


@dataclass(frozen=True, kw_only=True)
class SumTwiceParams(AlphaParams):
    """The shares of both sums."""

    beta: float = param(
        0.5, doc="Share of C in the second sum. 0 leaves the sum of A and B, 1 is all C.", minimum=-2.0, maximum=2.0,
        step=0.05,
    )  # fmt: skip


def merge(tensors: Sequence[Tensor], params: SumTwiceParams, context: KeyContext) -> Tensor:
    """Two weighted sums, one after the other."""
    a, b, c = tensors
    return torch.lerp(torch.lerp(a, b, params.alpha), c, params.beta)


def shares(params: SumTwiceParams, count: int) -> tuple[float, ...]:
    """What is left of every model after the second sum."""
    rest = 1.0 - params.beta
    return rest * (1.0 - params.alpha), rest * params.alpha, params.beta


METHOD = Method(
    name="sum_twice",
    title="Sum Twice",
    summary="Two weighted sums at once: (1 - beta) ((1 - alpha) A + alpha B) + beta C",
    source="the mode sum Twice of SuperMerger",
    params=SumTwiceParams,
    merge=merge,
    inputs=(MODEL_A, MODEL_B, Input(name="c", doc="the model of the second sum")),
    blocks=("alpha", "beta"),
    unchanged=lambda params: 0 if params.alpha == params.beta == 0.0 else None,
    shares=shares,
)
