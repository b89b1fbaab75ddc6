"""The shipped quickstart: both forms agree and are valid for every concept; the slow tier holds it to its bars."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from lora_atelier.core.errors import UnknownNameError
from lora_atelier.headless import quickstart
from lora_atelier.headless.cli import app
from lora_atelier.headless.graph import graph_from_json, read_workflow
from lora_atelier.headless.runner import check_local, local_specs
from lora_atelier.headless.terminal import TerminalHost, hosting

PAGE = Path(quickstart.WORKFLOW).parents[1] / "workflows" / "quickstart.json"
CONCEPTS = ("kest", "vard", "tavi")


@pytest.fixture
def host(tmp_path):
    with hosting(TerminalHost(tmp_path / "atelier", quiet=True)) as made:
        yield made


@pytest.mark.parametrize("concept", CONCEPTS)
def test_valid_for_every_concept(host, concept):
    _, specs = local_specs()
    graph = graph_from_json(read_workflow(quickstart.WORKFLOW), specs)
    prepared = quickstart.prepare(graph, specs, concept=concept, seed=7)
    assert check_local(prepared) == ()
    given = [node.inputs["concept"] for node in prepared.nodes.values() if "concept" in node.inputs]
    assert given
    assert set(given) == {concept}
    seeds = {node.inputs["seed"] for node in prepared.nodes.values() if "seed" in node.inputs}
    assert seeds == {7}
    for class_type in ("AtelierTrainLora", "AtelierScoreGrid"):
        assert sum(node.class_type == class_type for node in prepared.nodes.values()) == 1


def test_unknown_concept(host):
    _, specs = local_specs()
    graph = graph_from_json(read_workflow(quickstart.WORKFLOW), specs)
    with pytest.raises(UnknownNameError, match="did you mean 'kest'"):
        quickstart.prepare(graph, specs, concept="kset", seed=1)


def test_page_form_is_the_api_form(host):
    _, specs = local_specs()
    page = graph_from_json(read_workflow(PAGE), specs).nodes
    api = graph_from_json(read_workflow(quickstart.WORKFLOW), specs).nodes
    assert {(node.id, node.class_type) for node in page.values()} == {(n.id, n.class_type) for n in api.values()}
    for node_id, node in page.items():
        assert dict(node.inputs) == dict(api[node_id].inputs), node.label


@pytest.mark.slow
@pytest.mark.parametrize("concept", CONCEPTS)
def test_learns(tmp_path, concept):
    done = CliRunner().invoke(app, ["quickstart", "--concept", concept, "--seed", "5", "--base-dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["trigger_recall_base"] <= 0.05
    assert figures["trigger_recall_trained"] >= 0.8
    assert figures["other_prompts_kept"] >= 0.9
    assert figures["false_triggers"] <= 0.05
    assert Path(figures["grid"]).is_file()
    assert Path(figures["lora"]).is_file()
