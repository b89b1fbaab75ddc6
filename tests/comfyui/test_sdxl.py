"""Pico SDXL inside a real ComfyUI: trained there, its LoRA read whole by the core loader."""

import numpy as np
import pytest

from atelier_tests.comfyui import graphs
from atelier_tests.comfyui.graphs import node
from atelier_tests.helpers.comfy_server import Comfy
from lora_atelier.core.tensors import read_header

PICO_XL = "pico SDXL (built in)"


@pytest.fixture(scope="module")
def trained(comfy: Comfy) -> str:
    """Name of a LoRA trained on pico SDXL for a few steps, both text encoders among it."""
    graphs.draw_folder(comfy.base / "input/xl", 6)
    comfy.run(graphs.training("xl", base=PICO_XL, run_name="xlshort", steps=6))
    (name,) = [name for name in graphs.lora_names(comfy) if "xlshort" in name]
    return name


def base_nodes(**choices: str) -> graphs.Graph:
    return {
        "b1": node("AtelierOpenBase", base_name=PICO_XL, dtype="fp32", **choices),
        "b2": node("AtelierBaseToModel", base=["b1", 0]),
    }


def drawing(model: str, clip: str) -> graphs.Graph:
    return graphs.core_drawing([model, 0], [clip, 1], ["b2", 2], prompt="lumo kest, red", seed=5, size_px=96)


def test_the_core_loader_takes_every_key_and_ours_draws_the_same(comfy: Comfy, trained: str) -> None:
    header = read_header(comfy.base / "models/loras" / trained)
    stems = {key.split(".")[0] for key in header.shapes}
    assert {stem.split("_")[1] for stem in stems} == {"te1", "te2", "unet"}
    assert header.metadata["ss_base_model_version"] == "sdxl_base_v1-0"
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    core = node("LoraLoader", model=["b2", 0], clip=["b2", 1], lora_name=trained, **strengths)
    before = len(comfy.log())
    expected = graphs.picture(comfy, comfy.run({**base_nodes(), "l": core, **drawing("l", "l")}), "c6")
    assert "lora key not loaded" not in comfy.log()[before:]
    assert "NOT LOADED" not in comfy.log()[before:]
    ours = {
        "o": node("AtelierOpenLora", lora_name=trained, block_weights="", **strengths),
        "l": node("AtelierApplyLora", model=["b2", 0], clip=["b2", 1], lora=["o", 0], block_weights="ALL", **strengths),
    }
    found = graphs.picture(comfy, comfy.run({**base_nodes(), **ours, **drawing("l", "l")}), "c6")
    np.testing.assert_array_equal(found, expected)
    merged = {
        "o": node("AtelierOpenLora", lora_name=trained, block_weights="", **strengths),
        "m": node("AtelierBaseWithLora", base=["b1", 0], lora=["o", 0]),
    }
    graph = {**base_nodes(), **merged, **drawing("b2", "b2")}
    graph["b2"] = node("AtelierBaseToModel", base=["m", 0])
    np.testing.assert_array_equal(graphs.picture(comfy, comfy.run(graph), "c6"), expected)


def test_the_prediction_that_is_told_reaches_comfyuis_sampler(comfy: Comfy) -> None:
    pictures = [
        graphs.picture(comfy, comfy.run({**base_nodes(**choices), **drawing("b2", "b2")}), "c6")
        for choices in (
            {},
            {"prediction": "epsilon"},
            {"prediction": "v_prediction"},
            {"prediction": "v_prediction", "zero_terminal_snr": "on"},
        )
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert (pictures[1] != pictures[2]).any()
    assert (pictures[2] != pictures[3]).any()
