"""The quickstart: the shipped workflow, run for one concept, and its figures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import AtelierError, unknown_name
from ..trainer.run import RunRef, open_run
from .execute import Outcome
from .graph import Graph
from .runner import load_graph, local_specs, output_files, run_local
from .specs import NodeSpec
from .terminal import TerminalHost

WORKFLOW = Path(__file__).resolve().parent.parent / "api_workflows" / "quickstart.json"
_TRAIN, _GRID, _SCORE = "AtelierTrainLora", "AtelierXYGrid", "AtelierScoreGrid"
_MAX_NODE_SEED = 2**31 - 1


def run_quickstart(host: TerminalHost, *, concept: str, seed: int) -> dict[str, Any]:
    """Run the quickstart on the local host, which must be the process's host.

    Args:
        host: the host.
        concept: "kest", "vard" or "tavi".
        seed: given to every node that has a seed.

    Returns:
        trigger_recall_base, trigger_recall_trained, false_triggers, other_prompts_kept (shares), seconds_train, and the
        paths "grid" (the sheet) and "lora".

    Raises:
        UnknownNameError: no such concept.
        AtelierError: the workflow is missing or a node failed.
    """
    _, specs = local_specs()
    graph = prepare(load_graph(WORKFLOW, specs), specs, concept=concept, seed=seed)
    done = run_local(graph, host, keep=(_TRAIN, _SCORE))
    return figures(done.graph, done.outcome, host)


def prepare(graph: Graph, specs: Mapping[str, NodeSpec], *, concept: str, seed: int) -> Graph:
    """The graph with the concept and the seed in every node that has such a widget.

    Raises:
        UnknownNameError: no node offers the concept.
    """
    for node in list(graph.nodes.values()):
        widgets = specs[node.class_type].inputs if node.class_type in specs else {}
        given = dict(node.inputs)
        if "concept" in widgets and not isinstance(given.get("concept"), list):
            allowed = [str(choice) for choice in widgets["concept"].choices or ()]
            if concept not in allowed:
                raise unknown_name("concept", concept, allowed)
            given["concept"] = concept
        if "seed" in widgets and not isinstance(given.get("seed"), list):
            given["seed"] = min(seed, int(widgets["seed"].options.get("max", _MAX_NODE_SEED)))
        graph = graph.with_inputs(node.id, given)
    return graph


def figures(graph: Graph, outcome: Outcome, host: TerminalHost) -> dict[str, Any]:
    """The quickstart's figures from what its nodes returned; the sheet is that of the grid which is not scored."""
    train, score = _only(graph, _TRAIN), _only(graph, _SCORE)
    probe = str(graph.nodes[score].inputs["grid"][0])
    grid = next((node.id for node in graph.nodes.values() if node.class_type == _GRID and node.id != probe), probe)
    columns = json.loads(outcome.results[score][0][0])["columns"]
    base, trained = columns[0], columns[-1]
    run, lora = outcome.results[train][0][0], outcome.results[train][1][0]
    shown = Outcome(results={}, ui={grid: outcome.ui.get(grid, {})}, seconds={})
    sheets = output_files(shown, host)
    if not sheets:
        raise AtelierError(
            "the quickstart's grid node shows no picture, so there is no path to report; reinstall the pack."
        )
    return {
        "trigger_recall_base": base["trigger_recall"],
        "trigger_recall_trained": trained["trigger_recall"],
        "false_triggers": trained["false_triggers"],
        "other_prompts_kept": trained["kept"],
        "seconds_train": round(_seconds_trained(run), 1),
        "grid": str(sheets[0]),
        "lora": str(lora.path),
    }


def _seconds_trained(run: RunRef) -> float:
    """What the run itself counted, so that a run found finished on disk is not reported as trained in no time."""
    return float(open_run(run.folder).status["seconds_training"])


def _only(graph: Graph, class_type: str) -> str:
    found = [node.id for node in graph.nodes.values() if node.class_type == class_type]
    if len(found) != 1:
        raise AtelierError(
            f"the quickstart workflow has {len(found)} nodes of the class {class_type}; it must have one."
        )
    return found[0]
