"""A merge of one key as a straight list of steps: what is read, then one method after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..core.seeds import derive
from .block_weights import ResolvedRows
from .expression import Merge, Model, Node, walk
from .inputs import OpenModel, Place
from .methods._spec import KeyContext, Method


@dataclass(frozen=True, kw_only=True)
class Step:
    """One method at work on one key.

    Attributes:
        method: Which.
        inputs: Numbers of the values it takes (sources first, then the results of earlier steps), None for none.
        params: Its parameters for this key.
        context: What it may know of the key.
    """

    method: Method
    inputs: tuple[int | None, ...]
    params: Any
    context: KeyContext

    def run(self, values: Sequence[Tensor]) -> Tensor:
        """The method's result, fp32."""
        return self.method.merge(
            [None if number is None else values[number] for number in self.inputs], self.params, self.context
        )


@dataclass(frozen=True, kw_only=True)
class Program:
    """All of one key.

    Attributes:
        sources: What is read, each once.
        steps: What is done with it; without any the one source is taken as it is.
    """

    sources: tuple[Place, ...]
    steps: tuple[Step, ...]

    @property
    def whole(self) -> bool:
        """Whether some method must see the whole tensor."""
        return any(step.method.whole for step in self.steps)

    @property
    def copies(self) -> int:
        """Tensors of the key's size that may be held at once, the sources included."""
        return len(self.sources) + len(self.steps) + max((step.method.copies for step in self.steps), default=1)

    def run(self, sources: Sequence[Tensor]) -> Tensor:
        """The result of fp32 sources of one shape."""
        values = list(sources)
        for step in self.steps:
            values.append(step.run(values))
        return values[-1]


Rows = Mapping[tuple[int, str], ResolvedRows]
"""Block weights by the node's id and the parameter's name."""


class Programs:
    """Writes the program of every key of one merge."""

    def __init__(self, root: Node, models: Mapping[Model, OpenModel], family: str) -> None:
        """Resolves all block weights.

        Raises:
            InputError: Block weights do not fit the family.
        """
        self.root = root
        self._models = models
        self._order = list(walk(root))
        self.rows: Rows = {
            (id(node), name): weights.resolve(family, float(getattr(node.params, name)))
            for node in self._order
            if isinstance(node, Merge)
            for name, weights in node.weights
        }
        self.surveys: dict[int, Any] = {}

    def surveyed(self) -> list[Merge]:
        """The nodes that want a first pass, in the order in which they can have it."""
        return [node for node in self._order if isinstance(node, Merge) and node.spec.survey is not None]

    def of(self, key: str, root: Node | None = None) -> Program | None:
        """The program of a key, None where no model has it.

        A node one of whose models lacks the key gives its first model's value, as it is.
        """
        writer = _Writer(self, key)
        place = writer.value(self.root if root is None else root)
        return None if place is None else writer.program(place)

    def inputs_of(self, node: Merge, key: str) -> tuple[Step, Program] | None:
        """A node's own step on a key and the program that ends with it; None where it is not at work there."""
        program = self.of(key, node)
        if program is None or not program.steps or program.steps[-1].method is not node.spec:
            return None
        return program.steps[-1], program

    def place(self, model: Model, key: str) -> Place | None:
        """Where a model has a key."""
        return self._models[model].places.get(key)

    def params_of(self, node: Merge, key: str) -> Any:
        """A node's parameters for a key."""
        if not node.weights:
            return node.params
        return replace(node.params, **{name: self.rows[id(node), name].of(key) for name, _ in node.weights})


class _Writer:
    def __init__(self, programs: Programs, key: str) -> None:
        self._programs = programs
        self._key = key
        self._sources: dict[tuple[int, str], tuple[int, Place]] = {}
        self._steps: list[tuple[Step, int]] = []
        self._known: dict[int, Any] = {}

    def value(self, node: Node) -> Any:
        """A source (its number) or a step's result, None where the node has no value for the key."""
        if id(node) not in self._known:
            self._known[id(node)] = self._source(node) if isinstance(node, Model) else self._merge(node)
        return self._known[id(node)]

    def _source(self, model: Model) -> tuple[str, int] | None:
        place = self._programs.place(model, self._key)
        if place is None:
            return None
        number, _ = self._sources.setdefault((id(place.reader), place.key), (len(self._sources), place))
        return ("source", number)

    def _merge(self, node: Merge) -> Any:
        spec, params = node.spec, self._programs.params_of(node, self._key)
        kept = spec.unchanged(params)
        if kept is not None and node.inputs[kept] is not None:
            return self.value(node.inputs[kept])  # type: ignore[arg-type]
        values = [None if child is None else self.value(child) for child in node.inputs]
        given = [value for value, child in zip(values, node.inputs, strict=True) if child is not None]
        if any(value is None for value in given):
            return next((value for value in given if value is not None), None)
        context = KeyContext(
            key=self._key,
            seed=derive(int(getattr(params, "seed", 0)), "merge", node.method, self._key),
            survey=self._programs.surveys.get(id(node)),
        )
        self._steps.append((Step(method=spec, inputs=tuple(values), params=params, context=context), len(self._steps)))
        return ("step", len(self._steps) - 1)

    def program(self, result: tuple[str, int]) -> Program:
        """Only what the result needs, numbered: sources first, then steps in order."""
        needed = self._needed(result)
        sources = sorted(number for kind, number in needed if kind == "source")
        steps = sorted(number for kind, number in needed if kind == "step")
        numbers = {("source", old): new for new, old in enumerate(sources)}
        numbers.update({("step", old): len(sources) + new for new, old in enumerate(steps)})
        by_number = {number: place for number, place in self._sources.values()}
        return Program(
            sources=tuple(by_number[number] for number in sources),
            steps=tuple(
                replace(step, inputs=tuple(None if value is None else numbers[value] for value in step.inputs))  # type: ignore[index]
                for step in (self._steps[number][0] for number in steps)
            ),
        )

    def _needed(self, result: tuple[str, int]) -> set[tuple[str, int]]:
        found: set[tuple[str, int]] = set()
        waiting = [result]
        while waiting:
            value = waiting.pop()
            if value in found:
                continue
            found.add(value)
            if value[0] == "step":
                waiting += [child for child in self._steps[value[1]][0].inputs if child is not None]  # type: ignore[misc]
        return found
