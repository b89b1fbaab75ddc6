"""Merged checkpoints in a real ComfyUI: the core loader reads them, and a live merge draws what the saved one draws."""

import json
import shutil
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from atelier_tests.comfyui import graphs
from atelier_tests.comfyui.graphs import Graph, node
from atelier_tests.helpers.comfy_server import Comfy
from atelier_tests.helpers.full_size import write_checkpoint
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.nodes.host.shared import PICO_BASES

NEEDED_BYTES = 9 * 2**30
FULL = [f"merge-random-{number}.safetensors" for number in range(2)]


@pytest.fixture(scope="module")
def full_size(comfy: Comfy) -> Iterator[list[str]]:
    """Two random SD1.5 checkpoints."""
    folder = comfy.base / "models/checkpoints"
    if shutil.disk_usage(folder).free < NEEDED_BYTES:
        pytest.skip("needs 9 GiB of disk")
    for seed, name in enumerate(FULL):
        write_checkpoint(folder / name, dtype=torch.float16, seed=seed)
    yield FULL
    for name in (*FULL, "merged-full.safetensors"):
        (folder / name).unlink(missing_ok=True)


def child_of(comfy: Comfy, pico: str, name: str) -> str:
    """A checkpoint whose weights have moved away from a tiny base's."""
    path = PICO_BASES[pico]
    generator = torch.Generator().manual_seed(3)
    tensors = {
        key: value + 0.03 * value.float().std().nan_to_num() * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and value.ndim > 1
        else value
        for key, value in read_tensors(path).items()
    }
    tensors = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    write_tensors(comfy.base / "models/checkpoints" / name, tensors, read_header(path).metadata)
    return name


def merged(recipe: str, name: str) -> Graph:
    """A recipe, saved and live."""
    output = {"dtype": "fp16", "stochastic_rounding": False, "seed": 0}
    return {
        "r": node("AtelierMergeRecipe", recipe=recipe),
        "s": node("AtelierSaveMerge", model=["r", 0], name=name, replace=True, **output),
        "live": node("AtelierMergeToModel", model=["r", 0], **output),
    }


def drawing(comfy: Comfy, graph: Graph, loader: str, size_px: int) -> np.ndarray:
    draw = graphs.core_drawing(
        [loader, 0], [loader, 1], [loader, 2], prompt="red circle", seed=2, size_px=size_px, steps=2
    )
    return graphs.picture(comfy, comfy.run({**graph, **draw}, timeout_s=1800), "c6")


@pytest.mark.parametrize("pico", list(PICO_BASES))
def test_live_is_saved(comfy: Comfy, pico: str) -> None:
    family = "xl" if "XL" in pico else "sd"
    child = child_of(comfy, pico, f"child-{family}.safetensors")
    graph = merged(f"x = {pico} + {child}, 0.5, fp16", f"live-{family}")
    saved = {**graph, "m": node("AtelierBaseToModel", base=["s", 0])}
    live = drawing(comfy, graph, "live", 96)
    np.testing.assert_array_equal(live, drawing(comfy, saved, "m", 96))
    parent = {
        "o": node("AtelierOpenBase", base_name=pico, dtype="fp32"),
        "m": node("AtelierBaseToModel", base=["o", 0]),
    }
    assert (live != drawing(comfy, parent, "m", 96)).any()


def test_the_core_loader_reads_a_full_size_merge(comfy: Comfy, full_size: list[str]) -> None:
    one, two = full_size
    graph = merged(f"x = {one} + {two}, 0.3, fp16", "merged-full")
    live = drawing(comfy, graph, "live", 64)
    before = len(comfy.log())
    core = {"load": node("CheckpointLoaderSimple", ckpt_name="merged-full.safetensors")}
    loaded = drawing(comfy, core, "load", 64)
    said = comfy.log()[before:].lower()
    assert "missing" not in said, said[-2000:]
    assert "unexpected" not in said, said[-2000:]
    np.testing.assert_array_equal(live, loaded)
    metadata = read_header(comfy.base / "models/checkpoints/merged-full.safetensors").metadata
    assert json.loads(metadata["sd_merge_recipe"])["type"] == "lora-atelier"
