"""What stands upstream of a node in the graph that is running: for the identity of a grid and for picture metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

Graph = Mapping[str, Any]

MODEL_NAME_INPUTS = ("base_name", "ckpt_name", "unet_name")


def is_link(value: Any) -> bool:
    """True for the API form of a wire, [node id, output index]."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return False
    return isinstance(value[0], str) and isinstance(value[1], int)


def upstream(graph: Graph, node_id: str, names: tuple[str, ...]) -> Iterator[str]:
    """Ids of all nodes that feed the named inputs of a node, each once, nearest first."""
    inputs = graph.get(node_id, {}).get("inputs", {})
    waiting = [inputs[name][0] for name in names if is_link(inputs.get(name))]
    seen: set[str] = set()
    while waiting:
        current = waiting.pop(0)
        if current in seen or current not in graph:
            continue
        seen.add(current)
        yield current
        waiting += [value[0] for value in graph[current].get("inputs", {}).values() if is_link(value)]


def upstream_hash(graph: Graph, node_id: str, names: tuple[str, ...]) -> str:
    """Hash of the classes, constants and wiring upstream of the named inputs; node ids and titles do not count."""
    memory: dict[str, str] = {}

    def said(current: str, path: tuple[str, ...]) -> str:
        if current in path or current not in graph:
            return "?"
        if current not in memory:
            node = graph[current]
            inputs = {
                name: [said(value[0], (*path, current)), value[1]] if is_link(value) else value
                for name, value in node.get("inputs", {}).items()
            }
            memory[current] = _hash([node.get("class_type"), inputs])
        return memory[current]

    inputs = graph.get(node_id, {}).get("inputs", {})
    return _hash([[name, said(inputs[name][0], ()), inputs[name][1]] for name in names if is_link(inputs.get(name))])


def model_file(graph: Graph, node_id: str) -> str:
    """Nearest checkpoint upstream of a node's model as its node names it, "" when no node names one."""
    for current in upstream(graph, node_id, ("model",)):
        inputs = graph[current].get("inputs", {})
        for name in MODEL_NAME_INPUTS:
            if isinstance(inputs.get(name), str):
                return str(inputs[name])
    return ""


def model_name(graph: Graph, node_id: str) -> str:
    """That checkpoint's name without folder and ending."""
    return model_file(graph, node_id).replace("\\", "/").rsplit("/", 1)[-1].removesuffix(".safetensors")


def png_texts(graph: Graph | None, extra_pnginfo: Mapping[str, Any] | None) -> dict[str, str]:
    """The texts ComfyUI itself writes into a picture: the graph, and the page's workflow where there is one."""
    texts = {"prompt": json.dumps(graph)} if graph else {}
    return {**texts, **{str(name): json.dumps(value) for name, value in (extra_pnginfo or {}).items()}}


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:32]
