"""DARE: drop most of every change at random and rescale what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.params import param
from ._shared import BASE, MODELS, StrengthParams, changes_of, first_if_zero, generator_of, put_on
from ._spec import BASED, KeyContext, Method


@dataclass(frozen=True, kw_only=True)
class DareParams(StrengthParams):
    """How much is dropped."""

    alpha: float = param(
        1.0, doc="How much of the mean change is added. 0 keeps the base, 1 adds all.", minimum=-4.0, maximum=4.0,
        step=0.05,
    )  # fmt: skip
    drop: float = param(
        0.9, doc="Share of every model's changes that is dropped at random.", minimum=0.0, maximum=0.99, step=0.05
    )
    seed: int = param(0, doc="Seed of what is dropped; the same seed gives the same file.", minimum=0, maximum=2**53)


def merge(tensors: Sequence[Tensor], params: DareParams, context: KeyContext) -> Tensor:
    """Base + alpha times the mean over the models of mask * change / (1 - drop)."""
    base, changes = changes_of(tensors)
    generator = generator_of(context.seed)
    total = torch.zeros_like(changes[0])
    for change in changes:
        kept = torch.rand(change.shape, generator=generator) >= params.drop
        total += torch.where(kept, change, torch.zeros_like(change))
    return put_on(base, total.div_(len(changes) * (1.0 - params.drop)), params.alpha)


METHOD = Method(
    name="dare",
    title="DARE",
    summary="Merges what several models add to a common ancestor after dropping most of it at random and rescaling",
    source="Yu et al. 2023 (Language Models are Super Mario), section 3.1, with the mean over the models, so that the "
    "expected result is that of plain averaging",
    params=DareParams,
    merge=merge,
    inputs=(BASE,),
    many=MODELS,
    result=BASED,
    min_many=1,
    whole=True,
    blocks=("alpha",),
    unchanged=first_if_zero,
    copies=10,
)
