"""Running a validated graph node by node."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ..core.errors import AtelierError
from .graph import Graph, Node, is_link

_log = logging.getLogger(__name__)


class NodeError(AtelierError):
    """A node failed; the message names it and the cause is chained.

    Attributes:
        node: the node.
        node_error: what it raised.
    """

    def __init__(self, node: Node, node_error: Exception) -> None:
        """Name the node before its own sentence."""
        self.node = node
        self.node_error = node_error
        kind = "" if isinstance(node_error, AtelierError) else f"{type(node_error).__name__}: "
        super().__init__(f"{node.label}: {kind}{node_error}")


class Watcher(Protocol):
    """Who is told about nodes as they run."""

    def node_started(self, node: Node, number: int, total: int) -> None:
        """Node ``number`` of ``total`` (from 1) begins; may raise to cancel."""

    def node_finished(self, node: Node, seconds: float) -> None:
        """The node ended well."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run left.

    Attributes:
        results: node id to its output slots, each a list with one value per list item (normally one).
        ui: node id to what output nodes show ("images", "text" ...).
        seconds: by node id.
    """

    results: Mapping[str, list[list[Any]]]
    ui: Mapping[str, Mapping[str, list[Any]]]
    seconds: Mapping[str, float]


def execute(
    graph: Graph,
    order: list[str],
    inputs: Mapping[str, Mapping[str, Any]],
    classes: Mapping[str, type],
    *,
    watcher: Watcher,
    keep: Collection[str] = (),
) -> Outcome:
    """Run the nodes of a validated graph, each once, under inference mode as ComfyUI does.

    Args:
        graph: the graph, for labels and for the metadata nodes ask for.
        order: ids, sources first.
        inputs: converted inputs per id, as :func:`~.validate.validate` returns them.
        classes: node classes.
        watcher: told before and after each node.
        keep: class names whose results stay in the outcome; others are freed after their last use.

    Raises:
        NodeError: a node raised an Exception. Cancel passes through unchanged, whatever its class.
    """
    prompt = graph.to_api()
    results: dict[str, list[list[Any]]] = {}
    ui: dict[str, dict[str, list[Any]]] = {}
    seconds: dict[str, float] = {}
    last_use = _last_uses(order, inputs)
    for at, node_id in enumerate(order):
        node = graph.nodes[node_id]
        node_class = classes[node.class_type]
        watcher.node_started(node, at + 1, len(order))
        began = time.perf_counter()
        arguments = _arguments(node_class, inputs[node_id], results)
        hidden = _hidden(node_class, node, prompt, graph)
        try:
            with torch.inference_mode():
                results[node_id], ui[node_id] = _run(node_class, arguments, hidden)
        except Exception as error:
            raise NodeError(node, error) from error
        seconds[node_id] = time.perf_counter() - began
        watcher.node_finished(node, seconds[node_id])
        for spent in [source for source, last in last_use.items() if last == at]:
            if graph.nodes[spent].class_type not in keep:
                results[spent] = [[] for _ in results[spent]]
    return Outcome(results=results, ui={key: shown for key, shown in ui.items() if shown}, seconds=seconds)


def _last_uses(order: list[str], inputs: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Position after which a node's results are needed no more, so that pictures and models can be freed."""
    last: dict[str, int] = {}
    for at, node_id in enumerate(order):
        for value in inputs[node_id].values():
            if is_link(value):
                last[str(value[0])] = at
    return last


def _arguments(
    node_class: type, inputs: Mapping[str, Any], results: Mapping[str, list[list[Any]]]
) -> dict[str, list[Any]]:
    return {name: results[str(value[0])][value[1]] if is_link(value) else [value] for name, value in inputs.items()}


def _hidden(node_class: type, node: Node, prompt: Mapping[str, Any], graph: Graph) -> dict[str, Any]:
    declared: Mapping[str, Any] = node_class.INPUT_TYPES().get("hidden", {})  # type: ignore[attr-defined]
    available: dict[str, Any] = {
        "PROMPT": prompt,
        "UNIQUE_ID": node.id,
        "EXTRA_PNGINFO": None if graph.workflow is None else {"workflow": graph.workflow},
        "DYNPROMPT": None,
    }
    kinds = {name: kind[0] if isinstance(kind, (list, tuple)) else kind for name, kind in declared.items()}
    return {name: available.get(kind) for name, kind in kinds.items()}


def _run(
    node_class: type, arguments: Mapping[str, list[Any]], hidden: Mapping[str, Any]
) -> tuple[list[list[Any]], dict[str, list[Any]]]:
    """Call a node once, or once per item where an input is a list of several (the shorter lists repeat their last)."""
    function: Callable[..., Any] = getattr(node_class(), node_class.FUNCTION)  # type: ignore[attr-defined]
    outputs = len(getattr(node_class, "RETURN_TYPES", ()))
    if getattr(node_class, "INPUT_IS_LIST", False):
        answers = [function(**arguments, **{name: [value] for name, value in hidden.items()})]
    else:
        count = max((len(values) for values in arguments.values()), default=1)
        if any(not values for values in arguments.values()):
            count = 0
        answers = [
            function(**{name: values[min(i, len(values) - 1)] for name, values in arguments.items()}, **hidden)
            for i in range(count)
        ]
    is_list = tuple(getattr(node_class, "OUTPUT_IS_LIST", ())) or (False,) * outputs
    slots: list[list[Any]] = [[] for _ in range(outputs)]
    ui: dict[str, list[Any]] = {}
    for answer in answers:
        result, shown = _unpack(node_class, answer, outputs)
        for key, items in shown.items():
            ui.setdefault(key, []).extend(items)
        for slot, value in enumerate(result):
            if is_list[slot]:
                slots[slot].extend(value)
            else:
                slots[slot].append(value)
    return slots, ui


def _unpack(node_class: type, answer: Any, outputs: int) -> tuple[tuple[Any, ...], Mapping[str, list[Any]]]:
    shown: Mapping[str, list[Any]] = {}
    if isinstance(answer, Mapping):
        if "expand" in answer:
            raise AtelierError(
                f"{node_class.__name__} unfolds into further nodes, which this runner cannot do; run the workflow on a "
                "ComfyUI server (--server URL)."
            )
        shown = answer.get("ui", {})
        answer = answer.get("result", ())
    result = tuple(answer) if isinstance(answer, (tuple, list)) else ()
    if len(result) != outputs and outputs:
        raise AtelierError(f"{node_class.__name__} declares {outputs} outputs but returned {len(result)}.")
    return result[:outputs], shown
