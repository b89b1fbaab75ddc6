"""TIES: trim, elect signs, merge those that agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.params import param
from ._shared import BASE, MODELS, StrengthParams, changes_of, first_if_zero, put_on
from ._spec import BASED, KeyContext, Method
from ._ties import BY_COUNT, BY_SUM, elected_mean, trimmed


@dataclass(frozen=True, kw_only=True)
class TiesParams(StrengthParams):
    """How much is trimmed, and how signs are elected."""

    alpha: float = param(
        1.0, doc="How much of the merged change is added. 0 keeps the base, 1 adds all.", minimum=-4.0, maximum=4.0,
        step=0.05,
    )  # fmt: skip
    keep: float = param(
        0.2, doc="Share of every model's changes that is kept, the greatest ones; 1 trims nothing.", minimum=0.0,
        maximum=1.0, step=0.05,
    )  # fmt: skip
    vote: str = param(
        BY_SUM,
        doc="Elect the sign of every weight by the sum of the changes (as in the paper) or by their number.",
        choices=(BY_SUM, BY_COUNT),
    )


def merge(tensors: Sequence[Tensor], params: TiesParams, context: KeyContext) -> Tensor:
    """Base + alpha times the mean of the trimmed changes that have the elected sign."""
    base, changes = changes_of(tensors)
    kept = [trimmed(change, params.keep) for change in changes]
    return put_on(base, elected_mean(kept, params.vote), params.alpha)


METHOD = Method(
    name="ties",
    title="TIES",
    summary="Merges what several models add to a common ancestor: small changes are dropped, then the sign is elected",
    source="Yadav et al. 2023 (TIES-Merging), algorithm 1; counting signs is ties_sum of sd-mecha",
    params=TiesParams,
    merge=merge,
    inputs=(BASE,),
    many=MODELS,
    result=BASED,
    whole=True,
    blocks=("alpha",),
    unchanged=first_if_zero,
    copies=12,
)
