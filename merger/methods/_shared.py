"""What several merge methods have in common: alpha, the common inputs, and the differences from an ancestor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.params import Params, param
from ._spec import SAME, WEIGHT, Input

CONVENTION = "0 keeps A, 1 is all of what is merged in (as in the web UI; the core merge nodes count the other way)."

MODEL_A = Input(name="a", doc="the model that is changed; 0 keeps it as it is")
MODEL_B = Input(name="b", doc="the model that is merged in")
WEIGHT_A = Input(name="a", doc="the model that is changed; 0 keeps it as it is", kind=WEIGHT)
WEIGHT_B = Input(name="b", doc="the model whose difference from c is used", kind=WEIGHT)
WEIGHT_C = Input(name="c", doc="the model b was made from", kind=WEIGHT)
BASE = Input(
    name="base",
    doc="the model all others were made from; none only if they are differences",
    kind=WEIGHT,
    optional=True,
)
MODELS = Input(name="model", doc="one of the models that are merged", kind=SAME)


@dataclass(frozen=True, kw_only=True)
class AlphaParams(Params):
    """One share."""

    alpha: float = param(0.5, doc=f"Share of B. {CONVENTION}", minimum=-2.0, maximum=2.0, step=0.05)


@dataclass(frozen=True, kw_only=True)
class StrengthParams(Params):
    """How much of a difference is added."""

    alpha: float = param(
        1.0, doc="How much of the difference is added to A. 0 keeps A, 1 adds all of it.", minimum=-4.0, maximum=4.0,
        step=0.05,
    )  # fmt: skip


def first_if_zero(params: Any) -> int | None:
    """The first model comes out as it is where alpha is 0."""
    return 0 if params.alpha == 0.0 else None


def changes_of(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, list[Tensor]]:
    """The ancestor (None if there is none) and what every other model adds to it."""
    base, models = tensors[0], [value for value in tensors[1:] if value is not None]
    return base, models if base is None else [value - base for value in models]


def put_on(base: Tensor | None, change: Tensor, alpha: float) -> Tensor:
    """The ancestor with a change, or the change itself where there is no ancestor."""
    return change * alpha if base is None else base + change * alpha


def generator_of(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)
