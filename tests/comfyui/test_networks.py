"""Every network's file in a real ComfyUI: the picture is that of the live adapter, and no key is left over."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_tensors
from lora_atelier.families._base import open_base
from lora_atelier.families._targets import every_target
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network, networks
from lora_atelier.networks._targeting import parse_targeting
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.protocol import PICO_NAME, PICO_XL_NAME
from lora_atelier.trainer.export import save_lora

PACK = Path(__file__).resolve().parents[2]
CHILD = PACK / "tests" / "helpers" / "network_child.py"
PROMPT = "red circle, white background"

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in networks()},
    "lora locon": {"rank": 4, "conv_rank": 2},
    "lora dora": {"rank": 4, "conv_rank": 2, "dora": "input"},
    "lora tucker": {"rank": 4, "conv_rank": 2, "tucker": True},
    "lora stabilized": {"rank": 9, "rank_stabilized": True},
    "loha conv": {"rank": 4, "conv_rank": 2},
    "loha tucker": {"rank": 4, "conv_rank": 2, "tucker": True},
    "lokr conv": {"rank": 2, "factor": 4, "conv_rank": 2},
    "lokr full": {"factor": 4, "full_matrix": True, "conv_rank": 2},
    "lokr both": {"rank": 1, "factor": 4, "decompose_both": True},
    "lokr tucker": {"rank": 2, "factor": 4, "conv_rank": 2, "tucker": True},
}


def choice(variant: str) -> Choice:
    name = variant.partition(" ")[0]
    return Choice(kind="network", name=name, params=get_network(name).params(**VARIANTS[variant]))


def learned(model: Any, chosen: Choice) -> AdapterSet:
    """An adapter on the base's own parts, as after some training."""
    family, components = model.base.family, model.base.components
    network = get_network(chosen.name)
    text = "groups: full" if network.name == "full" else ""
    targets = parse_targeting(text, family.blocks).choose(every_target(family, components), network, chosen.params)
    adapter = AdapterSet.attach([target for target, _ in targets], chosen, seed=0)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for stem in adapter.stems:
            for value in adapter.parts_of(stem).values():
                value.add_(torch.randn(value.shape, generator=generator) * 0.03)
    return adapter.train(False)


def drawn(host: LocalHost, model: Any, clip: Any, *, steps: int = 3) -> torch.Tensor:
    told = host.encode_prompt(clip, PROMPT)
    return host.sample(
        model, told, host.encode_prompt(clip, ""), width_px=64, height_px=64, seed=1, steps=steps, cfg=3.0,
        sampler="euler", scheduler="normal",
    )["samples"]  # fmt: skip


def factors_of(family: Any, stems: tuple[str, ...]) -> dict[str, float]:
    """Half of the strength for the blocks on the way up, none for the middle."""
    blocks = {stem: family.block_of_stem(stem) for stem in stems}
    return {stem: 0.0 if block == "MID" else 0.5 if block.startswith("OUT") else 1.0 for stem, block in blocks.items()}


def drawn_by_comfyui(folder: Path, base: Path) -> tuple[list[torch.Tensor], list[str]]:
    """ComfyUI's pictures of the cases in the folder's `cases.json`, and what it logged."""
    python, cases = os.environ.get("COMFYUI_PYTHON", sys.executable), folder / "cases.json"
    names = [os.environ["COMFYUI_DIR"], PACK, cases, folder / "drawn.npz", base]
    done = subprocess.run([python, CHILD, *map(str, names)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    with np.load(folder / "drawn.npz") as pictures:
        found = [torch.from_numpy(pictures[str(number)]) for number in range(len(json.loads(cases.read_text())))]
    return found, json.loads((folder / "drawn.log.json").read_text())


@pytest.fixture(scope="module", params=[PICO_NAME, PICO_XL_NAME], ids=["sd15", "sdxl"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By variant: pictures of the live adapter and of the file on the local host, and ComfyUI's of the same file."""
    folder = tmp_path_factory.mktemp("networks")
    host = LocalHost(folder / "base")
    path = host.checkpoint_path(request.param)
    model, clip, _ = host.load_base(open_base(path, name=request.param))
    plain, found, cases = drawn(host, model, clip), {}, []
    for variant in VARIANTS:
        adapter = learned(model, choice(variant))
        with torch.no_grad():
            live = drawn(host, model, clip)
        file = folder / f"{variant.replace(' ', '-')}.safetensors"
        accepted = model.base.family.accepted_stems(model.base.components)
        report = save_lora(file, adapter, metadata={}, dtype="fp16", accepted_stems=accepted)
        adapter.detach_from_model()
        factors = factors_of(model.base.family, adapter.stems)
        ours = []
        for unet, text, stem_factors in ((1.0, 1.0, {}), (0.7, 0.4, {}), (0.8, 1.0, factors)):
            given = {"strength_model": unet, "strength_clip": text, "stem_strengths": stem_factors}
            ours.append(drawn(host, *host.apply_lora(model, clip, read_tensors(file), **given)))
            cases.append({"lora": str(file), "unet": unet, "text": text, "factors": stem_factors, "prompt": PROMPT})
        found[variant] = {"live": live, "file": ours, "report": report}
    (folder / "cases.json").write_text(json.dumps(cases))
    pictures, log = drawn_by_comfyui(folder, path)
    for number, variant in enumerate(VARIANTS):
        found[variant]["comfy"] = pictures[3 * number : 3 * number + 3]
    return {"plain": plain, "log": log, **found}


def test_every_key_is_loaded(world: dict[str, Any]) -> None:
    assert not [line for line in world["log"] if "not loaded" in line or line.startswith("ERROR") or "MISMATCH" in line]


@pytest.mark.parametrize("variant", VARIANTS)
def test_comfyui_draws_the_live_adapter(world: dict[str, Any], variant: str) -> None:
    found, plain = world[variant], world["plain"]
    moved = (found["live"] - plain).norm()
    off = (found["comfy"][0] - found["live"]).norm()
    assert float(moved) > 0.05
    assert float(off) < 0.01 * float(moved) + 2e-3, f"{variant}: {float(off):.5f} of {float(moved):.5f}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_local_host_draws_as_comfyui_at_any_strength(world: dict[str, Any], variant: str) -> None:
    found, plain = world[variant], world["plain"]
    for index in range(3):
        moved = (found["comfy"][index] - plain).norm()
        off = (found["comfy"][index] - found["file"][index]).norm()
        assert float(off) < 0.01 * float(moved) + 2e-3, f"{variant} {index}: {float(off):.5f} of {float(moved):.5f}"
