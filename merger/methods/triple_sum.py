"""(1 - alpha - beta) A + alpha B + beta C."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.params import param
from ._shared import CONVENTION, MODEL_A, MODEL_B
from ._spec import Input, KeyContext, Method
from .sum_twice import SumTwiceParams


@dataclass(frozen=True, kw_only=True)
class TripleSumParams(SumTwiceParams):
    """The shares of B and C; A has what is left."""

    alpha: float = param(
        0.333, doc=f"Share of B; A has what B and C leave. {CONVENTION}", minimum=-2.0, maximum=2.0, step=0.05
    )
    beta: float = param(
        0.333, doc="Share of C; A has what B and C leave. 0 leaves C out, 1 is all C.", minimum=-2.0, maximum=2.0,
        step=0.05,
    )  # fmt: skip


def merge(tensors: Sequence[Tensor], params: TripleSumParams, context: KeyContext) -> Tensor:
    """One sum of three."""
    a, b, c = tensors
    total = torch.add(a * (1.0 - params.alpha - params.beta), b, alpha=params.alpha)
    return total.add_(c, alpha=params.beta)


METHOD = Method(
    name="triple_sum",
    title="Triple Sum",
    summary="Mixes three models in one sum: (1 - alpha - beta) A + alpha B + beta C",
    source="the mode Triple sum of SuperMerger; written as one sum, where it divides by alpha + beta",
    params=TripleSumParams,
    merge=merge,
    inputs=(MODEL_A, MODEL_B, Input(name="c", doc="the third model")),
    blocks=("alpha", "beta"),
    unchanged=lambda params: 0 if params.alpha == params.beta == 0.0 else None,
    shares=lambda params, count: (1.0 - params.alpha - params.beta, params.alpha, params.beta),
)
