"""Workflow files: reading the API format, the page's format and pictures that carry either."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import FormatError, InputError
from .specs import NodeSpec

_PICTURES = (".png",)
_MAX_FILE_BYTES = 64 * 2**20


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node of a graph.

    Attributes:
        id: its key.
        class_type: name of its class.
        title: what the page shows, for messages.
        inputs: name to value, or to a two-element list [node id, output index] for a wire.
    """

    id: str
    class_type: str
    title: str
    inputs: Mapping[str, Any]

    @property
    def label(self) -> str:
        """How messages name the node."""
        shown = self.class_type if self.title in ("", self.class_type) else f'{self.class_type} "{self.title}"'
        return f"node {self.id} ({shown})"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """An executable graph.

    Attributes:
        nodes: by id.
        workflow: the page's own JSON when the file had it, to be kept in pictures.
        notes: things a reader should know (muted nodes left out ...).
    """

    nodes: Mapping[str, Node]
    workflow: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())

    def to_api(self) -> dict[str, Any]:
        """The graph in API format, as a server takes it and pictures store it."""
        return {
            node.id: {"class_type": node.class_type, "inputs": dict(node.inputs), "_meta": {"title": node.title}}
            for node in self.nodes.values()
        }

    def with_inputs(self, node_id: str, inputs: Mapping[str, Any]) -> Graph:
        """A copy in which one node has other inputs."""
        node = replace(self.nodes[node_id], inputs=dict(inputs))
        return replace(self, nodes={**self.nodes, node_id: node})


def is_link(value: Any) -> bool:
    """True for the API format's wire: any list (a list-valued widget is wrapped as {"__value__": [...]})."""
    return isinstance(value, list)


def read_workflow(path: Path) -> Any:
    """Read the JSON of a workflow file, or of the picture that carries it.

    Raises:
        InputError: there is no such file.
        FormatError: it is not JSON, or a picture without a workflow.
    """
    if not path.is_file():
        raise InputError(f"{path} is not a file; give the path of a workflow (.json, or a .png that carries one).")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise FormatError(f"{path} has more than {_MAX_FILE_BYTES // 2**20} MiB; a workflow file is far smaller.")
    if path.suffix.lower() in _PICTURES:
        return _parse_json(_workflow_text_of_picture(path), path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path} is not UTF-8 text; export the workflow from the page again.") from cause
    return _parse_json(text, path)


def _workflow_text_of_picture(path: Path) -> str:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            picture.load()
            texts = dict(picture.info)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as cause:
        raise FormatError(f"{path} cannot be read as a PNG picture ({cause}).") from cause
    for key in ("prompt", "workflow"):
        if isinstance(texts.get(key), str):
            return str(texts[key])
    raise FormatError(f"{path} carries no workflow; use a picture saved by ComfyUI or by this pack with metadata on.")


def _parse_json(text: str, path: Path) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as cause:
        raise FormatError(f"{path} is not valid JSON ({cause}); export the workflow from the page again.") from cause


def graph_from_json(data: Any, specs: Mapping[str, NodeSpec], *, source: str = "the workflow") -> Graph:
    """Build the graph of a workflow in either format.

    Args:
        data: parsed JSON.
        specs: known node classes; only the page's format needs them, for the places of widget values.
        source: the file's name for messages.

    Raises:
        FormatError: neither format, or a node without the fields it needs.
    """
    if not isinstance(data, Mapping):
        raise FormatError(f"{source} holds a JSON {_kind(data)}; a workflow is an object of nodes.")
    if isinstance(data.get("nodes"), list):
        from .ui_format import graph_from_page

        return graph_from_page(data, specs, source=source)
    if isinstance(data.get("prompt"), Mapping):
        data = data["prompt"]
    return _graph_from_api(data, specs, source)


def _graph_from_api(data: Mapping[str, Any], specs: Mapping[str, NodeSpec], source: str) -> Graph:
    nodes: dict[str, Node] = {}
    for node_id, entry in data.items():
        if not isinstance(entry, Mapping):
            raise FormatError(f"{source}: entry {node_id!r} is a {_kind(entry)}; each entry must be a node object.")
        class_type = entry.get("class_type")
        if not isinstance(class_type, str) or not class_type:
            raise FormatError(
                f"{source}: node {node_id} has no class_type; export the workflow with File > Export (API) again."
            )
        inputs = entry.get("inputs", {})
        if not isinstance(inputs, Mapping):
            raise FormatError(f"{source}: the inputs of node {node_id} are a {_kind(inputs)}; they must be an object.")
        meta = entry.get("_meta")
        title = meta.get("title") if isinstance(meta, Mapping) else None
        shown = title if isinstance(title, str) else specs[class_type].title if class_type in specs else class_type
        nodes[str(node_id)] = Node(id=str(node_id), class_type=class_type, title=shown, inputs=dict(inputs))
    if not nodes:
        raise FormatError(f"{source} holds no nodes; export a workflow that has some.")
    return Graph(nodes=nodes)


def _kind(value: Any) -> str:
    names = {dict: "object", list: "list", str: "text", bool: "true/false", int: "number", float: "number"}
    return names.get(type(value), "null" if value is None else type(value).__name__)
