"""``--set NODE.INPUT=VALUE``: changing values of a graph by node id, title or class name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from ..core.errors import InputError, nearest_names, unknown_name
from .graph import Graph, Node, is_link
from .specs import InputSpec, NodeSpec

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_PACK_MARK = " (atelier)"


def apply_overrides(graph: Graph, settings: Iterable[str], specs: Mapping[str, NodeSpec]) -> Graph:
    """A copy of the graph with some inputs changed.

    Args:
        graph: the graph as loaded.
        settings: texts of the form ``NODE.INPUT=VALUE``; NODE is a node id, or a title or class name that only one
            node has (letter case does not matter).
        specs: interfaces of the known node classes, by which values are read.

    Raises:
        InputError: a malformed setting, an ambiguous node, an unreadable value.
        UnknownNameError: no such node or input; the nearest are listed.
    """
    for setting in settings:
        target, separator, text = setting.partition("=")
        node_name, dot, input_name = target.strip().rpartition(".")
        if not separator or not dot or not node_name or not input_name:
            raise InputError(f"--set {setting!r} is not of the form NODE.INPUT=VALUE, for example --set 5.seed=7.")
        node = find_node(graph, node_name.strip())
        spec = specs.get(node.class_type)
        value = _value(spec, node, input_name.strip(), text)
        graph = graph.with_inputs(node.id, {**node.inputs, input_name.strip(): value})
    return graph


def find_node(graph: Graph, name: str) -> Node:
    """The node with this id, or the only one with this title or class name.

    Raises:
        InputError: several nodes have the title or class.
        UnknownNameError: none has.
    """
    if name in graph.nodes:
        return graph.nodes[name]
    wanted = name.lower()
    for names_of in (_titles, _classes):
        found = [node for node in graph.nodes.values() if wanted in names_of(node)]
        if len(found) == 1:
            return found[0]
        if found:
            ids = ", ".join(node.id for node in found)
            raise InputError(f"--set names the node {name!r}, but nodes {ids} are all called so; use a node id.")
    names = {node.id for node in graph.nodes.values()}
    names |= {node.title for node in graph.nodes.values()} | {node.class_type for node in graph.nodes.values()}
    raise unknown_name("node in --set", name, sorted(names))


def _titles(node: Node) -> tuple[str, ...]:
    """The title as shown, and without the pack's mark behind it."""
    title = node.title.lower()
    return title, title.removesuffix(_PACK_MARK).strip()


def _classes(node: Node) -> tuple[str, ...]:
    return (node.class_type.lower(),)


def _value(spec: NodeSpec | None, node: Node, input_name: str, text: str) -> Any:
    if spec is None:
        return _untyped(text)
    if input_name not in spec.inputs:
        raise unknown_name(f"input of {node.label} in --set", input_name, spec.inputs)
    entry = spec.inputs[input_name]
    if not entry.is_widget:
        raise InputError(
            f"--set cannot give {node.label} its input {input_name!r}, which takes a wire of type {entry.type}; "
            f"set one of {', '.join(name for name, other in spec.inputs.items() if other.is_widget)}."
        )
    return _typed(entry, node, text)


def _typed(entry: InputSpec, node: Node, text: str) -> Any:
    try:
        if entry.type == "INT":
            return int(text.strip())
        if entry.type == "FLOAT":
            return float(text.strip())
    except ValueError as cause:
        kind = "a whole number" if entry.type == "INT" else "a number"
        raise InputError(f"--set gives {node.label} {entry.name}={text!r}; it must be {kind}.") from cause
    if entry.type == "BOOLEAN":
        lowered = text.strip().lower()
        if lowered not in _TRUE | _FALSE:
            raise InputError(f"--set gives {node.label} {entry.name}={text!r}; it must be true or false.")
        return lowered in _TRUE
    if entry.choices is not None:
        return _choice(entry, text)
    return text


def _choice(entry: InputSpec, text: str) -> Any:
    """The choice this text names; a number in the list is found by its text. Unknown ones are left to validation."""
    for choice in entry.choices or ():
        if text == str(choice):
            return choice
    return text


def _untyped(text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    return {"__value__": value} if is_link(value) else value


def nearest_hint(given: str, allowed: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    near = nearest_names(given, allowed)
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
