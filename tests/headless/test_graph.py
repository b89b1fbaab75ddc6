"""Reading, overriding, checking and running graphs, on toy nodes."""

import json

import pytest
from PIL import Image, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from atelier_tests.helpers.toy_nodes import CLASSES, Fail
from lora_atelier.core.errors import FormatError, InputError, UnknownNameError
from lora_atelier.core.progress import Cancelled
from lora_atelier.headless.execute import NodeError, execute
from lora_atelier.headless.graph import graph_from_json, read_workflow
from lora_atelier.headless.overrides import apply_overrides
from lora_atelier.headless.specs import specs_of_classes, types_fit
from lora_atelier.headless.validate import GraphError, validate

SPECS = specs_of_classes(CLASSES, {"Show": "Show It"})


class Quiet:
    def __init__(self):
        self.started = []

    def node_started(self, node, number, total):
        self.started.append(node.id)

    def node_finished(self, node, seconds):
        assert seconds >= 0


def api(**nodes):
    return {
        key.lstrip("n"): {
            "class_type": entry[0],
            "inputs": entry[1],
            **({"_meta": {"title": entry[2]}} if entry[2:] else {}),
        }
        for key, entry in nodes.items()
    }


GOOD = api(
    n1=("Number", {"value": 4, "factor": 0.5}, "How Many"),
    n2=("Word", {"text": "hat", "style": "loud", "twice": True}),
    n3=("Join", {"word": ["2", 0], "number": ["1", 1]}),
    n4=("Show", {"value": ["3", 0]}),
)


def run(data, settings=(), keep=()):
    graph = apply_overrides(graph_from_json(data, SPECS), settings, SPECS)
    order, inputs, _ = validate(graph, SPECS, CLASSES)
    watcher = Quiet()
    outcome = execute(graph, order, inputs, CLASSES, watcher=watcher, keep=keep)
    assert watcher.started == order
    return outcome


def problems(data):
    with pytest.raises(GraphError) as caught:
        validate(graph_from_json(data, SPECS), SPECS, CLASSES)
    return "\n".join(caught.value.problems)


def test_runs_in_order_and_shows():
    outcome = run(GOOD)
    assert outcome.ui["4"]["text"] == ["HATHAT:2.0"]
    assert set(outcome.seconds) == {"1", "2", "3", "4"}
    assert outcome.results["3"] == [[]], "results are freed after their last use"
    assert run(GOOD, keep=["Join"]).results["3"] == [["HATHAT:2.0"]]


def test_overrides_by_id_title_and_class():
    assert run(GOOD, ["1.value=10"]).ui["4"]["text"] == ["HATHAT:5.0"]
    assert run(GOOD, ["how many.factor=2", "Word.twice=no", "Word.style=quiet"]).ui["4"]["text"] == ["hat:8.0"]
    assert run(GOOD, ["2.text=a=b.c"]).ui["4"]["text"] == ["A=B.CA=B.C:2.0"]


def test_the_packs_mark_may_be_left_out_of_a_title():
    data = {**GOOD, "1": {**GOOD["1"], "_meta": {"title": "How Many (Atelier)"}}}
    assert run(data, ["How Many.factor=1"]).ui["4"]["text"] == ["HATHAT:4.0"]
    assert run(data, ["how many (atelier).factor=1"]).ui["4"]["text"] == ["HATHAT:4.0"]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("value=3", "NODE.INPUT=VALUE"),
        ("1.value", "NODE.INPUT=VALUE"),
        (".value=3", "NODE.INPUT=VALUE"),
        ("9.value=3", "unknown node in --set '9'"),
        ("Wrod.text=x", "did you mean 'Word'"),
        ("1.valeu=3", "did you mean 'value'"),
        ("1.value=many", "must be a whole number"),
        ("1.factor=much", "must be a number"),
        ("2.twice=maybe", "must be true or false"),
        ("3.model=x", "takes a wire of type MODEL"),
    ],
)
def test_bad_overrides(setting, message):
    with pytest.raises(InputError, match=message):
        run(GOOD, [setting])


def test_ambiguous_override_lists_the_ids():
    data = {**GOOD, "7": GOOD["2"]}
    with pytest.raises(InputError, match="nodes 2, 7 are all called so"):
        run(data, ["Word.text=x"])


def edited(node_id, **inputs):
    return {**GOOD, node_id: {**GOOD[node_id], "inputs": {**GOOD[node_id]["inputs"], **inputs}}}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (edited("1", value=101), 'node 1 (Number "How Many"): value is 101; it must be a number from 0 to 100.'),
        (edited("1", value=-1), "value is -1; it must be a number from 0 to 100"),
        (edited("1", value=1.5), "value is 1.5; it must be a whole number"),
        (edited("1", value=True), "value is True; it must be a whole number"),
        (edited("1", value="x"), "value is 'x'; it must be a whole number"),
        (edited("1", factor=float("nan")), "factor is nan; it must be a finite number"),
        (edited("1", factor=float("inf")), "factor is inf; it must be a finite number"),
        (edited("1", factor=None), "factor is None; it must be a number"),
        (edited("2", twice="yes"), "twice is 'yes'; it must be true or false"),
        (edited("2", text=None), "text is None; it must be a text"),
        (edited("2", style="lod"), "did you mean 'loud'"),
        (edited("2", style=3), "style is 3; choose one of plain, loud, quiet"),
        (edited("3", word=["2"]), "malformed wire"),
        (edited("3", word=["22", 0]), "node 22, which does not exist"),
        (edited("3", word=["2", 1]), "output 1 of node 2 (Word), which has 1 outputs (STRING)"),
        (edited("3", word=["1", 0]), "needs STRING at 'word' but output 0 of node 1"),
        (edited("3", number=["2", 0]), "needs INT,FLOAT at 'number'"),
        (edited("3", model="sd15"), "takes a wire of type MODEL"),
        (
            {**GOOD, "2": {"class_type": "Word", "inputs": {"text": "x", "twice": False}}},
            "lacks its required input 'style'",
        ),
        ({**GOOD, "3": {"class_type": "Join", "inputs": {}}}, "lacks its required input 'word'; give it"),
        ({**GOOD, "9": {"class_type": "Wrod", "inputs": {}}}, "did you mean 'Word'"),
        ({key: GOOD[key] for key in "123"}, "no output node"),
        (edited("1", value=["3", 0]), "depends on its own output"),
        (edited("4", value=["4", 0]), "depends on its own output (4 -> 4)"),
    ],
)
def test_faults_are_told_before_anything_runs(data, message):
    assert message in problems(data)


def test_all_faults_are_told_at_once():
    text = problems({**edited("1", value=101, factor=-1), "2": {"class_type": "Word", "inputs": {}}})
    assert len(text.splitlines()) == 5


def test_own_validation_of_a_node():
    data = api(n1=("Picky", {"low": 5, "high": 3}), n2=("Show", {"value": ["1", 0]}))
    assert "node 1 (Picky): low is 5; it must be below high (3)." in problems(data)
    # A named argument switches the range check off, as in ComfyUI.
    assert run(api(n1=("Picky", {"low": -5, "high": 3}), n2=("Show", {"value": ["1", 0]}))).ui["2"]["text"] == ["-2"]


def test_unused_nodes_and_inputs_are_warned_about():
    data = {**edited("1", valeu=3), "8": GOOD["2"]}
    _, _, warnings = validate(graph_from_json(data, SPECS), SPECS, CLASSES)
    assert any(text.endswith("'valeu', which is ignored; did you mean 'value'?") for text in warnings)
    assert any("nodes 8 lead to no output" in text for text in warnings)


def test_lists_map_and_collect():
    data = api(
        n1=("Words", {"text": "a b c"}),
        n2=("Join", {"word": ["1", 0]}),
        n3=("Collect", {"word": ["2", 0]}),
        n4=("Show", {"value": ["3", 0]}),
    )
    outcome = run(data)
    assert outcome.ui["3"]["text"] == ["a:None+b:None+c:None"]
    assert outcome.ui["4"]["text"] == ["a:None+b:None+c:None"]


def test_deep_graphs_do_not_overflow():
    data = api(n0=("Word", {"text": "x", "style": "plain", "twice": False}))
    for i in range(1, 1500):
        data[str(i)] = {"class_type": "Join", "inputs": {"word": [str(i - 1), 0]}}
    data["end"] = {"class_type": "Show", "inputs": {"value": ["1499", 0]}}
    order, _, _ = validate(graph_from_json(data, SPECS), SPECS, CLASSES)
    assert order == [str(i) for i in range(1500)] + ["end"]


def test_failures_name_the_node_and_keep_the_cause():
    data = api(n1=("Fail", {}, "Trouble"), n2=("Show", {"value": ["1", 0]}))
    with pytest.raises(NodeError, match=r'node 1 \(Fail "Trouble"\): RuntimeError: broken on purpose') as caught:
        run(data)
    assert isinstance(caught.value.node_error, RuntimeError)
    with pytest.raises(NodeError, match="unfolds into further nodes"):
        run(api(n1=("Unfold", {}), n2=("Show", {"value": ["1", 0]})))


class OldCancel(Exception):
    pass


@pytest.mark.parametrize("error", [Cancelled("stop"), KeyboardInterrupt()])
def test_cancel_passes_through(monkeypatch, error):
    monkeypatch.setattr(Fail, "error", error)
    with pytest.raises(type(error)):
        run(api(n1=("Fail", {}), n2=("Show", {"value": ["1", 0]})))


PAGE = {
    "version": 0.4,
    "nodes": [
        {"id": 1, "type": "Number", "mode": 0, "title": "How Many", "widgets_values": [4, 0.5, 7, "randomize"],
         "inputs": [], "outputs": [{"type": "INT", "links": [1]}, {"type": "FLOAT", "links": [2]}]},
        {"id": 2, "type": "Word", "mode": 0, "widgets_values": ["hat", "loud", True],
         "inputs": [{"name": "twice", "type": "BOOLEAN", "widget": {"name": "twice"}, "link": None}],
         "outputs": [{"type": "STRING", "links": [3]}]},
        {"id": 5, "type": "Reroute", "inputs": [{"name": "", "type": "*", "link": 3}],
         "outputs": [{"type": "STRING", "links": [4]}]},
        {"id": 3, "type": "Join", "widgets_values": [],
         "inputs": [{"name": "word", "type": "STRING", "link": 4}, {"name": "number", "type": "INT,FLOAT", "link": 2}],
         "outputs": [{"type": "STRING", "links": [5]}]},
        {"id": 4, "type": "Show", "inputs": [{"name": "value", "type": "*", "link": 5}], "outputs": []},
        {"id": 6, "type": "Note", "widgets_values": ["read me"]},
        {"id": 7, "type": "MarkdownNote", "widgets_values": ["# read me"]},
    ],
    "links": [
        [2, 1, 1, 3, 1, "FLOAT"], [3, 2, 0, 5, 0, "STRING"], [4, 5, 0, 3, 0, "STRING"], [5, 3, 0, 4, 0, "STRING"],
    ],
}  # fmt: skip


def page(**changes):
    data = json.loads(json.dumps(PAGE))
    for key, change in changes.items():
        next(node for node in data["nodes"] if str(node["id"]) == key.lstrip("n")).update(change)
    return data


def test_page_format():
    graph = graph_from_json(PAGE, SPECS)
    assert graph.nodes["1"].inputs == {"value": 4, "factor": 0.5, "seed": 7}
    assert graph.nodes["3"].inputs == {"word": ["2", 0], "number": ["1", 1]}
    assert set(graph.nodes) == {"1", "2", "3", "4"}
    outcome = run(PAGE)
    assert outcome.ui["4"]["text"] == ["HATHAT:2.0"]
    assert outcome.ui["4"]["info"][0]["workflow"] == PAGE, "the page's own JSON goes into pictures"


def test_page_links_as_objects():
    data = page()
    data["links"] = [
        {"id": i, "origin_id": a, "origin_slot": s, "target_id": b, "target_slot": t, "type": k}
        for i, a, s, b, t, k in data["links"]
    ]
    assert run(data).ui["4"]["text"] == ["HATHAT:2.0"]


def test_page_muted_bypassed_primitive():
    muted = graph_from_json(page(n1={"mode": 2}), SPECS)
    assert muted.nodes["3"].inputs == {"word": ["2", 0]}
    assert "muted" in muted.notes[0]
    bypassed = graph_from_json(page(n3={"mode": 4}), SPECS)
    assert bypassed.nodes["4"].inputs == {"value": ["2", 0]}
    primitive = page(n1={"type": "PrimitiveNode", "widgets_values": [3, "fixed"]})
    assert graph_from_json(primitive, SPECS).nodes["3"].inputs == {"word": ["2", 0], "number": 3}


def test_page_widget_values_as_object():
    data = page(n2={"widgets_values": {"text": "x", "style": "plain", "twice": False}})
    assert graph_from_json(data, SPECS).nodes["2"].inputs == {"text": "x", "style": "plain", "twice": False}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({**PAGE, "links": [[1, 2]]}, "malformed"),
        ({**PAGE, "links": PAGE["links"][:-1]}, "link 5 is used but not listed"),
        ({**PAGE, "links": [*PAGE["links"][:-1], [5, 99, 0, 4, 0, "STRING"]]}, "node 99, which does not exist"),
        ({**PAGE, "nodes": [{"id": 1}]}, "lacks its id or type"),
        ({**PAGE, "nodes": PAGE["nodes"][-2:]}, "no active nodes"),
        ({**page(n3={"type": "a1-b2"}), "definitions": {"subgraphs": [{"id": "a1-b2", "name": "My Group"}]}},
         "node 3 is the subgraph 'My Group'"),
        ({**page(), "links": [*PAGE["links"][2:], [2, 1, 1, 3, 1, "FLOAT"], [3, 5, 0, 5, 0, "STRING"]]}, "circle"),
        ([], "a JSON list"),
        (3, "a JSON number"),
        ({}, "no nodes"),
        ({"1": 3}, "entry '1' is a number"),
        ({"1": {"inputs": {}}}, "node 1 has no class_type"),
        ({"1": {"class_type": "Word", "inputs": []}}, "inputs of node 1 are a list"),
    ],
)  # fmt: skip
def test_malformed_files(data, message):
    with pytest.raises(FormatError, match=message):
        graph_from_json(data, SPECS)


def test_files_and_pictures(tmp_path):
    path = tmp_path / "w.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps({"prompt": GOOD}).encode())
    assert run(read_workflow(path)).ui["4"]["text"] == ["HATHAT:2.0"]
    info = PngInfo()
    info.add_text("prompt", json.dumps(GOOD))
    Image.new("RGB", (4, 4)).save(tmp_path / "w.png", pnginfo=info)
    assert read_workflow(tmp_path / "w.png") == GOOD


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"[" * 100000, "not valid JSON"),
        ("a.json", b"\xff\xfe{", "not UTF-8"),
        ("a.png", b"no picture", "cannot be read as a PNG"),
        (None, b"", "is not a file"),
    ],
)
def test_unreadable_files(tmp_path, name, content, message):
    path = tmp_path / (name or "missing.json")
    if name:
        path.write_bytes(content)
    with pytest.raises((FormatError, InputError), match=message):
        read_workflow(path)


def test_picture_without_workflow(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "w.png")
    with pytest.raises(FormatError, match="carries no workflow"):
        read_workflow(tmp_path / "w.png")


def test_pictures_that_pillow_refuses(tmp_path, monkeypatch):
    info = PngInfo()
    info.add_text("prompt", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "w.png", pnginfo=info)
    with pytest.raises(FormatError, match="cannot be read as a PNG"):
        read_workflow(tmp_path / "w.png")
    Image.new("RGB", (40, 40)).save(tmp_path / "w.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(FormatError, match="cannot be read as a PNG"):
        read_workflow(tmp_path / "w.png")


def test_types():
    assert types_fit("STRING", "STRING,INT")
    assert types_fit("*", "MODEL")
    assert not types_fit("MODEL", "CLIP")


def test_unknown_name_error_is_an_input_error():
    assert issubclass(UnknownNameError, InputError)
