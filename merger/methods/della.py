"""DELLA: drop changes at random, small ones more often, then elect signs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.params import param
from ._shared import BASE, MODELS, changes_of, first_if_zero, generator_of, put_on
from ._spec import BASED, KeyContext, Method
from ._ties import BY_COUNT, BY_SUM, elected_mean
from .dare import DareParams


@dataclass(frozen=True, kw_only=True)
class DellaParams(DareParams):
    """How much is dropped, and how much more of the small changes."""

    drop: float = param(
        0.7, doc="Mean share of every model's changes that is dropped.", minimum=0.0, maximum=0.99, step=0.05
    )
    spread: float = param(
        0.2,
        doc="How far the share dropped goes from the greatest change (drop - spread / 2) to the least (+ spread / 2).",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    vote: str = param(
        BY_SUM, doc="Elect the sign of every weight by the sum of the changes or by their number.",
        choices=(BY_SUM, BY_COUNT),
    )  # fmt: skip

    def __post_init__(self) -> None:
        """Refuses shares outside 0..1.

        Raises:
            InputError: drop and spread together leave 0..1.
        """
        super().__post_init__()
        if self.drop - self.spread / 2 < 0 or self.drop + self.spread / 2 >= 1:
            raise InputError(
                f"drop {self.drop:g} with spread {self.spread:g} goes from {self.drop - self.spread / 2:g} to "
                f"{self.drop + self.spread / 2:g}, allowed is from 0 to below 1; lower the spread"
            )


def merge(tensors: Sequence[Tensor], params: DellaParams, context: KeyContext) -> Tensor:
    """Base + alpha times the elected mean of the changes that were kept, each over its chance to be kept."""
    base, changes = changes_of(tensors)
    generator = generator_of(context.seed)
    kept = []
    for change in changes:
        drop = drop_chances(change, params.drop, params.spread)
        survives = torch.rand(change.shape, generator=generator) >= drop
        kept.append(torch.where(survives, change / (1.0 - drop), torch.zeros_like(change)))
    return put_on(base, elected_mean(kept, params.vote), params.alpha)


def drop_chances(change: Tensor, drop: float, spread: float) -> Tensor:
    """Chance of every change to be dropped: by its rank in magnitude over the tensor, evenly spaced around ``drop``."""
    count = change.numel()
    if count < 2 or spread == 0.0:
        return torch.full_like(change, drop)
    order = change.abs().reshape(-1).argsort(descending=True, stable=True)
    chances = torch.empty(count)
    chances[order] = drop + spread * (torch.arange(count, dtype=torch.float32) / (count - 1) - 0.5)
    return chances.reshape(change.shape)


METHOD = Method(
    name="della",
    title="DELLA",
    summary="Merges what several models add to a common ancestor; small changes are dropped more often than great ones",
    source="Deep et al. 2024 (DELLA-Merging), section 3: MagPrune with ranks over a whole tensor, elect, fuse",
    params=DellaParams,
    merge=merge,
    inputs=(BASE,),
    many=MODELS,
    result=BASED,
    min_many=1,
    whole=True,
    blocks=("alpha",),
    unchanged=first_if_zero,
    copies=14,
)
