"""What reading a recipe gives: one result per line that makes a model, and what is worth saying."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..expression import Model, Node
from ..plan import AS_A

OpenModel = Callable[[str], Model]
"""Name of a model in a recipe -> the model; raises what is known about a name that is not there."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One model that a recipe makes.

    Attributes:
        name: For its file, without ending; empty where the recipe gives none.
        node: How it is made.
        dtype: Number format that the recipe asks for, `plan.AS_A` where it asks for none.
    """

    name: str
    node: Node
    dtype: str = AS_A


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A recipe that was read.

    Attributes:
        kind: Whose form it is in, for people.
        results: In order; the last is what the recipe is for.
        notes: What is worth saying, one sentence each.
    """

    kind: str
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()
