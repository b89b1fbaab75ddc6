"""What is to be merged, as a frozen tree: models at the leaves, methods above them; shared branches are one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..core.errors import FormatError, InputError, unknown_name
from ..core.params import Params
from .block_weights import BlockWeights
from .methods._spec import WEIGHT, Method, get_method

FORMAT_VERSION = 1
MAX_NODES = 1000


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint that goes into a merge.

    Attributes:
        path: Its file.
        name: As the person chose it.
        vae_path: A file whose VAE stands in for its own, None for its own.
        vae_name: As the person chose that.
    """

    path: Path
    name: str
    vae_path: Path | None = None
    vae_name: str = ""

    @property
    def kind(self) -> str:
        """A file is always a model, never a difference."""
        return WEIGHT


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A method and what goes into it.

    Attributes:
        method: Its name.
        inputs: What goes in, in the method's order; None for an optional one left out.
        params: The method's parameters.
        weights: Block weights of those parameters that differ from block to block.
        label: The name of this result in a recipe; empty if it has none.
    """

    method: str
    inputs: tuple[Node | None, ...]
    params: Params
    weights: tuple[tuple[str, BlockWeights], ...] = ()
    label: str = ""

    def __post_init__(self) -> None:
        """Checks the inputs' number and kinds.

        Raises:
            InputError: They do not fit the method.
            UnknownNameError: The method, or a parameter with block weights, is not known.
        """
        method = get_method(self.method)
        method.check_kinds(self.method, [None if node is None else node.kind for node in self.inputs])
        for name, _ in self.weights:
            if name not in method.blocks:
                raise unknown_name(f"parameter of {self.method} that takes block weights", name, method.blocks)

    @property
    def spec(self) -> Method:
        """The method."""
        return get_method(self.method)

    @property
    def kind(self) -> str:
        """Whether the result is a model or a difference."""
        return self.spec.check_kinds(self.method, [None if node is None else node.kind for node in self.inputs])


Node = Model | Merge


def walk(root: Node) -> Iterator[Node]:
    """Every node once, what goes in before what it goes into."""
    seen: set[int] = set()
    waiting: list[tuple[Node, bool]] = [(root, False)]
    while waiting:
        node, done = waiting.pop()
        if done:
            yield node
        elif id(node) not in seen:
            seen.add(id(node))
            waiting.append((node, True))
            if isinstance(node, Merge):
                waiting += [(child, False) for child in reversed(node.inputs) if child is not None]


def models(root: Node) -> list[Model]:
    """The models that go in, each once, in the order in which a recipe names them; the first decides the layout."""
    found: dict[Model, None] = {}
    for node in walk(root):
        if isinstance(node, Model):
            found.setdefault(node)
    return list(found)


def with_vae(root: Node, vae_path: Path, vae_name: str) -> Node:
    """The same merge with one VAE in the place of every model's own, so that it comes out as it is."""
    changed: dict[int, Node] = {}
    for node in walk(root):
        if isinstance(node, Model):
            changed[id(node)] = replace(node, vae_path=vae_path, vae_name=vae_name)
        else:
            inputs = tuple(None if child is None else changed[id(child)] for child in node.inputs)
            changed[id(node)] = replace(node, inputs=inputs)
    return changed[id(root)]


def to_json(root: Node) -> dict[str, Any]:
    """The tree as plain JSON values: a list of nodes that name earlier ones by their number; the last is the result."""
    numbers: dict[int, int] = {}
    nodes: list[dict[str, Any]] = []
    for node in walk(root):
        if isinstance(node, Model):
            entry: dict[str, Any] = {"model": node.name}
            if node.vae_path is not None:
                entry["vae"] = node.vae_name
        else:
            entry = {
                "merge": node.method,
                "inputs": [None if child is None else numbers[id(child)] for child in node.inputs],
                "params": node.params.to_json(),
            }
            if node.weights:
                entry["blocks"] = {name: weights.to_json() for name, weights in node.weights}
            if node.label:
                entry["label"] = node.label
        numbers[id(node)] = len(nodes)
        nodes.append(entry)
    return {"version": FORMAT_VERSION, "nodes": nodes}


def from_json(data: Any, open_model: Callable[[str, str], Model]) -> Node:
    """Rebuilds a tree from :func:`to_json`.

    Args:
        data: The JSON object.
        open_model: Name of a checkpoint and of a VAE (empty for its own) -> the model.

    Raises:
        FormatError: It is not such an object.
        InputError: A model, a method or a value is not allowed; what it is, is named.
    """
    entries = data.get("nodes") if isinstance(data, Mapping) else None
    if not isinstance(entries, list) or not 0 < len(entries) <= MAX_NODES or data.get("version") != FORMAT_VERSION:
        raise FormatError(
            f"the recipe is not one of this pack: it must have version {FORMAT_VERSION} and a list of 1 to {MAX_NODES} "
            "nodes; take it from the metadata of a merged file"
        )
    nodes: list[Node] = []
    for number, entry in enumerate(entries):
        try:
            if "model" in entry:
                nodes.append(open_model(str(entry["model"]), str(entry.get("vae", ""))))
            else:
                nodes.append(_merge_from_json(entry, nodes))
        except (KeyError, TypeError, AttributeError, IndexError) as cause:
            raise FormatError(
                f"node {number} of the recipe is malformed; take the recipe from a merged file"
            ) from cause
    return nodes[-1]


def _merge_from_json(entry: Mapping[str, Any], nodes: list[Node]) -> Merge:
    references = [None if number is None else int(number) for number in entry["inputs"]]
    for number in references:
        if number is not None and not 0 <= number < len(nodes):
            raise InputError(
                f"node {len(nodes)} of the recipe refers to node {number}, which does not stand before it; a merge "
                "cannot go into itself"
            )
    method = get_method(str(entry["merge"]))
    blocks = entry.get("blocks", {})
    return Merge(
        method=str(entry["merge"]),
        inputs=tuple(None if number is None else nodes[number] for number in references),
        params=method.params.from_json(entry.get("params", {})),
        weights=tuple((str(name), BlockWeights.from_json(value)) for name, value in blocks.items()),
        label=str(entry.get("label", "")),
    )
