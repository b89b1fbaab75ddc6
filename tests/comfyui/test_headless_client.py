"""``lora-atelier run --server`` against a real ComfyUI."""

import json

from PIL import Image
from typer.testing import CliRunner

from atelier_tests.helpers.comfy_server import Comfy
from lora_atelier.headless.cli import app

GRAPH = {
    "1": {
        "class_type": "EmptyImage",
        "inputs": {"width": 32, "height": 16, "batch_size": 2, "color": 0xFF8000},
        "_meta": {"title": "Orange"},
    },
    "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "client/x"}},
}


def call(tmp_path, comfy: Comfy, graph, *settings):
    (tmp_path / "w.json").write_text(json.dumps(graph), encoding="utf-8")
    arguments = ["run", tmp_path / "w.json", "--server", comfy.url, "--base-dir", tmp_path / "base", *settings]
    return CliRunner().invoke(app, [*map(str, arguments)])


def test_runs_and_downloads(comfy: Comfy, tmp_path) -> None:
    done = call(tmp_path, comfy, GRAPH, "--set", "orange.width=48")
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "base" / "output" / "server" / "client").iterdir())
    assert len(files) == 2
    assert str(files[0]) in done.stdout
    with Image.open(files[0]) as picture:
        assert picture.size == (48, 16)
        assert picture.getpixel((0, 0)) == (255, 128, 0)
        assert json.loads(picture.info["prompt"])["1"]["inputs"]["width"] == 48


def test_page_format_by_the_servers_own_interfaces(comfy: Comfy, tmp_path) -> None:
    page = {
        "nodes": [
            {"id": 1, "type": "EmptyImage", "widgets_values": [24, 8, 1, 255], "outputs": [{"type": "IMAGE"}]},
            {"id": 2, "type": "SaveImage", "widgets_values": ["p"], "inputs": [{"name": "images", "link": 1}]},
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
    }
    done = call(tmp_path, comfy, page)
    assert done.exit_code == 0, done.output
    (saved,) = (tmp_path / "base" / "output" / "server").iterdir()
    with Image.open(saved) as picture:
        assert picture.size == (24, 8)
        assert json.loads(picture.info["workflow"]) == page


def test_faults_and_failures_name_the_node(comfy: Comfy, tmp_path) -> None:
    wrong = {**GRAPH, "1": {**GRAPH["1"], "inputs": {**GRAPH["1"]["inputs"], "width": -3}}}
    done = call(tmp_path, comfy, wrong)
    assert done.exit_code == 1
    assert 'node 1 (EmptyImage "Orange")' in done.stderr
    outside = {**GRAPH, "2": {**GRAPH["2"], "inputs": {**GRAPH["2"]["inputs"], "filename_prefix": "../../evil"}}}
    done = call(tmp_path, comfy, outside)
    assert done.exit_code == 1
    assert "node 2 (SaveImage" in done.stderr
    assert "failed on the server" in done.stderr
