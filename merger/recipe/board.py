"""Recipes as lines ``OUT = A + B[ + C], M[, fp16][, ckpt|safetensors]``, the form of a published merge log.

Source: the recipe text of Merge Board (bbc-mc), its parser and its README. Two models are a weighted sum with the share
M of B, three are A + M (B - C). ``#`` begins a comment, ``__O1__`` is the result of the first line, ``__NAME__`` a
variable, and a line ``__NAME__, text`` says what is to be put in. Beyond that an earlier line's result may be called by
its own name, and there may be more than ten lines.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import AtelierError, InputError, UnknownNameError
from ..expression import Merge, Node
from ..methods._spec import get_method
from ..plan import AS_A
from ._spec import OpenModel, Recipe, Result

MAX_LANES = 100
FORMATS = ("ckpt", "safetensors")
HALF = "fp16"
_OWN_NUMBER = re.compile(r"^__O(\d+)__$")
_VARIABLE = re.compile(r"^__(\w+?)__$")
_DOCUMENTED = re.compile(r"^(__\w+?__)\s*,\s*(.*)$")
_FORBIDDEN = re.compile(r'[\\|:?"<>*]')
_ENDINGS = (".safetensors", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One line that makes a model.

    Attributes:
        number: Counted from 1 over such lines.
        line: Line of the text, counted from 1.
        out: Name of the result; composed where the line gives none.
        models: Two or three names.
        share: M.
        half: Whether fp16 is asked for.
        ending: ``ckpt`` or ``safetensors`` where one is asked for, else empty.
    """

    number: int
    line: int
    out: str
    models: tuple[str, ...]
    share: float
    half: bool
    ending: str

    @property
    def where(self) -> str:
        """For messages."""
        return f"line {self.line} of the recipe"


@dataclass(frozen=True, kw_only=True)
class Board:
    """A text that was read, not yet looked up.

    Attributes:
        lanes: The lines that make models.
        documented: What the text says of its variables.
        variables: Those that it uses, except results of lines.
    """

    lanes: tuple[Lane, ...]
    documented: Mapping[str, str]
    variables: tuple[str, ...]


def parse_board(text: str) -> Board:
    """Reads the lines.

    Raises:
        InputError: A line is not of the form; the line and what is wrong are named.
    """
    lanes: list[Lane] = []
    documented: dict[str, str] = {}
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        line = raw.split("#")[0].strip()
        if not line:
            continue
        if line.startswith("_"):
            found = _DOCUMENTED.match(line)
            if found is None:
                raise InputError(
                    f"line {number} of the recipe begins with '_' but is not '__NAME__, what to put in' (a result's "
                    f"name cannot begin with '_'): {line[:60]}"
                )
            documented[found[1]] = found[2].strip()
            continue
        if len(lanes) >= MAX_LANES:
            raise InputError(f"the recipe has more than {MAX_LANES} lines that make models; split it")
        lanes.append(_lane(line, number, len(lanes) + 1))
    if not lanes:
        raise InputError("the recipe has no line that makes a model; write for example: OUT = A + B, 0.5, fp16")
    used = dict.fromkeys(name for lane in lanes for name in lane.models if _is_variable(name))
    return Board(lanes=tuple(lanes), documented=documented, variables=tuple(used))


def _lane(line: str, number: int, lane: int) -> Lane:
    where = f"line {number} of the recipe"
    form = "OUT = A + B[ + C], M[, fp16][, ckpt|safetensors]"
    out, equals, right = line.partition("=")
    fields = [field.strip() for field in right.split(",")]
    if not equals or len(fields) < 2:
        raise InputError(f"{where} is not of the form {form}: {line[:80]}")
    models = tuple(_split_models(fields[0]))
    if len(models) not in (2, 3) or not all(models):
        raise InputError(f"{where} names {len([m for m in models if m])} models, a line takes two or three: {form}")
    try:
        share = float(fields[1])
    except ValueError as cause:
        raise InputError(f"{where} has {fields[1]!r} where the number M belongs: {form}") from cause
    options = [field.lower() for field in fields[2:] if field]
    for option in options:
        if option not in (HALF, *FORMATS):
            raise InputError(f"{where} has the option {option!r}; allowed are {', '.join((HALF, *FORMATS))}")
    ending = next((option for option in options if option in FORMATS), "")
    name = _FORBIDDEN.sub("-", out.strip())
    for known in _ENDINGS:
        name = name[: -len(known)] if name.lower().endswith(known) else name
    return Lane(
        number=lane,
        line=number,
        out=name or _composed(models, share),
        models=models,
        share=share,
        half=HALF in options,
        ending=ending,
    )


def _split_models(text: str) -> list[str]:
    """A plus with spaces separates; a bare one only where there is none with spaces, so that names may hold one."""
    parts = text.split(" + ")
    return [part.strip() for part in (parts if len(parts) > 1 else text.split("+"))]


def _composed(models: tuple[str, ...], share: float) -> str:
    """The name the web UI gives a merge that has none."""
    method = "Weighted_sum" if len(models) == 2 else "Add_difference"
    return _FORBIDDEN.sub("-", f"{models[0]}_{round(1 - share, 2)}-{models[1]}_{round(share, 2)}-{method}-merged")


def _is_variable(name: str) -> bool:
    return _VARIABLE.match(name) is not None and _OWN_NUMBER.match(name) is None


def read_board(
    text: str,
    open_model: OpenModel,
    variables: Mapping[str, str] | None = None,
    wired: Mapping[str, Node] | None = None,
) -> Recipe:
    """Reads lines and looks their models up.

    Args:
        text: The lines.
        open_model: Opens a checkpoint by its name.
        variables: What is put in for ``__NAME__``, by the name with or without the underscores.
        wired: Models or merges that stand for variables, by the name without the underscores.

    Raises:
        InputError: A line is wrong, refers to itself or to a later one, or a variable has no value.
        UnknownNameError: There is no such model.
    """
    board = parse_board(text)
    values = {name.strip().strip("_"): value.strip() for name, value in (variables or {}).items()}
    builder = _Builder(board, values, wired or {}, open_model)
    results = [builder.result(lane) for lane in board.lanes]
    return Recipe(kind="lines", results=tuple(results), notes=tuple(builder.notes))


class _Builder:
    def __init__(
        self, board: Board, values: Mapping[str, str], wired: Mapping[str, Node], open_model: OpenModel
    ) -> None:
        self._board = board
        self._values = values
        self._wired = wired
        self._open = open_model
        self._done: list[Node] = []
        self.notes: list[str] = []

    def result(self, lane: Lane) -> Result:
        """One line's model."""
        nodes = tuple(self._node(name, lane) for name in lane.models)
        method = "weighted_sum" if len(nodes) == 2 else "add_difference"
        try:
            params = get_method(method).params.from_json({"alpha": lane.share})
        except InputError as cause:
            raise InputError(f"{lane.where}: M of {cause}") from cause
        node = Merge(method=method, inputs=nodes, params=params, label=lane.out)
        self._done.append(node)
        if lane.ending == "ckpt":
            self.notes.append(
                f"{lane.where} asks for ckpt: {lane.out}.safetensors is written instead, because a .ckpt file can run "
                "code when it is opened"
            )
        return Result(name=lane.out, node=node, dtype="fp16" if lane.half else AS_A)

    def _node(self, name: str, lane: Lane) -> Node:
        found = _OWN_NUMBER.match(name)
        if found is not None:
            return self._numbered(int(found[1]), name, lane)
        if _is_variable(name):
            if name.strip("_") in self._wired:
                return self._wired[name.strip("_")]
            name = self._value(name, lane)
        earlier = [other for other in self._board.lanes[: lane.number - 1] if other.out == _plain(name)]
        if earlier:
            return self._done[earlier[-1].number - 1]
        try:
            return self._open(name)
        except UnknownNameError as cause:
            self._explain_later(name, lane, cause)
            raise UnknownNameError(f"{lane.where}: {cause}") from cause
        except AtelierError as cause:
            raise type(cause)(f"{lane.where}: {cause}") from cause

    def _numbered(self, number: int, name: str, lane: Lane) -> Node:
        if not 1 <= number < lane.number:
            what = "itself" if number == lane.number else f"line {number}, which does not come before it"
            known = f"; there are {', '.join(f'__O{i}__' for i in range(1, lane.number))}" if lane.number > 1 else ""
            raise InputError(f"{lane.where} refers with {name} to {what}; a merge cannot go into itself{known}")
        return self._done[number - 1]

    def _value(self, name: str, lane: Lane) -> str:
        value = self._values.get(name.strip("_"), "")
        if not value:
            told = self._board.documented.get(name, "")
            hint = f" ({told})" if told else ""
            raise InputError(
                f"{lane.where} uses the variable {name}{hint}, which has no value; give it one as {name.strip('_')} = "
                "name of a model"
            )
        return value

    def _explain_later(self, name: str, lane: Lane, cause: UnknownNameError) -> None:
        for other in self._board.lanes[lane.number - 1 :]:
            if other.out == _plain(name):
                what = "itself" if other.number == lane.number else f"the result of line {other.line}, a later one"
                raise InputError(f"{lane.where} refers to {what} ({name}); a merge cannot go into itself") from cause


def _plain(name: str) -> str:
    for ending in _ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
