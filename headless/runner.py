"""Running workflow files: what the command line and scripts call."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from .execute import Outcome, execute
from .graph import Graph, graph_from_json, read_workflow
from .overrides import apply_overrides, nearest_hint
from .specs import NodeSpec, specs_of_classes
from .terminal import TerminalHost
from .validate import GraphError, validate


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """A finished local run.

    Attributes:
        graph: what was run, overrides included.
        outcome: results and what output nodes show.
        warnings: things that were ignored.
    """

    graph: Graph
    outcome: Outcome
    warnings: tuple[str, ...]


def local_classes() -> tuple[dict[str, type], dict[str, str]]:
    """Node classes of the local runner and their titles: the pack's own and the core nodes it stands in for."""
    from .. import nodes
    from ..nodes.host.local_nodes import CORE_NODES, CORE_TITLES

    return {**CORE_NODES, **nodes.NODE_CLASS_MAPPINGS}, {**CORE_TITLES, **nodes.NODE_DISPLAY_NAME_MAPPINGS}


def local_specs() -> tuple[dict[str, type], dict[str, NodeSpec]]:
    """Classes of the local runner with their interfaces; the host must be set, as combos list its files."""
    classes, titles = local_classes()
    return classes, specs_of_classes(classes, titles)


def load_graph(path: Path, specs: Mapping[str, NodeSpec], settings: Iterable[str] = ()) -> Graph:
    """Read a workflow file or picture and apply ``--set`` overrides."""
    return apply_overrides(graph_from_json(read_workflow(path), specs, source=str(path)), settings, specs)


def run_local(graph: Graph, host: TerminalHost, *, keep: Collection[str] = ()) -> LocalRun:
    """Validate the whole graph, then run it on the local host, which must be the process's host.

    Args:
        graph: the graph.
        host: the host, see :func:`~.terminal.hosting`.
        keep: class names whose results stay in the outcome.

    Raises:
        GraphError: faults in the graph; nothing has run.
        NodeError: a node failed.
    """
    classes, specs = local_specs()
    order, inputs, warnings = validate(graph, specs, classes)
    outcome = execute(graph, order, inputs, classes, watcher=host, keep=keep)
    return LocalRun(graph=graph, outcome=outcome, warnings=(*graph.notes, *warnings))


def check_local(graph: Graph) -> tuple[str, ...]:
    """Validate without running; returns the warnings.

    Raises:
        GraphError: faults in the graph.
    """
    classes, specs = local_specs()
    _, _, warnings = validate(graph, specs, classes)
    return (*graph.notes, *warnings)


def check_for_server(graph: Graph, specs: Mapping[str, NodeSpec]) -> tuple[str, ...]:
    """Validate against the interfaces of a server without queueing; returns the warnings.

    What a class checks by a function of its own (``VALIDATE_INPUTS``) only the server can tell.

    Raises:
        GraphError: faults in the graph.
    """
    unknown = [node for node in graph.nodes.values() if node.class_type not in specs]
    if unknown:
        raise GraphError(
            f"{node.label} is of a class the server does not have{nearest_hint(node.class_type, specs)}; install its "
            "pack there or replace it."
            for node in unknown
        )
    _, _, warnings = validate(graph, specs, {})
    return (*graph.notes, *warnings)


def output_files(outcome: Outcome, host: TerminalHost) -> list[Path]:
    """Files that output nodes report, as paths."""
    folders = {"output": host.output_dir(), "temp": host.temp_dir(), "input": host.input_dir()}
    files = []
    for shown in outcome.ui.values():
        for entries in shown.values():
            for item in entries:
                if isinstance(item, Mapping) and item.get("filename") and item.get("type") in folders:
                    files.append(folders[item["type"]] / str(item.get("subfolder", "")) / str(item["filename"]))
    return files


def output_texts(outcome: Outcome) -> list[str]:
    """Texts that output nodes show, in the order they ran."""
    return [str(text) for shown in outcome.ui.values() for text in shown.get("text", ())]
