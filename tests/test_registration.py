"""The pack as ComfyUI loads it: every node complete, and nothing that saved workflows depend on changed."""

import json
import math
import runpy
import sys

import pytest

from atelier_tests.helpers.node_table import HIDDEN, MODULE_NAME, flat_inputs, is_combo, load_node_table
from atelier_tests.helpers.sources import ROOT, shipped_sources

WIDGET_TYPES = {"INT": int, "FLOAT": float, "BOOLEAN": bool, "STRING": str}
PLUGIN_FOLDERS = {
    "networks": "Network",
    "trainer/optimizers": "Optimizer",
    "trainer/objectives": "Objective",
    "evaluator/axes": "Axis",
    "tagger/steps": "Step",
}


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return load_node_table(tmp_path_factory.mktemp("registration"))


@pytest.fixture(scope="session")
def nodes(table):
    return table["nodes"]


def each(nodes):
    for name, node in nodes.items():
        for key, kind, options in flat_inputs(node):
            yield f"{name}.{key}", kind, options


@pytest.mark.parametrize("name", ["/custom_nodes/My-Lora.Pack", "C:\\custom_nodes\\My-Lora_x_Pack"])
def test_loads_under_any_module_name(table, tmp_path, name):
    assert name != MODULE_NAME
    again = load_node_table(tmp_path, name)
    assert {**again, "messages": None} == {**table, "messages": None}


def test_loads_light_and_without_a_word(table):
    assert table["light"], "importing the pack imported torch, numpy, Pillow or the nodes"
    assert table["found"]
    assert table["messages"] == []
    assert table["loaded"] == [], f"of {HIDDEN}"


def test_every_node_file_and_every_plugin_is_there(nodes):
    for folder, kind in PLUGIN_FOLDERS.items():
        for source in shipped_sources():
            parent, _, file = source.name.rpartition("/")
            if parent == folder and not file.startswith("_"):
                plugin = "".join(word.capitalize() for word in file.removesuffix(".py").split("_"))
                assert f"Atelier{kind}{plugin}".lower() in {name.lower() for name in nodes}, source.name


def test_ids(nodes, table):
    assert set(nodes) == set(table["titles"])
    for name, node in nodes.items():
        assert name == node["id"]
        assert name.isascii()
        assert name.isalnum()
        assert name.startswith("Atelier")
        assert name[len("Atelier")].isupper()
    titles = [node["title"] for node in nodes.values()]
    assert len(set(titles)) == len(titles)


def test_menu_and_texts(nodes):
    for name, node in nodes.items():
        assert node["category"].startswith("Atelier/"), name
        assert node["category"].count("/") == 1, name
        assert len(node["description"]) > 10, name
        assert node["description"].endswith((".", ".)")), name
        assert node["title"].strip(), name
        assert all(isinstance(alias, str) for alias in node["aliases"]), name


def test_signatures_cover_the_inputs(nodes):
    for name, node in nodes.items():
        inputs = {key for section in node["inputs"].values() for key, _ in section}
        shown = {key for section in ("required", "optional") for key, _ in node["inputs"].get(section, [])}
        taken = node["signature"]
        assert taken["rest"] or inputs <= set(taken["names"]), f"{name}: {inputs - set(taken['names'])}"
        assert taken["rest"] or set(taken["names"]) - {"self"} <= inputs, f"{name} takes what no input gives"
        if "IS_CHANGED" in node["hooks"]:
            hook = node["hooks"]["IS_CHANGED"]
            assert hook["rest"] or shown <= set(hook["names"]), f"{name}.IS_CHANGED"


def test_every_input_has_a_tooltip(nodes):
    for name, _, options in each(nodes):
        assert len(options.get("tooltip", "")) > 5, name


def test_every_output_has_a_name_and_a_tooltip(nodes):
    for name, node in nodes.items():
        assert len(node["outputs"]) == len(node["output_names"]) == len(node["output_tooltips"]), name
        assert all(len(tooltip) > 5 for tooltip in node["output_tooltips"]), name
        assert node["outputs"] or node["output_node"], f"{name} has neither an output nor an effect"


def test_sections_are_the_known_ones(nodes):
    for name, node in nodes.items():
        assert set(node["inputs"]) <= {"required", "optional", "hidden"}, name


def test_input_names_are_plain(nodes):
    for name, node in nodes.items():
        names = [key for key, _, _ in flat_inputs(node)]
        assert len(set(names)) == len(names), name
        assert all(key.isascii() and key.isidentifier() and key == key.lower() for key in names), name


def test_defaults_lie_in_their_ranges(nodes):
    for name, kind, options in each(nodes):
        if is_combo(kind):
            assert options.get("default", kind[0] if kind else None) in (kind or [None]), name
            continue
        if kind not in WIDGET_TYPES:
            assert "default" not in options, f"{name} is a socket"
            continue
        if options.get("forceInput"):
            continue
        value = options["default"]
        assert type(value) is WIDGET_TYPES[kind], name
        for bound in ("min", "max", "step"):
            assert type(options.get(bound, value)) in (WIDGET_TYPES[kind], int), f"{name}: {bound}"
        if kind in ("INT", "FLOAT"):
            assert math.isfinite(value), name
            assert options["min"] <= value <= options["max"], name
            assert options["min"] >= -(2**63), name
            assert options["max"] <= 2**64 - 1, name


def test_seeds_stay_as_they_are_between_runs(nodes):
    for name, kind, options in each(nodes):
        if kind == "INT" and name.endswith("seed"):
            assert options.get("control_after_generate") is False, name


def test_everything_is_plain_json(table):
    assert json.loads(json.dumps(table, allow_nan=False)) == table


@pytest.fixture(scope="session")
def update():
    return runpy.run_path(str(ROOT / "tests" / "golden" / "update.py"))


class TestGolden:
    def test_saved_workflows_still_work(self, nodes, update):
        old = json.loads((ROOT / "tests" / "golden" / "nodes.json").read_text(encoding="utf-8"))
        assert update["breaks"](old, update["golden_of"](nodes)) == []

    def test_derived_files_are_up_to_date(self, nodes, update):
        changed = [path.relative_to(ROOT).as_posix() for path in update["changed_files"](nodes)]
        assert changed == [], f"run: {sys.executable} tests/golden/update.py"

    def test_what_counts_as_a_break(self, update):
        old = {"A": {"inputs": [["x", "INT"], ["y", {"COMBO": ["a", "b"]}]], "outputs": [["o", "MODEL"]]}}

        def breaks(**changes):
            return update["breaks"](old, {"A": {**old["A"], **changes}})

        assert breaks() == []
        assert breaks(inputs=[*old["A"]["inputs"], ["z", "INT"]], outputs=[["o", "MODEL"], ["p", "INT"]]) == []
        assert breaks(inputs=[*old["A"]["inputs"], ["z", "INT"]], required=["x", "z"])
        assert breaks(inputs=[*old["A"]["inputs"], ["z", "INT"]], required=["x"]) == []
        assert breaks(inputs=[["x", "INT"], ["y", {"COMBO": ["c", "a", "b"]}]]) == []
        assert breaks(inputs=[["z", "INT"], *old["A"]["inputs"]])
        assert breaks(inputs=old["A"]["inputs"][::-1])
        assert breaks(inputs=old["A"]["inputs"][:1])
        assert breaks(inputs=[["x", "FLOAT"], old["A"]["inputs"][1]])
        assert breaks(inputs=[["x", "INT"], ["y", {"COMBO": ["a"]}]])
        assert breaks(outputs=[])
        assert update["breaks"](old, {}) == ["the node A is gone"]
        assert update["breaks"](old, {**old, "B": old["A"]}) == []
