"""The command line on graphs of core nodes that need no model."""

import json
import signal

import pytest
from PIL import Image
from typer.testing import CliRunner

from atelier_tests.helpers.pictures import save_picture
from lora_atelier.core.progress import Cancelled
from lora_atelier.headless import quickstart
from lora_atelier.headless.cli import CANCELLED_EXIT, app
from lora_atelier.headless.execute import Outcome
from lora_atelier.headless.graph import graph_from_json
from lora_atelier.headless.specs import InputSpec, NodeSpec
from lora_atelier.headless.terminal import TerminalHost, TerminalProgress, hosting
from lora_atelier.nodes.host import get_host
from lora_atelier.nodes.host.local_nodes import LoadImage

GRAPH = {
    "1": {"class_type": "LoadImage", "inputs": {"image": "a.png"}, "_meta": {"title": "Given"}},
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "copies/%width%/x"}},
}


@pytest.fixture
def call(tmp_path):
    save_picture(tmp_path / "base" / "input" / "a.png", (32, 24))
    save_picture(tmp_path / "base" / "input" / "b.png", (16, 16))
    (tmp_path / "w.json").write_text(json.dumps(GRAPH), encoding="utf-8")

    def run(*arguments):
        return CliRunner().invoke(app, [*map(str, arguments)])

    return run


def test_run(call, tmp_path):
    workflow, base = tmp_path / "w.json", tmp_path / "base"
    done = call("run", workflow, "--base-dir", base)
    assert done.exit_code == 0, done.output
    saved = base / "output" / "copies" / "32" / "x_00001_.png"
    assert str(saved) in done.stdout
    with Image.open(saved) as picture, Image.open(base / "input" / "a.png") as given:
        assert picture.tobytes() == given.tobytes()
        assert json.loads(picture.info["prompt"])["1"]["class_type"] == "LoadImage"
        assert "workflow" not in picture.info
    again = call("run", saved, "--base-dir", base, "--set", "given.image=b.png")
    assert again.exit_code == 0, again.output
    assert (base / "output" / "copies" / "16" / "x_00001_.png").is_file()
    assert call("run", workflow, "--base-dir", base).exit_code == 0
    assert (base / "output" / "copies" / "32" / "x_00002_.png").is_file()


def test_page_metadata_is_kept(call, tmp_path):
    page = {
        "nodes": [
            {"id": 1, "type": "LoadImage", "widgets_values": ["a.png", "image"], "outputs": [{"type": "IMAGE"}]},
            {"id": 2, "type": "SaveImage", "widgets_values": ["x"], "inputs": [{"name": "images", "link": 1}]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }
    (tmp_path / "page.json").write_text(json.dumps(page), encoding="utf-8")
    assert call("run", tmp_path / "page.json", "--base-dir", tmp_path / "base").exit_code == 0
    with Image.open(tmp_path / "base" / "output" / "x_00001_.png") as picture:
        assert json.loads(picture.info["workflow"]) == page


def test_check_runs_nothing(call, tmp_path):
    done = call("run", tmp_path / "w.json", "--base-dir", tmp_path / "base", "--check")
    assert done.exit_code == 0
    assert "nothing wrong found" in done.stdout
    assert not list((tmp_path / "base" / "output").rglob("*.png"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "{tmp}/missing.json"], "is not a file"),
        (["run", "{tmp}/w.json", "--set", "1.image=c.png"], "did you mean"),
        (["run", "{tmp}/w.json", "--server", "ftp://x"], "is not a server address"),
        (["run", "{tmp}/w.json", "--server", "127.0.0.1:9"], "no ComfyUI server answers"),
        (["quickstart", "--concept", "kset"], "did you mean 'kest'"),
        (["convert", "{tmp}/none.ckpt"], "none.ckpt"),
    ],
)
def test_failures_are_one_line_and_an_exit_code(call, tmp_path, arguments, said):
    if arguments[0] == "quickstart" and not quickstart.WORKFLOW.is_file():
        pytest.skip("the quickstart workflow is not there")
    arguments = [argument.format(tmp=tmp_path) for argument in arguments]
    if arguments[0] != "convert":
        arguments += ["--base-dir", str(tmp_path / "base")]
    done = call(*arguments)
    assert done.exit_code == 1, done.output
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr


def test_a_fault_of_the_program_keeps_its_traceback(call, tmp_path, monkeypatch):
    monkeypatch.setattr(LoadImage, "load_image", lambda self, image: 1 / 0)
    done = call("run", tmp_path / "w.json", "--base-dir", tmp_path / "base")
    assert done.exit_code == 1
    assert 'node 1 (LoadImage "Given"): ZeroDivisionError' in done.stderr
    assert "Traceback" in done.stderr


def test_ctrl_c_is_a_clean_cancel(call, tmp_path, monkeypatch):
    def press(self, image):
        signal.raise_signal(signal.SIGINT)
        get_host().progress(3).update(1, 3)

    monkeypatch.setattr(LoadImage, "load_image", press)
    done = call("run", tmp_path / "w.json", "--base-dir", tmp_path / "base")
    assert done.exit_code == CANCELLED_EXIT
    assert "cancelled" in done.stderr


def test_the_second_ctrl_c_stops_at_once(tmp_path):
    before = signal.getsignal(signal.SIGINT)
    with hosting(TerminalHost(tmp_path, quiet=True)) as host:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Cancelled):
            host.progress().check()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_nodes_lists_both_kinds(call, tmp_path):
    done = call("nodes", "--base-dir", tmp_path / "base")
    assert done.exit_code == 0
    assert "AtelierTrainLora" in done.stdout
    assert "KSampler" in done.stdout


def test_bar(capsys, tmp_path):
    import io
    import threading

    stream = io.StringIO()
    progress = TerminalProgress("Train", 0, threading.Event(), stream)
    progress.status("caching")
    progress.status("caching")
    for done in range(5):
        progress.update(done, 4, f"loss {done}")
    progress.update(1, 2)
    progress.close()
    assert stream.getvalue().count("caching") == 1
    assert "Train" in stream.getvalue()


def seed_spec(name, **inputs):
    spec = {
        key: InputSpec(name=key, type=kind, choices=choices, options=options, required=True)
        for key, (kind, choices, options) in inputs.items()
    }
    return NodeSpec(class_type=name, title=name, inputs=spec, hidden={}, outputs=(), is_output=False)


def test_quickstart_figures(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "manifest.json").write_text('{"key": "k", "run_name": "r", "total_steps": 3}', encoding="utf-8")
    (run / "status.json").write_text('{"state": "finished", "seconds_training": 2.25}', encoding="utf-8")

    class Handle:
        folder = run
        path = tmp_path / "a.safetensors"

    specs = {
        "AtelierPicoDataset": seed_spec(
            "AtelierPicoDataset", concept=("COMBO", ("kest", "vard"), {}), seed=("INT", None, {"max": 99})
        ),
        "AtelierXYGrid": seed_spec("AtelierXYGrid", seed=("INT", None, {"max": 2**53})),
    }
    data = {
        "d": {"class_type": "AtelierPicoDataset", "inputs": {"concept": "vard", "seed": 1}},
        "t": {"class_type": "AtelierTrainLora", "inputs": {}},
        "probe": {"class_type": "AtelierXYGrid", "inputs": {"seed": ["d", 0]}},
        "sheet": {"class_type": "AtelierXYGrid", "inputs": {"seed": 1}},
        "s": {"class_type": "AtelierScoreGrid", "inputs": {"grid": ["probe", 1]}},
    }
    graph = quickstart.prepare(graph_from_json(data, specs), specs, concept="kest", seed=500)
    assert graph.nodes["d"].inputs == {"concept": "kest", "seed": 99}
    assert graph.nodes["probe"].inputs == {"seed": ["d", 0]}
    assert graph.nodes["sheet"].inputs == {"seed": 500}
    columns = [
        {"trigger_recall": 0.0, "false_triggers": 0.0, "kept": 1.0},
        {"trigger_recall": 0.9, "false_triggers": 0.01, "kept": 0.97},
    ]
    outcome = Outcome(
        results={"t": [[Handle], [Handle], [""]], "s": [[json.dumps({"columns": columns})], []]},
        ui={"sheet": {"images": [{"filename": "g.png", "subfolder": "x", "type": "output"}]}},
        seconds={"t": 3.0},
    )
    assert quickstart.figures(graph, outcome, TerminalHost(tmp_path / "base", quiet=True)) == {
        "trigger_recall_base": 0.0,
        "trigger_recall_trained": 0.9,
        "false_triggers": 0.01,
        "other_prompts_kept": 0.97,
        "seconds_train": 2.2,
        "grid": str(tmp_path / "base" / "output" / "x" / "g.png"),
        "lora": str(tmp_path / "a.safetensors"),
    }
