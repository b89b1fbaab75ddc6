"""Block weights on the local host: ALL is the plain loader, a baked file is the live LoRA, grids know of steps."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.tensors import write_tensors
from lora_atelier.evaluator.cells import Cell
from lora_atelier.families._base import open_base
from lora_atelier.nodes._draw import CellDrawer
from lora_atelier.nodes.host import set_host
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.local_nodes import LoraLoader

SETTINGS = {"seed": 5, "steps": 3, "cfg": 4.0, "sampler": "euler", "scheduler": "normal"}
WEIGHTS = "OUTALL MID=0.4 IN=-0.3:lbwe=OUT:attn2:0.5"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    host = LocalHost(tmp_path_factory.mktemp("blocks"))
    set_host(host)
    path = host.folders.models("checkpoints")[0] / "tiny.safetensors"
    write_tiny_checkpoint(path, dtype=torch.float32)
    model, clip, vae = host.load_base(open_base(path, name="tiny.safetensors"))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for target in model.base.family.targets(model.base.components):
        out, features = target.module.weight.shape[:2]
        tail = (1, 1) if target.module.weight.ndim == 4 else ()
        tensors[f"{target.stem}.lora_down.weight"] = torch.randn((2, features, *tail), generator=generator) * 0.1
        tensors[f"{target.stem}.lora_up.weight"] = torch.randn((out, 2, *tail), generator=generator) * 0.1
        tensors[f"{target.stem}.alpha"] = torch.tensor(1.0)
    write_tensors(host.loras_dir() / "x.safetensors", tensors, {})
    yield SimpleNamespace(host=host, model=model, clip=clip, vae=vae)
    set_host(None)


def draw(world, model, clip):
    texts = [world.host.encode_prompt(clip, text) for text in ("red circle", "blurry")]
    return world.host.sample(model, *texts, width_px=64, height_px=48, **SETTINGS)["samples"]


def opened(world, name="x.safetensors", weights="", unet=0.8, text=0.6):
    node = NODE_CLASS_MAPPINGS["AtelierOpenLora"]()
    return node.open(name, strength_model=unet, strength_clip=text, block_weights=weights)[0]


def applied(world, lora):
    node = NODE_CLASS_MAPPINGS["AtelierApplyLora"]()
    given = {"strength_model": 1.0, "strength_clip": 1.0, "block_weights": ""}
    return draw(world, *node.apply(world.model, world.clip, lora, **given)[:2])


def test_all_is_the_plain_loader(world):
    core = draw(world, *LoraLoader().load_lora(world.model, world.clip, "x.safetensors", 0.8, 0.6))
    assert torch.equal(applied(world, opened(world, weights="ALL")), core)
    node = NODE_CLASS_MAPPINGS["AtelierLoraPrompt"]()
    model, clip, prompt, *_ = node.apply(world.model, world.clip, "red circle <lora:x:0.6:0.8:ALL>")
    assert prompt == "red circle"
    assert torch.equal(draw(world, model, clip), core)


def test_a_baked_file_is_the_live_lora(world):
    lora = opened(world, weights=WEIGHTS)
    baked, _ = NODE_CLASS_MAPPINGS["AtelierBakeLora"]().bake(lora, "baked/x", "refuse")["result"]
    live = applied(world, lora)
    alone = draw(world, *LoraLoader().load_lora(world.model, world.clip, baked.name, 1.0, 1.0))
    torch.testing.assert_close(alone, live, rtol=1e-3, atol=2e-3)
    assert not torch.allclose(live, applied(world, opened(world)), atol=1e-3)


def test_cells_of_a_grid_know_steps(world):
    drawer = CellDrawer(world.model, world.clip, world.vae)
    base = Cell(prompt="red circle", negative="blurry", width_px=64, height_px=48, **SETTINGS)
    cells = [
        dataclasses.replace(base, loras=(opened(world, weights=weights),))
        for weights in ("ALL", "stop=4", "stop=2", "start=2", "start=4")
    ]
    pictures = [np.asarray(drawer(cell)).astype(int) for cell in cells]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert len({picture.tobytes() for picture in pictures}) == 4
    assert len({cell.key("same") for cell in cells}) == 5
