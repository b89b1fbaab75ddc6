"""The point with the least sum of distances to all models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.params import Params, param
from ._shared import MODELS
from ._spec import KeyContext, Method

LEAST_DISTANCE = 1e-6
LEAST_CHANGE = 1e-20


@dataclass(frozen=True, kw_only=True)
class MedianParams(Params):
    """How long it is looked for."""

    iterations: int = param(100, doc="Steps of Weiszfeld's method at most.", minimum=1, maximum=1000)


def merge(tensors: Sequence[Tensor], params: MedianParams, context: KeyContext) -> Tensor:
    """Weiszfeld's steps: every model weighs one over its distance to the median so far."""
    weights = torch.ones(len(tensors))
    median = _average(tensors, weights)
    objective = _distances(tensors, median).mean()
    for _ in range(params.iterations):
        before = objective
        weights = 1.0 / _distances(tensors, median).clamp(min=LEAST_DISTANCE)
        median = _average(tensors, weights)
        objective = _distances(tensors, median).mean()
        if abs(before - objective) <= LEAST_CHANGE * objective:
            break
    return median


def _average(points: Sequence[Tensor], weights: Tensor) -> Tensor:
    total = torch.zeros_like(points[0])
    for point, weight in zip(points, (weights / weights.sum()).tolist(), strict=True):
        total.add_(point, alpha=weight)
    return total


def _distances(points: Sequence[Tensor], median: Tensor) -> Tensor:
    return torch.stack([torch.dist(point, median) for point in points])


METHOD = Method(
    name="geometric_median",
    title="Geometric Median",
    summary="The tensor nearest to all models together; one odd model among many hardly counts",
    source="Weiszfeld 1937; Pillutla et al. 2022 (Robust Aggregation), algorithm 2; geometric_median of sd-mecha",
    params=MedianParams,
    merge=merge,
    inputs=(),
    many=MODELS,
    whole=True,
    copies=3,
)
