"""From the page's own format (nodes, links, positional widget values) to the executable graph.

Follows what the page does when it queues: reroutes are followed, muted nodes are dropped with their wires, bypassed
nodes pass their first fitting input through, notes are dropped, primitive nodes give their value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..core.errors import FormatError
from .graph import Graph, Node
from .specs import InputSpec, NodeSpec, types_fit

_NOTES = frozenset({"Note", "MarkdownNote"})
_REROUTE = "Reroute"
_PRIMITIVE = "PrimitiveNode"
_MUTED = 2
_BYPASSED = 4
_SEED_NAMES = frozenset({"seed", "noise_seed"})
_CONTROL_VALUES = frozenset({"fixed", "increment", "decrement", "randomize"})
_UPLOAD_OPTIONS = ("image_upload", "video_upload", "audio_upload", "animated_image_upload")


class _Page:
    """Look-ups over one page file."""

    def __init__(self, data: Mapping[str, Any], specs: Mapping[str, NodeSpec], source: str) -> None:
        self.source = source
        self.specs = specs
        self.nodes: dict[str, Mapping[str, Any]] = {}
        for entry in data["nodes"]:
            if not isinstance(entry, Mapping) or "id" not in entry or not isinstance(entry.get("type"), str):
                raise FormatError(f"{source}: a node of the page lacks its id or type; save the workflow again.")
            self.nodes[str(entry["id"])] = entry
        self.links = {link_id: origin for link_id, origin in map(self._link, data.get("links") or ())}
        definitions = data.get("definitions")
        subgraphs = definitions.get("subgraphs") if isinstance(definitions, Mapping) else None
        self.subgraphs = {str(entry.get("id")): str(entry.get("name", "")) for entry in subgraphs or ()}

    def _link(self, link: Any) -> tuple[Any, tuple[str, int]]:
        if isinstance(link, Mapping) and {"id", "origin_id", "origin_slot"} <= link.keys():
            return link["id"], (str(link["origin_id"]), int(link["origin_slot"]))
        if isinstance(link, list) and len(link) >= 5:
            return link[0], (str(link[1]), int(link[2]))
        raise FormatError(f"{self.source}: link {link!r} is malformed; save the workflow from the page again.")

    def mode(self, node_id: str) -> int:
        return int(self.nodes[node_id].get("mode") or 0)

    def origin(self, link_id: Any) -> tuple[str, int] | None:
        """The node and output a link really comes from, or None when a muted or missing node breaks it."""
        seen: set[Any] = set()
        while link_id is not None:
            if link_id in seen:
                raise FormatError(
                    f"{self.source}: reroutes go round in a circle at link {link_id}; remove one of them."
                )
            seen.add(link_id)
            if link_id not in self.links:
                raise FormatError(f"{self.source}: link {link_id} is used but not listed; save the workflow again.")
            node_id, slot = self.links[link_id]
            if node_id not in self.nodes:
                raise FormatError(f"{self.source}: link {link_id} comes from node {node_id}, which does not exist.")
            mode = self.mode(node_id)
            if mode == _MUTED:
                return None
            if self.nodes[node_id]["type"] == _REROUTE:
                link_id = self._first_link(node_id)
            elif mode == _BYPASSED:
                link_id = self._bypass_link(node_id, slot)
            else:
                return node_id, slot
        return None

    def _first_link(self, node_id: str) -> Any:
        inputs = self.nodes[node_id].get("inputs") or ()
        return inputs[0].get("link") if inputs else None

    def _bypass_link(self, node_id: str, slot: int) -> Any:
        node = self.nodes[node_id]
        outputs, inputs = node.get("outputs") or (), list(node.get("inputs") or ())
        if slot >= len(outputs):
            return None
        wanted = str(outputs[slot].get("type"))
        ordered = inputs[slot : slot + 1] + inputs
        for entry in ordered:
            if types_fit(str(entry.get("type")), wanted) and entry.get("link") is not None:
                return entry["link"]
        return None


def graph_from_page(data: Mapping[str, Any], specs: Mapping[str, NodeSpec], *, source: str) -> Graph:
    """Convert a page file.

    Args:
        data: parsed JSON with "nodes" and "links".
        specs: interfaces of the known node classes.
        source: the file's name for messages.

    Raises:
        FormatError: a subgraph, an unknown node class, or a malformed entry.
    """
    page = _Page(data, specs, source)
    nodes: dict[str, Node] = {}
    notes: list[str] = []
    for node_id, entry in page.nodes.items():
        class_type = entry["type"]
        if class_type in _NOTES or class_type in (_REROUTE, _PRIMITIVE):
            continue
        title = str(entry.get("title") or (specs[class_type].title if class_type in specs else class_type))
        if page.mode(node_id) in (_MUTED, _BYPASSED):
            state = "muted" if page.mode(node_id) == _MUTED else "bypassed"
            notes.append(f"node {node_id} ({title}) is {state} and left out.")
            continue
        if class_type in page.subgraphs:
            raise FormatError(
                f"{source}: node {node_id} is the subgraph {page.subgraphs[class_type]!r}, which this runner cannot "
                "unfold; export the workflow with File > Export (API), which flattens it."
            )
        if class_type not in specs:
            nodes[node_id] = Node(id=node_id, class_type=class_type, title=title, inputs={})
            continue
        inputs = {**_widget_values(entry, specs[class_type], page), **_wires(entry, page)}
        nodes[node_id] = Node(id=node_id, class_type=class_type, title=title, inputs=inputs)
    if not nodes:
        raise FormatError(f"{source} holds no active nodes; unmute some or save a workflow that has nodes.")
    return Graph(nodes=nodes, workflow=dict(data), notes=tuple(notes))


def _wires(entry: Mapping[str, Any], page: _Page) -> dict[str, Any]:
    wires: dict[str, Any] = {}
    for slot in entry.get("inputs") or ():
        if slot.get("link") is None:
            continue
        origin = page.origin(slot["link"])
        if origin is None:
            continue
        origin_id, origin_slot = origin
        if page.nodes[origin_id]["type"] == _PRIMITIVE:
            values = page.nodes[origin_id].get("widgets_values") or ()
            if values:
                wires[str(slot["name"])] = values[0]
        else:
            wires[str(slot["name"])] = [origin_id, origin_slot]
    return wires


def _widget_values(entry: Mapping[str, Any], spec: NodeSpec, page: _Page) -> dict[str, Any]:
    values = entry.get("widgets_values")
    if values is None:
        return {}
    if isinstance(values, Mapping):
        return {name: _wrapped(values[name]) for name in spec.inputs if name in values}
    if not isinstance(values, list):
        raise FormatError(f"{page.source}: widgets_values of node {entry['id']} is malformed; save the workflow again.")
    taken: dict[str, Any] = {}
    at = 0
    for widget in (widget for widget in spec.inputs.values() if widget.is_widget):
        if at >= len(values):
            break
        taken[widget.name] = _wrapped(values[at])
        at += 1
        if (
            _has_control_slot(widget)
            and at < len(values)
            and values[at] in _CONTROL_VALUES
            or any(widget.options.get(option) for option in _UPLOAD_OPTIONS)
        ):
            at += 1
    return taken


def _wrapped(value: Any) -> Any:
    return {"__value__": value} if isinstance(value, list) else value


def _has_control_slot(widget: InputSpec) -> bool:
    """The page adds "control after generate" behind a seed unless the node says no, and wherever it says yes."""
    control = widget.options.get("control_after_generate")
    if control is None:
        return widget.type == "INT" and widget.name in _SEED_NAMES
    return bool(control)
