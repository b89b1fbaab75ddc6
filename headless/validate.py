"""Checking a whole graph before anything runs, by the rules of ComfyUI's own queue.

Stricter than ComfyUI in what it would let pass silently: NaN and infinite numbers, fractions given to whole numbers,
texts given to true/false, and any fault in one output stops the others too.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import InputError, UnknownNameError, unknown_name
from .graph import Graph, Node, is_link
from .overrides import nearest_hint
from .specs import InputSpec, NodeSpec, types_fit

_MAX_SHOWN_CHOICES = 12


class GraphError(InputError):
    """One or more faults of a graph, one sentence each.

    Attributes:
        problems: the sentences.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        """Join the sentences, one to a line."""
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _Checker:
    def __init__(self, graph: Graph, specs: Mapping[str, NodeSpec], classes: Mapping[str, type]) -> None:
        self.graph = graph
        self.specs = specs
        self.classes = classes
        self.problems: list[str] = []
        self.inputs: dict[str, dict[str, Any]] = {}
        self.order: list[str] = []

    def visit(self, root: str) -> None:
        """Depth-first from an output; appends to ``order`` what must run, sources first."""
        done, path = set(self.order), [root]
        stack = [(root, iter(self._sources(root)))]
        while stack:
            node_id, sources = stack[-1]
            for source in sources:
                if source in path:
                    circle = " -> ".join([*path[path.index(source) :], source])
                    self.problems.append(
                        f"{self.graph.nodes[source].label} depends on its own output ({circle}); remove a wire."
                    )
                    raise GraphError(self.problems)
                if source not in done:
                    path.append(source)
                    stack.append((source, iter(self._sources(source))))
                    break
            else:
                stack.pop()
                path.pop()
                done.add(node_id)
                if node_id not in self.inputs:
                    self._check(self.graph.nodes[node_id])
                    self.order.append(node_id)

    def _sources(self, node_id: str) -> list[str]:
        node = self.graph.nodes[node_id]
        known = self.specs[node.class_type].inputs
        links = [value for name, value in node.inputs.items() if is_link(value) and name in known]
        return list(dict.fromkeys(str(link[0]) for link in links if self._well_formed(link)))

    def _well_formed(self, link: list[Any]) -> bool:
        return len(link) == 2 and str(link[0]) in self.graph.nodes and isinstance(link[1], int)

    def _check(self, node: Node) -> None:
        spec = self.specs[node.class_type]
        taken, types = self.inputs.setdefault(node.id, {}), {}
        own_check = getattr(self.classes.get(node.class_type), "VALIDATE_INPUTS", None)
        own_names, own_all = _arguments(own_check)
        for name, entry in spec.inputs.items():
            if name not in node.inputs:
                if entry.required:
                    what = f"a wire of type {entry.type}" if not entry.is_widget else "a value"
                    self.problems.append(f"{node.label} lacks its required input {name!r}; give it {what}.")
                continue
            value = node.inputs[name]
            if is_link(value):
                received = self._check_link(node, entry, value, skip_type="input_types" in own_names)
                if received is not None:
                    types[name], taken[name] = received, value
                continue
            problem, taken[name] = _check_value(entry, value, ranges=not own_all and name not in own_names)
            if problem:
                self.problems.append(f"{node.label}: {problem}")
        if own_check is not None:
            self._run_own_check(node, own_check, own_names, own_all, types)

    def _check_link(self, node: Node, entry: InputSpec, link: list[Any], *, skip_type: bool) -> str | None:
        if len(link) != 2 or isinstance(link[1], bool) or not isinstance(link[1], int):
            self.problems.append(
                f"{node.label} has a malformed wire at {entry.name!r}: {link!r}; a wire is [node id, output number]."
            )
            return None
        source_id, slot = str(link[0]), link[1]
        if source_id not in self.graph.nodes:
            self.problems.append(
                f"{node.label} is wired at {entry.name!r} to node {source_id}, which does not exist; wire it to a "
                f"node that does{nearest_hint(source_id, self.graph.nodes)}."
            )
            return None
        source = self.graph.nodes[source_id]
        outputs = self.specs[source.class_type].outputs
        if not 0 <= slot < len(outputs):
            self.problems.append(
                f"{node.label} is wired at {entry.name!r} to output {slot} of {source.label}, which has "
                f"{len(outputs)} outputs ({', '.join(outputs) or 'none'}); outputs count from 0."
            )
            return None
        if not skip_type and not types_fit(outputs[slot], entry.type):
            self.problems.append(
                f"{node.label} needs {entry.type} at {entry.name!r} but output {slot} of {source.label} gives "
                f"{outputs[slot]}; wire an output of type {entry.type}."
            )
            return None
        return outputs[slot]

    def _run_own_check(
        self, node: Node, check: Any, names: frozenset[str], takes_all: bool, types: Mapping[str, str]
    ) -> None:
        taken = self.inputs[node.id]
        if any(problem.startswith(node.label) for problem in self.problems):
            return
        arguments = {name: None if is_link(value) else value for name, value in taken.items()}
        given = {name: value for name, value in arguments.items() if takes_all or name in names}
        if "input_types" in names:
            given["input_types"] = dict(types)
        missing = [name for name in names if name not in given]
        for name in missing:
            entry = self.specs[node.class_type].inputs.get(name)
            if entry is not None and not entry.required and _required_argument(check, name):
                given[name] = entry.options.get("default")
        try:
            answer = check(**given)
        except InputError as cause:
            answer = str(cause)
        if answer is not True:
            self.problems.append(
                f"{node.label}: {answer if isinstance(answer, str) else 'its values do not fit together'}"
            )


def validate(
    graph: Graph, specs: Mapping[str, NodeSpec], classes: Mapping[str, type]
) -> tuple[list[str], dict[str, dict[str, Any]], list[str]]:
    """Check a graph.

    Args:
        graph: the graph.
        specs: interfaces of the known classes.
        classes: the classes themselves, for their own VALIDATE_INPUTS.

    Returns:
        (ids in the order of execution, inputs of each with values converted to their types, warnings).

    Raises:
        GraphError: everything found wrong, one sentence each.
    """
    unknown = [node for node in graph.nodes.values() if node.class_type not in specs]
    if unknown:
        raise GraphError(_unknown_class(node, specs) for node in unknown)
    roots = [node.id for node in graph.nodes.values() if specs[node.class_type].is_output]
    if not roots:
        raise GraphError(
            ["the workflow has no output node, so nothing would run; add one such as SaveImage or PreviewImage."]
        )
    checker = _Checker(graph, specs, classes)
    for root in roots:
        checker.visit(root)
    if checker.problems:
        raise GraphError(dict.fromkeys(checker.problems))
    return checker.order, checker.inputs, _warnings(graph, specs, checker.order)


def _unknown_class(node: Node, specs: Mapping[str, NodeSpec]) -> str:
    hint = nearest_hint(node.class_type, specs)
    return (
        f"{node.label} is of a class this runner does not have{hint}; replace it (`lora-atelier "
        "nodes` lists what there is), or run on a ComfyUI server that has its pack (--server URL)."
    )


def _warnings(graph: Graph, specs: Mapping[str, NodeSpec], order: list[str]) -> list[str]:
    warnings = []
    for node_id in order:
        node = graph.nodes[node_id]
        allowed = specs[node.class_type].inputs
        for name in node.inputs:
            if name not in allowed:
                warnings.append(
                    f"{node.label} has no input {name!r}, which is ignored{nearest_hint(name, allowed) or '.'}"
                )
    unused = [node.id for node in graph.nodes.values() if node.id not in order]
    if unused:
        warnings.append(f"nodes {', '.join(unused)} lead to no output node and do not run.")
    return warnings


def _arguments(function: Any) -> tuple[frozenset[str], bool]:
    if function is None:
        return frozenset(), False
    parameters = inspect.signature(function).parameters.values()
    names = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _required_argument(function: Any, name: str) -> bool:
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and parameter.default is inspect.Parameter.empty


def _check_value(entry: InputSpec, value: Any, *, ranges: bool) -> tuple[str | None, Any]:
    """The fault of a typed value as half a sentence, or None, and the value in its type."""
    if isinstance(value, Mapping) and "__value__" in value:
        value = value["__value__"]
    if not entry.is_widget and entry.type not in ("*", "STRING", "INT", "FLOAT", "BOOLEAN", "COMBO"):
        return f"{entry.name} is {_shown(value)}, but it takes a wire of type {entry.type}.", value
    problem, value = _convert(entry, value)
    if problem is None and ranges:
        problem = _out_of_range(entry, value)
    return problem, value


def _convert(entry: InputSpec, value: Any) -> tuple[str | None, Any]:
    try:
        if entry.type == "INT":
            number = _whole(value)
            if number is None:
                return f"{entry.name} is {_shown(value)}; it must be a whole number{_range_text(entry)}.", value
            return None, number
        if entry.type == "FLOAT":
            if isinstance(value, bool) or not math.isfinite(float(value)):
                return f"{entry.name} is {_shown(value)}; it must be a finite number{_range_text(entry)}.", value
            return None, float(value)
    except (TypeError, ValueError, OverflowError):
        kind = "a whole number" if entry.type == "INT" else "a number"
        return f"{entry.name} is {_shown(value)}; it must be {kind}{_range_text(entry)}.", value
    if entry.type == "STRING":
        if value is None or isinstance(value, (dict, list)):
            return f"{entry.name} is {_shown(value)}; it must be a text.", value
        return None, str(value)
    if entry.type == "BOOLEAN":
        if not isinstance(value, (bool, int)) or value not in (0, 1):
            return f"{entry.name} is {_shown(value)}; it must be true or false.", value
        return None, bool(value)
    return None, value


def _whole(value: Any) -> int | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, float):
        return int(value) if math.isfinite(value) and value == int(value) else None
    return int(value)


def _out_of_range(entry: InputSpec, value: Any) -> str | None:
    if entry.choices is not None:
        return None if value in entry.choices else _not_in_list(entry, value)
    low, high = entry.options.get("min"), entry.options.get("max")
    if entry.type in ("INT", "FLOAT") and ((low is not None and value < low) or (high is not None and value > high)):
        return f"{entry.name} is {value}; it must be a number{_range_text(entry)}."
    return None


def _not_in_list(entry: InputSpec, value: Any) -> str:
    choices = [str(choice) for choice in entry.choices or ()]
    if not choices:
        return (
            f"{entry.name} is {_shown(value)}, but there is nothing to choose from; put a file into its folder first."
        )
    if isinstance(value, str):
        error: UnknownNameError = unknown_name(entry.name, value, choices)
        return f"{error}; choose one of these."
    return f"{entry.name} is {_shown(value)}; choose one of {', '.join(choices[:_MAX_SHOWN_CHOICES])}."


def _range_text(entry: InputSpec) -> str:
    low, high = entry.options.get("min"), entry.options.get("max")
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" of at most {high}" if high is not None else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
