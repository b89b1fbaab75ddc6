"""What a merge method is: one formula over the tensors of one key, which knows nothing of files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from torch import Tensor

from ...core.discovery import discover
from ...core.errors import InputError, unknown_name
from ...core.params import Params

WEIGHT, DELTA, SAME, BASED = "weight", "delta", "same", "based"
"""Kinds of a tensor: a model's own weight, the difference of two weights, whichever the first such input is; and of a
result: a weight where the first input, the ancestor, is given, else a difference."""

KIND_WORDS = {WEIGHT: "a model", DELTA: "a difference of two models"}

MAX_MODELS = 8
"""Models that a method with a free number of them takes in one node."""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One model that goes into a method.

    Attributes:
        name: On the node and in recipes.
        doc: What it is.
        kind: `WEIGHT`, `DELTA` or `SAME`.
        optional: Whether it may be left out; it is then None among the tensors.
    """

    name: str
    doc: str
    kind: str = SAME
    optional: bool = False


@dataclass(frozen=True, kw_only=True)
class KeyContext:
    """What a method may know of the key besides its tensors.

    Attributes:
        key: Name of the tensor in the checkpoint.
        seed: Of this key, for methods that draw at random.
        survey: What the method's own survey of all keys concluded; None where it has none.
    """

    key: str
    seed: int = 0
    survey: Any = None


Merge = Callable[[Sequence[Any], Any, KeyContext], Tensor]


@dataclass(frozen=True, kw_only=True)
class Survey:
    """A first pass over all keys of which the second needs to know the whole.

    Attributes:
        look: Tensors of a key, parameters and context -> a flat float64 tensor of observations.
        conclude: All observations -> what `KeyContext.survey` is in the second pass.
        concerns: Whether a key takes part.
    """

    look: Callable[[Sequence[Any], Any, KeyContext], Tensor]
    conclude: Callable[[Sequence[Tensor]], Any]
    concerns: Callable[[str], bool]


@dataclass(frozen=True, kw_only=True)
class Method:
    """One merge method; a file of this folder exports one as ``METHOD``.

    Attributes:
        name: The file's name.
        title: For people.
        summary: One sentence.
        source: Paper and equation, or the tool whose method it is, and where we depart from it.
        params: Its parameters.
        merge: Tensors in the order of the inputs (fp32, never to be changed in place), parameters, context -> fp32.
        inputs: The models it always takes, in order.
        many: The models it takes any number of, behind the others; None where the number is fixed.
        min_many: The least number of those.
        result: Kind of the result; `BASED` for methods that work on what models add to their first input.
        whole: Whether it must see a whole tensor; else it is given pieces of any size, flat.
        blocks: Parameters that may differ from block to block; the first is what block weights set by default.
        unchanged: Index of the input that comes out as it is for these parameters, None where none does.
        shares: Factor of every input where the method is linear in them; None where it is not.
        copies: Tensors of the key's size in fp32 that it holds at most besides its inputs, for the memory budget.
        survey: A first pass, where it needs one.
    """

    name: str
    title: str
    summary: str
    source: str
    params: type[Params]
    merge: Merge
    inputs: tuple[Input, ...]
    many: Input | None = None
    min_many: int = 2
    result: str = SAME
    whole: bool = False
    blocks: tuple[str, ...] = ()
    unchanged: Callable[[Any], int | None] = lambda params: None
    shares: Callable[[Any, int], tuple[float, ...] | None] = lambda params, count: None
    copies: int = 2
    survey: Survey | None = None

    def check_kinds(self, name: str, kinds: Sequence[str | None]) -> str:
        """Returns the kind of the result.

        Args:
            name: Of the method, for errors.
            kinds: Of the models given, None for one left out.

        Raises:
            InputError: Too few or too many models, a difference where a model belongs or the other way round.
        """
        wanted = [*self.inputs, *([self.many] * (len(kinds) - len(self.inputs)) if self.many else [])]
        least = len(self.inputs) + (self.min_many if self.many else 0)
        if len(kinds) < least or len(kinds) > len(wanted):
            raise InputError(f"{name} takes {self._count_words()}, given were {len(kinds)}")
        same: str | None = None
        for given, place in zip(kinds, wanted, strict=True):
            if given is None:
                if not place.optional:
                    raise InputError(f"{name} lacks its model {place.name} ({place.doc}); connect or name one")
                continue
            if place.kind == SAME:
                same = same or given
                if given != same:
                    raise InputError(
                        f"{name} is given {KIND_WORDS[same]} and, as {place.name}, {KIND_WORDS[given]}; they cannot be "
                        "mixed: add the difference to a model first (add_delta), or take models only"
                    )
            elif given != place.kind:
                raise InputError(
                    f"{name} needs {KIND_WORDS[place.kind]} as {place.name}, and was given {KIND_WORDS[given]}; "
                    + ("add it to a model with add_delta first" if given == DELTA else "make one with difference first")
                )
        if self.result == BASED:
            return _based(name, kinds[0], same or WEIGHT)
        return (same or WEIGHT) if self.result == SAME else self.result

    def _count_words(self) -> str:
        names = ", ".join(place.name for place in self.inputs)
        if self.many is None:
            return f"{len(self.inputs)} models ({names})"
        return f"{names and names + ' and '}{self.min_many} or more models"


def _based(name: str, base: str | None, models: str) -> str:
    """Kind of the result of a method of changes.

    Raises:
        InputError: Models without their ancestor, or an ancestor beside differences.
    """
    if base is None and models == WEIGHT:
        raise InputError(f"{name} works on what models add to their common ancestor; connect or name it as base")
    if base is not None and models == DELTA:
        raise InputError(f"{name} is given a base and differences of models; give the models themselves, or no base")
    return DELTA if base is None else WEIGHT


@lru_cache(maxsize=1)
def methods() -> Mapping[str, Method]:
    """Every merge method by its name."""
    return discover(__package__, "METHOD")


def get_method(name: str) -> Method:
    """A merge method by its name.

    Raises:
        UnknownNameError: There is none of this name.
    """
    if name not in methods():
        raise unknown_name("merge method", name, methods())
    return methods()[name]
