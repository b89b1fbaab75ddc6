"""Training on pico inside a real ComfyUI: cancel, resume, cache, and what the core nodes make of the result."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atelier_tests.comfyui import graphs
from atelier_tests.comfyui.graphs import node
from atelier_tests.helpers.comfy_server import Comfy
from lora_atelier.core.tensors import read_tensors


@pytest.fixture(scope="module")
def drawn(comfy: Comfy) -> str:
    graphs.draw_folder(comfy.base / "input/kest", 8)
    return "kest"


@pytest.fixture(scope="module")
def trained(comfy: Comfy, drawn: str) -> str:
    """Name of a LoRA trained on pico for a few steps."""
    comfy.run(graphs.training(drawn, run_name="short", steps=6))
    (name,) = [name for name in graphs.lora_names(comfy) if "short" in name]
    return name


def base_nodes() -> graphs.Graph:
    return {
        "b1": node("AtelierOpenBase", base_name=graphs.PICO, dtype="fp32"),
        "b2": node("AtelierBaseToModel", base=["b1", 0]),
    }


def test_a_trained_lora_is_listed_at_once_and_loads_with_every_key(comfy: Comfy, trained: str) -> None:
    draw = graphs.core_drawing(["l", 0], ["l", 1], ["b2", 2], prompt="lumo kest, red", seed=5, size_px=96)
    lora = node("LoraLoader", model=["b2", 0], clip=["b2", 1], lora_name=trained, strength_model=1.0, strength_clip=1.0)
    comfy.run({**base_nodes(), "l": lora, **draw})
    assert "lora key not loaded" not in comfy.log()
    assert "NOT LOADED" not in comfy.log()


@pytest.mark.parametrize("strengths", [(1.0, 1.0), (0.7, 0.3), (0.0, 1.0), (-1.5, 0.0)])
def test_preset_all_is_the_core_loader(comfy: Comfy, trained: str, strengths: tuple[float, float]) -> None:
    model, clip = strengths
    draw = graphs.core_drawing(["l", 0], ["l", 1], ["b2", 2], prompt="lumo kest, red", seed=5, size_px=96)
    core = node(
        "LoraLoader", model=["b2", 0], clip=["b2", 1], lora_name=trained, strength_model=model, strength_clip=clip
    )
    ours = {
        "o": node("AtelierOpenLora", lora_name=trained, strength_model=1.0, strength_clip=1.0, block_weights=""),
        "l": node(
            "AtelierApplyLora",
            model=["b2", 0],
            clip=["b2", 1],
            lora=["o", 0],
            strength_model=model,
            strength_clip=clip,
            block_weights="ALL",
        ),
    }
    expected = graphs.picture(comfy, comfy.run({**base_nodes(), "l": core, **draw}), "c6")
    found = graphs.picture(comfy, comfy.run({**base_nodes(), **ours, **draw}), "c6")
    np.testing.assert_array_equal(found, expected)


def test_ones_by_number_are_the_core_loader_and_other_weights_are_not(comfy: Comfy, trained: str) -> None:
    pictures = {}
    for weights in ("ALL", ",".join(["1"] * 17), ",".join(["1"] * 26), "NIN", ",".join(["0.5"] * 17)):
        entry = comfy.run(
            {
                **base_nodes(),
                "o": node(
                    "AtelierOpenLora", lora_name=trained, strength_model=8.0, strength_clip=1.0, block_weights=""
                ),
                "l": node(
                    "AtelierApplyLora",
                    model=["b2", 0],
                    clip=["b2", 1],
                    lora=["o", 0],
                    strength_model=1.0,
                    strength_clip=1.0,
                    block_weights=weights,
                ),
                **graphs.core_drawing(["l", 0], ["l", 1], ["b2", 2], prompt="lumo kest", seed=5, size_px=96),
            }
        )
        pictures[weights] = graphs.picture(comfy, entry, "c6")
    everything, seventeen, twenty_six, without_in, half = pictures.values()
    np.testing.assert_array_equal(seventeen, everything)
    np.testing.assert_array_equal(twenty_six, everything)
    assert (without_in != everything).any()
    assert (half != everything).any()


def test_a_grid_cell_is_the_same_wiring_by_hand(comfy: Comfy, trained: str) -> None:
    entry = comfy.run(
        {
            **base_nodes(),
            "x": node("AtelierAxisLora", files=trained, strength=0.8, include_base=True),
            "y": node("AtelierAxisSeed", seeds="5, 6"),
            "g": graphs.grid(
                ["b2", 0], ["b2", 1], ["b2", 2], prompt="lumo kest, red", seed=5, size_px=96, x=["x", 0], y=["y", 0]
            ),
        }
    )
    folders = [path.parent for path in (comfy.base / "output/atelier/grids").glob("*/cells.json")]
    folder = max(folders, key=lambda path: path.stat().st_mtime_ns)
    cells = json.loads((folder / "cells.json").read_text(encoding="utf-8"))["cells"]
    assert len(cells) == 4
    assert entry["outputs"]["g"]["images"][0]["filename"].startswith("xy_grid-")
    for cell in cells:
        loader: graphs.Graph = {}
        model: list[Any] = ["b2", 0]
        clip: list[Any] = ["b2", 1]
        if cell["column"] == 1:
            strengths = {"strength_model": 0.8, "strength_clip": 0.8}
            loader = {"l": node("LoraLoader", model=model, clip=clip, lora_name=trained, **strengths)}
            model, clip = ["l", 0], ["l", 1]
        seed = 5 + cell["row"]
        draw = graphs.core_drawing(model, clip, ["b2", 2], prompt="lumo kest, red", seed=seed, size_px=96)
        expected = graphs.picture(comfy, comfy.run({**base_nodes(), **loader, **draw}), "c6")
        from PIL import Image

        found = np.asarray(Image.open(folder / "cells" / cell["file"]).convert("RGB"))
        np.testing.assert_array_equal(found, expected)


def test_the_second_queue_returns_at_once(comfy: Comfy, drawn: str) -> None:
    graph = graphs.training(drawn, run_name="twice", steps=5, seed=77)
    comfy.run(graph)
    runs = graphs.run_folders(comfy)
    started = time.monotonic()
    entry = comfy.run(graph)
    assert time.monotonic() - started < 2.0
    cached = [details["nodes"] for kind, details in entry["status"]["messages"] if kind == "execution_cached"]
    assert "4" in cached[0]
    assert graphs.run_folders(comfy) == runs
    comfy.post("/free", {"unload_models": True, "free_memory": True})
    time.sleep(1.5)
    started = time.monotonic()
    comfy.run(graph)
    assert time.monotonic() - started < 10.0
    assert graphs.run_folders(comfy) == runs


def test_an_edited_caption_is_seen(comfy: Comfy, drawn: str) -> None:
    graphs.draw_folder(comfy.base / "input/edited", 4, seed=3)
    graph = graphs.training("edited", steps=2)
    comfy.run(graph)
    before = graphs.run_folders(comfy)
    (comfy.base / "input/edited/001.txt").write_text("lumo kest, something else", encoding="utf-8")
    comfy.run(graph)
    assert len(graphs.run_folders(comfy)) == len(before) + 1


def test_cancel_leaves_a_run_that_resumes_to_the_same_numbers(comfy: Comfy, drawn: str) -> None:
    steps = 24
    graph = graphs.training(drawn, run_name="cancelled", steps=steps, seed=41)
    before = set(graphs.run_folders(comfy))
    prompt_id = comfy.queue(graph)
    folder = _wait_for_steps(comfy, before, 5)
    comfy.post("/interrupt", {})
    entry = comfy.wait(prompt_id)
    kinds = [kind for kind, _ in entry["status"]["messages"]]
    assert "execution_interrupted" in kinds, kinds
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "cancelled"
    assert 0 < status["step"] < steps
    comfy.run(graph)
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["step"]) == ("finished", steps)
    whole = graphs.training(drawn, run_name="uninterrupted", steps=steps, seed=41, mode="restart")
    comfy.run(whole)
    first, second = (
        read_tensors(next((comfy.base / "models/loras/atelier" / name).glob("*.safetensors")))
        for name in ("cancelled", "uninterrupted")
    )
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert value.equal(second[key]), key


def _wait_for_steps(comfy: Comfy, before: set[Path], steps: int) -> Path:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for folder in set(graphs.run_folders(comfy)) - before:
            metrics = folder / "metrics.csv"
            if metrics.is_file() and metrics.read_text(encoding="utf-8").count("\n") > steps:
                return folder
        time.sleep(0.05)
    raise AssertionError(f"no run reached step {steps}:\n{comfy.log()[-3000:]}")


def test_errors_reach_the_page_in_one_sentence(comfy: Comfy) -> None:
    (comfy.base / "input/empty").mkdir(exist_ok=True)
    for folder, part in (
        ("empty", "no picture"),
        ("../outside", "climbs out"),
        ("/etc", "outside the allowed folders"),
    ):
        entry = comfy.wait(comfy.queue(graphs.training(folder)))
        details = dict(entry["status"]["messages"])["execution_error"]
        assert part in details["exception_message"], details["exception_message"]
        assert details["node_id"] == "2"
