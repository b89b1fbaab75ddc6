"""Random full-size bases in half precision: ComfyUI draws from the file what the live adapter draws, for each network.

The bases are made on the spot, one at a time, and deleted. Weights stay in fp16 on both sides and every layer computes
in fp32, so SDXL fits into 14 GiB.
"""

import gc
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from atelier_tests.comfyui.test_networks import drawn, drawn_by_comfyui, learned
from atelier_tests.helpers.full_size import FULL_OF, write_checkpoint
from lora_atelier.core.params import Choice
from lora_atelier.families._base import open_base
from lora_atelier.families._spec import Components, get_family
from lora_atelier.networks._spec import get_network
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.local_models import LocalBase, LocalClip, LocalModel
from lora_atelier.trainer.export import save_lora

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "LoRA": ("lora", {"rank": 4, "alpha": 4.0}),
    "LoCon": ("lora", {"rank": 4, "alpha": 4.0, "conv_rank": 2, "conv_alpha": 2.0}),
    "LoHa": ("loha", {"rank": 2, "alpha": 2.0}),
    "LoKr": ("lokr", {"rank": 4, "alpha": 4.0, "factor": 4}),
    "DoRA": ("lora", {"rank": 4, "alpha": 4.0, "dora": "input"}),
}
STEPS = 1
NEEDED_GIB = {"sd15": (5, 6), "sdxl": (14, 9)}
"""Free memory and free disk."""
TOLERANCE = 0.03
"""ComfyUI rounds the changed weights to fp16 again, which the live adapter does not."""


def free_memory_gib() -> float:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) / 2**20
    raise RuntimeError("/proc/meminfo does not tell the free memory")


def casting(module: nn.Module) -> Any:
    """A forward that casts the layer's weights to fp32 where they are used."""

    def forward(x: Tensor) -> Tensor:
        weight, bias = module.weight.float(), None if module.bias is None else module.bias.float()
        if isinstance(module, nn.Conv2d):
            return module._conv_forward(x, weight, bias)
        return nn.functional.linear(x, weight, bias)

    return forward


def half_stored(components: Components) -> Components:
    """Keeps linear and convolution layers in fp16 and lets them compute in fp32; all else is fp32.

    The UNet's first layer too, whose type the sampler asks for.
    """
    for model in (components.unet, *components.text_encoders):
        first = getattr(model, "conv_in", None)
        for module in model.modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)) and module is not first:
                module.forward = casting(module)
            else:
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.float()
    return components


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """By network: the picture of the live adapter, and ComfyUI's of its file."""
    name, folder = request.param, tmp_path_factory.mktemp(request.param)
    memory, disk = NEEDED_GIB[name]
    if not Path("/proc/meminfo").exists() or free_memory_gib() < memory:
        pytest.skip(f"needs {memory} GiB of free memory")
    if shutil.disk_usage(folder).free < disk * 2**30:
        pytest.skip(f"needs {disk} GiB of disk")
    base = write_checkpoint(folder / f"{name}.safetensors", sizes=FULL_OF[name], dtype=torch.float16, family=name)
    try:
        found, files = live_pictures(name, base, folder)
        gc.collect()
        cases = [{"lora": file, "unet": 1.0, "text": 1.0, "factors": {}, "prompt": PROMPT, "steps": STEPS}
                 for file in files]  # fmt: skip
        (folder / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
        pictures, log = drawn_by_comfyui(folder, base)
        yield {"live": found, "comfy": dict(zip(found, pictures, strict=True)), "log": log}
    finally:
        base.unlink()


PROMPT = "red circle, white background"


def live_pictures(name: str, path: Path, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The base's own picture first (its file is ""), then that of every network, and their files."""
    host, family = LocalHost(folder / "base"), get_family(name)
    with torch.inference_mode(False), torch.no_grad():
        components = half_stored(family.load(path, parts=("unet", "text_encoder"), dtype=torch.float16))
    base = open_base(path, name=path.name)
    loaded = LocalBase(family, components, host.device(), name, base.variant)
    model, clip = LocalModel(loaded), LocalClip(loaded)
    found, files = {"": drawn(host, model, clip, steps=STEPS)}, [""]
    for title, (network, settings) in NETWORKS.items():
        chosen = Choice(kind="network", name=network, params=get_network(network).params(**settings))
        adapter = learned(model, chosen)
        with torch.no_grad():
            found[title] = drawn(host, model, clip, steps=STEPS)
        file = folder / f"{title}.safetensors"
        accepted = family.accepted_stems(components)
        save_lora(file, adapter, metadata={}, dtype="fp32", accepted_stems=accepted)
        files.append(str(file))
        adapter.detach_from_model()
    return found, files


def test_every_key_is_loaded(world: dict[str, Any]) -> None:
    assert not [line for line in world["log"] if "not loaded" in line or line.startswith("ERROR") or "MISMATCH" in line]


def test_the_base_is_the_same_model(world: dict[str, Any]) -> None:
    live, comfy = world["live"][""], world["comfy"][""]
    assert float((live - comfy).norm()) < 0.01 * float(live.norm())


@pytest.mark.parametrize("title", NETWORKS)
def test_comfyui_draws_the_live_adapter(world: dict[str, Any], title: str) -> None:
    live, comfy, plain = world["live"][title], world["comfy"][title], world["live"][""]
    moved, off = float((live - plain).norm()), float((comfy - live).norm())
    print(f"{title}: moved {moved:.4f}, off {off:.5f}, {off / moved:.4%}; {os.environ.get('COMFYUI_DIR', '')}")
    assert moved > 0.02
    assert off < TOLERANCE * moved + 2e-3
