"""Model Stock: how far the mean of fine-tuned models is trusted, from the angle between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from ...core.params import Params, param
from ._shared import BASE, MODELS, changes_of, put_on
from ._spec import BASED, KeyContext, Method

PER_TENSOR, PER_ROW = "tensor", "row"


@dataclass(frozen=True, kw_only=True)
class StockParams(Params):
    """What one angle is taken of."""

    per: str = param(
        PER_TENSOR,
        doc="One angle for every tensor, as in the paper, or one for every row, as sd-mecha does.",
        choices=(PER_TENSOR, PER_ROW),
    )


def merge(tensors: Sequence[Tensor], params: StockParams, context: KeyContext) -> Tensor:
    """Base + t times the mean change, t = n cos / (1 + (n - 1) cos); opposite changes count as unrelated."""
    base, changes = changes_of(tensors)
    mean = torch.stack(list(changes)).mean(dim=0)
    by_row = params.per == PER_ROW and mean.ndim > 0
    flat = [change if by_row else change.reshape(-1) for change in changes]
    pairs = [cosine_similarity(one, other, dim=-1, eps=1e-6) for one, other in itertools.combinations(flat, 2)]
    cosine = torch.stack(pairs).mean(dim=0).clamp(min=0.0)
    count = len(changes)
    trust = count * cosine / (1.0 + (count - 1) * cosine)
    return put_on(base, mean * (trust.unsqueeze(-1) if by_row else trust), 1.0)


METHOD = Method(
    name="model_stock",
    title="Model Stock",
    summary="The mean of fine-tuned models, drawn towards their ancestor the more they disagree",
    source="Jang et al. 2024 (Model Stock), equations 3 and 6, the cosine averaged over all pairs; per row as "
    "model_stock of sd-mecha",
    params=StockParams,
    merge=merge,
    inputs=(BASE,),
    many=MODELS,
    result=BASED,
    whole=True,
    copies=10,
)
