"""Recipes of sd-mecha (``.mecha``): one instruction a line, ``&n`` for the result of line n, the last is the result.

Source: the format 0.1.0 of sd-mecha's serialization. Its methods are read as ours where they are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ...core.errors import FormatError, InputError, unknown_name
from ..block_weights import BlockWeights
from ..expression import Merge, Model, Node
from ..methods._spec import get_method
from ._spec import OpenModel, Recipe, Result

VERSION = "version 0.1.0"
_SINGLE = "key"
"""The one key of a table that stands for a number everywhere."""
_CONSTANTS = {"null": None, "true": True, "false": False}
MAX_LINES = 5000


def read_mecha(text: str, open_model: OpenModel) -> Recipe:
    """Reads a recipe and looks its models up.

    Raises:
        FormatError: It is not of this format.
        InputError: A reference goes nowhere, or something is used that has no counterpart here.
        UnknownNameError: There is no such model or method.
    """
    lines = text.strip().splitlines()
    if not lines or lines[0].strip() != VERSION:
        raise FormatError(f"the recipe begins with {lines[0][:40] if lines else ''!r}; only {VERSION!r} is known")
    if len(lines) > MAX_LINES:
        raise FormatError(f"the recipe has {len(lines)} lines, allowed are {MAX_LINES}")
    reader = _Reader(open_model)
    for number, line in enumerate(lines[1:], start=2):
        if line.strip() and not line.strip().startswith("#"):
            try:
                reader.read(line.strip())
            except (ValueError, IndexError, TypeError) as cause:
                kind = type(cause) if isinstance(cause, (InputError, FormatError)) else FormatError
                raise kind(f"line {number} of the recipe: {cause}") from cause
    last = reader.values[-1] if reader.values else None
    if not isinstance(last, (Model, Merge)):
        raise FormatError("the recipe does not end with a model or a merge")
    return Recipe(kind="sd-mecha", results=(Result(name="", node=last),), notes=tuple(dict.fromkeys(reader.notes)))


@dataclass(frozen=True, kw_only=True)
class _Mask:
    """A train_difference_mask, which has a meaning only as a factor of B - C."""

    inputs: tuple[Node, ...]
    alpha: float


@dataclass(frozen=True, kw_only=True)
class _Perpendicular:
    """A perpendicular_component of two differences from one ancestor."""

    inputs: tuple[Node, Node]


class _Reader:
    def __init__(self, open_model: OpenModel) -> None:
        self._open = open_model
        self.values: list[Any] = []
        self.notes: list[str] = []

    def read(self, line: str) -> None:
        """One instruction."""
        command, *tokens = _tokens(line)
        given: list[Any] = []
        named: dict[str, Any] = {}
        for token in tokens:
            name, equals, value = token.partition("=")
            if equals and not token.startswith('"'):
                named[name] = self._value(value)
            else:
                given.append(self._value(token))
        if command == "dict":
            self.values.append(named)
        elif command == "literal":
            self.values.append(given[0])
        elif command == "model":
            self.values.append(self._open(str(given[0])))
        elif command == "merge":
            self.values.append(self._merge(str(given[0]), given[1:], named))
        else:
            raise FormatError(f"{command!r} is no instruction; known are dict, literal, model and merge")

    def _value(self, token: str) -> Any:
        if token in _CONSTANTS:
            return _CONSTANTS[token]
        if token.startswith("&"):
            number = int(token[1:])
            if not 0 <= number < len(self.values):
                raise InputError(f"{token} refers to an instruction that does not come before it")
            return self.values[number]
        if token.startswith('"') and token.endswith('"'):
            return token[1:-1]
        return float(token) if "." in token or "e" in token.lower() else int(token)

    def _merge(self, name: str, given: list[Any], named: Mapping[str, Any]) -> Any:
        if name.startswith(_CONVERSIONS):
            return given[0]
        if name in _PASSED:
            self.notes.append(f"{name} of sd-mecha is passed over: it is done here anyway")
            return given[0]
        if name not in _METHODS:
            raise unknown_name("merge method of sd-mecha that has a counterpart here", name, _METHODS)
        return _METHODS[name](given, dict(named))


def _node(value: Any) -> Node:
    if not isinstance(value, (Model, Merge)):
        raise InputError(f"{value!r} stands where a model belongs")
    return value


def _factor(value: Any) -> tuple[float, BlockWeights | None]:
    """A number, or block weights by row."""
    if isinstance(value, Mapping) and set(value) == {_SINGLE}:
        value = value[_SINGLE]
    if isinstance(value, Mapping):
        rows = " ".join(f"{name}={float(number):g}" for name, number in value.items())
        return float(value.get("BASE", 0.0)), BlockWeights(text=rows)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{value!r} stands where a number or a dict of blocks belongs")
    return float(value), None


def _with_alpha(method: str, inputs: tuple[Node | None, ...], alpha: Any, **params: Any) -> Merge:
    number, weights = _factor(alpha)
    return Merge(
        method=method,
        inputs=inputs,
        params=get_method(method).params.from_json({"alpha": number, **params}),
        weights=() if weights is None else (("alpha", weights),),
    )


def _plain(method: str, count: int | None = None) -> Callable[[list[Any], dict[str, Any]], Merge]:
    def build(given: list[Any], named: dict[str, Any]) -> Merge:
        inputs = tuple(_node(value) for value in (given if count is None else given[:count]))
        return Merge(method=method, inputs=inputs, params=get_method(method).params())

    return build


def _alpha_of(given: list[Any], named: Mapping[str, Any], place: int, default: float) -> Any:
    return given[place] if len(given) > place else named.get("alpha", default)


def _blend(method: str, default: float, **params: Any) -> Callable[[list[Any], dict[str, Any]], Merge]:
    def build(given: list[Any], named: dict[str, Any]) -> Merge:
        alpha = _alpha_of(given, named, 2, default)
        return _with_alpha(method, (_node(given[0]), _node(given[1])), alpha, **params)

    return build


def _add(given: list[Any], named: dict[str, Any]) -> Merge:
    a, change = _node(given[0]), given[1]
    alpha = _alpha_of(given, named, 2, 1.0)
    if isinstance(change, _Perpendicular):
        own, other = change.inputs
        if isinstance(own, Merge) and isinstance(other, Merge) and own.method == other.method == "difference":
            (first, ancestor), (second, same) = own.inputs, other.inputs
            if first == a and ancestor == same:
                return _with_alpha("perpendicular_add", (a, second, ancestor), alpha)
        raise InputError("perpendicular_component is read only as A plus the part of B - C that A - C has not")
    if isinstance(alpha, _Mask):
        inside = _node(change)
        if isinstance(inside, Merge) and inside.method == "difference" and alpha.inputs[:2] == (a, inside.inputs[0]):
            return _with_alpha("train_difference", (a, *inside.inputs), alpha.alpha)
        raise InputError("train_difference_mask is read only as the factor of B - C on A")
    return _with_alpha("add_delta", (a, _node(change)), alpha)


def _mask(given: list[Any], named: dict[str, Any]) -> _Mask:
    alpha, _ = _factor(_alpha_of(given, named, 3, 1.0))
    return _Mask(inputs=tuple(_node(value) for value in given[:3]), alpha=alpha)


def _ties(given: list[Any], named: dict[str, Any]) -> Merge:
    params: dict[str, Any] = {
        "keep": float(named.get("k", 1.0)),
        "vote": "sum" if named.get("vote_sgn", False) else "count",
    }
    inputs = (None, *(_node(value) for value in given))
    return Merge(method="ties", inputs=inputs, params=get_method("ties").params.from_json({"alpha": 1.0, **params}))


def _stock(given: list[Any], named: dict[str, Any]) -> Merge:
    inputs = (None, *(_node(value) for value in given))
    return Merge(method="model_stock", inputs=inputs, params=get_method("model_stock").params.from_json({"per": "row"}))


def _slice(given: list[Any], named: dict[str, Any]) -> Merge:
    width = float(given[2] if len(given) > 2 else named.get("width", 0.5))
    start = float(given[3] if len(given) > 3 else named.get("offset", 0.0))
    return Merge(
        method="tensor_slice",
        inputs=(_node(given[0]), _node(given[1])),
        params=get_method("tensor_slice").params.from_json({"alpha": width, "beta": start}),
    )


def _clip(given: list[Any], named: dict[str, Any]) -> Merge:
    params = get_method("weights_clip").params.from_json({"stiffness": float(named.get("stiffness", 0.0))})
    return Merge(method="weights_clip", inputs=tuple(_node(value) for value in given), params=params)


_CONVERSIONS = ("convert_",)
"""Changes of a number's or a file's form, which need no counterpart."""
_PASSED = ("cast", "omit_non_finite", "fallback")
_METHODS: Mapping[str, Callable[[list[Any], dict[str, Any]], Any]] = {
    "weighted_sum": _blend("weighted_sum", 0.5),
    "slerp": _blend("slerp", 0.5),
    "add_cosine_a": _blend("cosine_a", 1.0, spread=False),
    "add_cosine_b": _blend("cosine_b", 1.0, spread=False),
    "n_average": _plain("n_average"),
    "geometric_median": _plain("geometric_median"),
    "subtract": _plain("difference", 2),
    "add_difference": _add,
    "train_difference_mask": _mask,
    "perpendicular_component": lambda given, named: _Perpendicular(inputs=(_node(given[0]), _node(given[1]))),
    "ties_sum": _ties,
    "model_stock": _stock,
    "tensor_sum": _slice,
    "clamp": _clip,
}


def _tokens(line: str) -> list[str]:
    """Words separated by spaces; quoted ones keep their quotes, a backslash takes the next character as it is."""
    tokens: list[str] = []
    word: list[str] = []
    prefix: list[str] = []
    quoted = escaped = False
    for char in line:
        if escaped:
            escaped = False
            word.append(char)
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted = not quoted
            if quoted:
                prefix, word = word, []
            else:
                tokens.append(f'{"".join(prefix)}"{"".join(word)}"')
                prefix, word = [], []
        elif char == " " and not quoted:
            if word:
                tokens.append("".join(word))
            word = []
        else:
            word.append(char)
    if quoted:
        raise FormatError("a quote is not closed")
    if word:
        tokens.append("".join(word))
    return tokens
