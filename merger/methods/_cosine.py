"""Merging by how alike two models are, column by column."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from ...core.params import param
from ._shared import AlphaParams
from ._spec import KeyContext, Survey

TAIL_PERCENT = 1.0
"""Observations cut off at each end before the least and the greatest are taken."""
VAE_PREFIX = "first_stage_model."


@dataclass(frozen=True, kw_only=True)
class CosineParams(AlphaParams):
    """How alike counts."""

    alpha: float = param(
        0.0,
        doc="Taken off the similarity, which is A's share: 0 keeps A where the models are alike and takes B where they "
        "differ, 1 takes all B.",
        minimum=-1.0,
        maximum=1.0,
        step=0.05,
    )
    spread: bool = param(
        True,
        doc="Stretch the similarities of the whole model to 0..1 first, as SuperMerger does; off is sd-mecha's way.",
    )


def columns(a: Tensor, b: Tensor) -> Tensor:
    """Similarity of each column (over the first axis), shape of a without it."""
    return cosine_similarity(a, b, dim=0)


def at_large(a: Tensor, b: Tensor) -> Tensor:
    """Similarity of the whole tensors."""
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    lengths: Tensor = torch.linalg.vector_norm(flat_a) * torch.linalg.vector_norm(flat_b)
    return torch.dot(flat_a, flat_b) / lengths


def of_unit_columns(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both with every column at length 1."""
    return normalize(a, p=2.0, dim=0), normalize(b, p=2.0, dim=0)


def mix(
    tensors: Sequence[Tensor], params: CosineParams, context: KeyContext, similarity: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """B and A by how alike they are: k A + (1 - k) B, k the similarity less alpha, within 0..1."""
    a, b = tensors
    if a.ndim == 0 or context.key.startswith(VAE_PREFIX):
        return a
    k = similarity(a, b)
    if params.spread and context.survey is not None:
        least, greatest = context.survey
        k = (k - least) / (greatest - least) if greatest > least else k
    k = torch.nan_to_num(k - params.alpha, nan=1.0).clamp(0.0, 1.0)
    return torch.lerp(b, a, k)


def survey(similarity: Callable[[Tensor, Tensor], Tensor]) -> Survey:
    """The least and the greatest similarity of a model, without the tails."""

    def look(tensors: Sequence[Tensor], params: CosineParams, context: KeyContext) -> Tensor:
        a, b = tensors
        if not params.spread or a.ndim == 0:
            return torch.empty(0, dtype=torch.float64)
        seen = similarity(a, b).reshape(-1).double()
        return seen[~seen.isnan()]

    return Survey(look=look, conclude=bounds, concerns=lambda key: not key.startswith(VAE_PREFIX))


def bounds(observations: Sequence[Tensor]) -> tuple[float, float] | None:
    """The least and the greatest after 1 % was cut off at either end; None without observations."""
    seen = np.concatenate([part.numpy() for part in observations]) if observations else np.empty(0)
    if not seen.size:
        return None
    seen = seen[seen >= np.percentile(seen, TAIL_PERCENT, method="midpoint")]
    seen = seen[seen <= np.percentile(seen, 100.0 - TAIL_PERCENT, method="midpoint")]
    return float(seen.min()), float(seen.max())
