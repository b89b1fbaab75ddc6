"""A model held between the least and the greatest of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.params import Params, param
from ._spec import Input, KeyContext, Method


@dataclass(frozen=True, kw_only=True)
class ClipParams(Params):
    """How narrow the bounds are."""

    stiffness: float = param(
        0.0,
        doc="0 allows everything between the least and the greatest of the bounds, 1 only what lies between the two "
        "values nearest to their mean.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )


def merge(tensors: Sequence[Tensor], params: ClipParams, context: KeyContext) -> Tensor:
    """a, cut off at the least and the greatest of the bounds."""
    a, bounds = tensors[0], tensors[1:]
    most, least = bounds[0], bounds[0]
    for bound in bounds[1:]:
        most, least = torch.maximum(most, bound), torch.minimum(least, bound)
    if params.stiffness:
        middle = torch.stack(list(bounds)).mean(dim=0)
        above, below = most, least
        for bound in bounds:
            above = torch.where((above >= bound) & (bound >= middle), bound, above)
            below = torch.where((below <= bound) & (bound <= middle), bound, below)
        most = torch.lerp(most, above, params.stiffness)
        least = torch.lerp(least, below, params.stiffness)
    return torch.minimum(torch.maximum(a, least), most)


METHOD = Method(
    name="weights_clip",
    title="Weights Clip",
    summary="Keeps every weight of a merge between the least and the greatest of the models that went into it",
    source="weights_clip of meh; clamp with stiffness of sd-mecha",
    params=ClipParams,
    merge=merge,
    inputs=(Input(name="a", doc="the merge that may have gone too far"),),
    many=Input(name="bound", doc="one of the models it must not leave"),
    copies=6,
)
