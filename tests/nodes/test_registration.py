"""What the general registration tests do not ask: seeds, folded widgets, fingerprints that are never NaN."""

from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.nodes.host import set_host

NODES = sorted(NODE_CLASS_MAPPINGS.items())
IDS = [node_id for node_id, _ in NODES]
FIELDS = ("INT", "FLOAT", "STRING", "BOOLEAN")


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
def test_changes_are_never_nan(node_id: str, node: Any) -> None:
    if not hasattr(node, "IS_CHANGED"):
        return
    unknown = dict.fromkeys(inputs_of(node))
    nonsense = {name: "\0../nothing" for name in inputs_of(node)}
    for values in (unknown, nonsense):
        answers = [node.IS_CHANGED(**values), node.IS_CHANGED(**values)]
        assert answers[0] == answers[1]
        assert isinstance(answers[0], str)


def test_train_shows_at_most_twelve_widgets() -> None:
    shown = [
        name
        for name, entry in inputs_of(NODE_CLASS_MAPPINGS["AtelierTrainLora"]).items()
        if (isinstance(entry[0], list) or entry[0] in FIELDS) and not options_of(entry).get("advanced")
    ]
    assert len(shown) <= 12, shown


def test_numbers_are_not_rounded_by_the_page() -> None:
    for node_id, node in NODES:
        for name, entry in inputs_of(node).items():
            if entry[0] == "FLOAT":
                assert options_of(entry)["round"] is False, f"{node_id}.{name}"
