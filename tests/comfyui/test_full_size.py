"""A random full-size SD1.5 checkpoint: trained for four steps, its LoRA read by the core loader."""

import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from atelier_tests.comfyui import graphs
from atelier_tests.comfyui.graphs import node
from atelier_tests.helpers.comfy_server import Comfy
from atelier_tests.helpers.full_size import write_checkpoint
from lora_atelier.core.tensors import read_header

NAME = "random-sd15.safetensors"
NEEDED_BYTES = 6 * 2**30


@pytest.fixture(scope="module")
def checkpoint(comfy: Comfy) -> Iterator[str]:
    if shutil.disk_usage(comfy.base).free < NEEDED_BYTES:
        pytest.skip("needs 6 GiB of disk")
    path = comfy.base / "models/checkpoints" / NAME
    write_checkpoint(path, dtype=torch.float16)
    yield NAME
    path.unlink()


def test_trains_and_loads_and_draws_the_same(comfy: Comfy, checkpoint: str) -> None:
    graphs.draw_folder(comfy.base / "input/full", 2)
    job = graphs.training(
        "full", base=checkpoint, run_name="full", steps=4, batch_size=1, resolution_px=64, bucket_min_px=64
    )
    comfy.run(job, timeout_s=1800)
    (name,) = [name for name in graphs.lora_names(comfy) if "full" in name]
    shapes = read_header(comfy.base / "models/loras" / name).shapes
    assert len(shapes) == 3 * (192 + 72)

    base = {"b1": node("CheckpointLoaderSimple", ckpt_name=checkpoint)}
    ours = {
        "b0": node("AtelierOpenBase", base_name=checkpoint, dtype="fp32"),
        "b1": node("AtelierBaseToModel", base=["b0", 0]),
    }
    draw = graphs.core_drawing(["l", 0], ["l", 1], ["b1", 2], prompt="a tree", seed=2, size_px=64, steps=2)
    strengths = {"strength_model": 1.0, "strength_clip": 1.0}
    core = {"l": node("LoraLoader", model=["b1", 0], clip=["b1", 1], lora_name=name, **strengths)}
    loader = {
        "o": node("AtelierOpenLora", lora_name=name, block_weights="", **strengths),
        "l": node("AtelierApplyLora", model=["b1", 0], clip=["b1", 1], lora=["o", 0], block_weights="ALL", **strengths),
    }
    before = len(comfy.log())
    expected = graphs.picture(comfy, comfy.run({**base, **core, **draw}, timeout_s=1800), "c6")
    said = comfy.log()[before:]
    assert "lora key not loaded" not in said
    assert "NOT LOADED" not in said
    found = graphs.picture(comfy, comfy.run({**ours, **loader, **draw}, timeout_s=1800), "c6")
    np.testing.assert_array_equal(found, expected)
