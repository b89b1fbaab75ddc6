"""Every node keeps the promises that ComfyUI, headless users and saved workflows rely on."""

import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS
from lora_atelier.nodes.host import set_host

GOLDEN = Path(__file__).with_name("golden_inputs.json")
NODES = sorted(NODE_CLASS_MAPPINGS.items())
IDS = [node_id for node_id, _ in NODES]
HIDDEN_KINDS = {"PROMPT", "UNIQUE_ID", "EXTRA_PNGINFO"}
KEPT_ON_DISK = ("AtelierTrainLora", "AtelierXYGrid", "AtelierPicoDataset", "AtelierPicoPrompts")


@pytest.fixture(autouse=True)
def fake_host(tmp_path: Path) -> Any:
    set_host(FakeHost(tmp_path))
    yield
    set_host(None)


def inputs_of(node: Any) -> dict[str, tuple[Any, ...]]:
    declared = node.INPUT_TYPES()
    return {**declared.get("required", {}), **declared.get("optional", {})}


def options_of(entry: tuple[Any, ...]) -> dict[str, Any]:
    return entry[1] if len(entry) > 1 else {}


@pytest.mark.parametrize(("node_id", "node"), NODES, ids=IDS)
def test_shape(node_id: str, node: Any) -> None:
    assert node_id.isascii()
    assert node_id.isalnum()
    assert node_id.startswith("Atelier")
    assert NODE_DISPLAY_NAME_MAPPINGS[node_id].endswith("(Atelier)")
    assert node.CATEGORY.startswith("Atelier/")
    assert node.DESCRIPTION.strip().endswith(".")
    assert node.SEARCH_ALIASES
    assert len(node.RETURN_TYPES) == len(node.RETURN_NAMES) == len(node.OUTPUT_TOOLTIPS)
    assert all(tooltip.strip() for tooltip in node.OUTPUT_TOOLTIPS)
    assert set(node.INPUT_TYPES()) <= {"required", "optional", "hidden"}
    assert set(node.INPUT_TYPES().get("hidden", {}).values()) <= HIDDEN_KINDS
    json.dumps(node.INPUT_TYPES(), allow_nan=False)


@pytest.mark.parametrize(("node_id", "node"), NODES, ids=IDS)
def test_inputs(node_id: str, node: Any) -> None:
    for name, entry in inputs_of(node).items():
        kind, options = entry[0], options_of(entry)
        assert name.isascii()
        assert options.get("tooltip", "").strip(), f"{node_id}.{name} has no tooltip"
        if isinstance(kind, list):
            assert "default" not in options or options["default"] in kind
        elif kind in ("INT", "FLOAT"):
            assert options["min"] <= options["default"] <= options["max"]
            assert options["step"] > 0
            assert all(math.isfinite(options[key]) for key in ("min", "default", "max"))
        elif kind == "BOOLEAN":
            assert isinstance(options["default"], bool)
        elif kind == "STRING" and not options.get("forceInput"):
            assert isinstance(options["default"], str)


@pytest.mark.parametrize(("node_id", "node"), NODES, ids=IDS)
def test_signature_takes_every_input(node_id: str, node: Any) -> None:
    function = getattr(node, node.FUNCTION)
    parameters = inspect.signature(function).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [*inputs_of(node), *node.INPUT_TYPES().get("hidden", {})]
    assert takes_all or set(names) <= set(parameters)
    optional = [*node.INPUT_TYPES().get("optional", {}), *node.INPUT_TYPES().get("hidden", {})]
    for name in optional:
        if name in parameters:
            assert parameters[name].default is not parameters[name].empty, f"{name} is optional but has no default"


@pytest.mark.parametrize(("node_id", "node"), NODES, ids=IDS)
def test_changes_are_never_nan(node_id: str, node: Any) -> None:
    if not hasattr(node, "IS_CHANGED"):
        return
    unknown = dict.fromkeys(inputs_of(node))
    answers = [node.IS_CHANGED(**unknown), node.IS_CHANGED(**unknown)]
    assert answers[0] == answers[1]
    assert isinstance(answers[0], str)


def test_seeds_are_left_alone() -> None:
    for node_id in KEPT_ON_DISK:
        assert options_of(inputs_of(NODE_CLASS_MAPPINGS[node_id])["seed"])["control_after_generate"] is False


def test_train_shows_at_most_twelve_widgets() -> None:
    shown = [
        name
        for name, entry in inputs_of(NODE_CLASS_MAPPINGS["AtelierTrainLora"]).items()
        if (isinstance(entry[0], list) or entry[0] in ("INT", "FLOAT", "STRING", "BOOLEAN"))
        and not options_of(entry).get("advanced")
    ]
    assert len(shown) <= 12, shown


def test_ids_inputs_and_order_are_kept() -> None:
    """The golden file is only added to: a saved workflow finds its values by position. Delete it to write it anew."""
    found = {
        node_id: {
            "inputs": {
                name: "COMBO" if isinstance(entry[0], list) else entry[0] for name, entry in inputs_of(node).items()
            },
            "outputs": list(node.RETURN_TYPES),
        }
        for node_id, node in NODES
    }
    if not GOLDEN.exists():
        GOLDEN.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8", newline="\n")
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    for node_id, expected in golden.items():
        assert node_id in found, f"the node {node_id} is gone"
        names = list(expected["inputs"].items())
        assert list(found[node_id]["inputs"].items())[: len(names)] == names, node_id
        assert found[node_id]["outputs"][: len(expected["outputs"])] == expected["outputs"], node_id
    assert set(found) == set(golden), "add the new nodes to the golden file"
