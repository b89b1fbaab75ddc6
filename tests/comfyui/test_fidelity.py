"""The local host against ComfyUI itself: same seed, same picture."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lora_atelier.core.tensors import write_tensors
from lora_atelier.families._base import open_base
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.local_generate import encode, encode_prompt
from lora_atelier.nodes.host.local_schedules import SCHEDULERS, sigmas_for
from lora_atelier.nodes.host.protocol import PICO_NAME, PICO_XL_NAME

PACK = Path(__file__).resolve().parents[2]
CHILD = PACK / "tests" / "helpers" / "fidelity_child.py"
MAX_MEAN = 2 / 255

PICTURE = {
    "kind": "picture", "positive": "red circle, white background, small", "negative": "", "seed": 7, "steps": 14,
    "cfg": 6.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0, "width": 96, "height": 96,
}  # fmt: skip
LONG = ", ".join(["blue star", "pink background", "lumo kest", "two hats", "eyes"] * 9)

CASES = [
    *(
        {**PICTURE, "sampler": sampler, "scheduler": scheduler, "seed": seed}
        for sampler in ("euler", "euler_ancestral", "ddim", "dpmpp_2m")
        for scheduler, seed in (("normal", 1), ("karras", 2**40 + 3))
    ),
    {**PICTURE, "scheduler": "ddim_uniform", "sampler": "ddim"},
    {**PICTURE, "scheduler": "sgm_uniform", "width": 128, "height": 72},
    {**PICTURE, "scheduler": "exponential", "sampler": "dpmpp_2m"},
    {**PICTURE, "scheduler": "beta", "sampler": "euler_ancestral"},
    {**PICTURE, "scheduler": "simple", "cfg": 1.0},
    {**PICTURE, "denoise": 0.55, "start": 4},
    {**PICTURE, "positive": "red (circle:1.4), ((white background)), (small:0.6)", "negative": "(blue:1.3)"},
    {**PICTURE, "positive": LONG, "negative": "green"},
    {**PICTURE, "batch": 3, "sampler": "euler_ancestral"},
    {**PICTURE, "batch": 2, "batch_index": [3, 1]},
    {**PICTURE, "lora": [0.8, 0.5], "sampler": "dpmpp_2m", "scheduler": "karras"},
    {**PICTURE, "lora": [-1.0, 0.0]},
    {**PICTURE, "clip_layer": -2},
    {"kind": "encode", "positive": "", "negative": "", "seed": 3, "width": 101, "height": 77},
]
TEXTS = ["", "red circle", "(a:1.3), b", r"\(lumo\) (kest:0.4)", LONG, "x) (y", "a(b:1.2)(c)", "word " * 80]
CASES += [{"kind": "text", "positive": text} for text in TEXTS]
CASES += [
    {"kind": "sigmas", "scheduler": scheduler, "steps": steps, "denoise": denoise}
    for scheduler in SCHEDULERS
    for steps, denoise in ((1, 1.0), (7, 1.0), (20, 1.0), (9, 0.37))
]
CASES += [{"kind": "times", "factor": factor} for factor in (0.9, 1.0, 1.004)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Host, base, LoRA, and what ComfyUI drew."""
    return drawn_by_comfyui(tmp_path_factory.mktemp("fidelity"), PICO_NAME, CASES)


def drawn_by_comfyui(folder, base_name, cases):
    """Host, a tiny base's parts, a LoRA for it, and what ComfyUI made of each case."""
    host = LocalHost(folder / "base")
    path = host.checkpoint_path(base_name)
    parts = host.load_base(open_base(path, name=base_name))
    lora = _random_lora(parts)
    write_tensors(folder / "random.safetensors", lora, {})
    (folder / "cases.json").write_text(json.dumps(cases))
    python = os.environ.get("COMFYUI_PYTHON", sys.executable)
    names = [
        os.environ["COMFYUI_DIR"],
        PACK,
        folder / "cases.json",
        folder / "random.safetensors",
        folder / "drawn.npz",
        path,
    ]
    done = subprocess.run([python, CHILD, *map(str, names)], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "lora key not loaded" not in done.stderr
    with np.load(folder / "drawn.npz") as drawn:
        return host, parts, lora, {number: drawn[str(number)] for number in range(len(cases))}


def _random_lora(parts):
    """Rank 4 on every kohya target of UNet and text encoder."""
    model, _, _ = parts
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for target in model.base.family.targets(model.base.components):
        out, features = target.module.weight.shape[:2]
        tail = (1, 1) if target.module.weight.ndim == 4 else ()
        tensors[f"{target.stem}.lora_down.weight"] = torch.randn((4, features, *tail), generator=generator) * 0.1
        tensors[f"{target.stem}.lora_up.weight"] = torch.randn((out, 4, *tail), generator=generator) * 0.1
        tensors[f"{target.stem}.alpha"] = torch.tensor(2.0)
    return tensors


def draw(world, case):
    """The same case on the local host."""
    host, (model, clip, vae), lora, _ = world
    if "variant" in case:
        told = {"prediction": case["variant"]["prediction_type"]}
        told["zero_terminal_snr"] = "on" if case["variant"]["zero_terminal_snr"] else "off"
        model, _, _ = host.load_base(open_base(host.checkpoint_path(PICO_XL_NAME), name=PICO_XL_NAME, **told))
    if case.get("lora"):
        weights = {"strength_model": case["lora"][0], "strength_clip": case["lora"][1], "stem_strengths": {}}
        model, clip = host.apply_lora(model, clip, lora, **weights)
    if case.get("clip_layer"):
        from lora_atelier.nodes.host.local_nodes import CLIPSetLastLayer

        clip = CLIPSetLastLayer().set_last_layer(clip, case["clip_layer"])[0]
    positive = encode_prompt(clip, case["positive"])
    if case["kind"] == "text":
        return positive[0][0]
    if case["kind"] == "encode":
        generator = torch.Generator().manual_seed(case["seed"])
        return encode(vae, torch.rand((1, case["height"], case["width"], 3), generator=generator))["samples"]
    latent = {"samples": torch.zeros((case.get("batch", 1), 4, case["height"] // 8, case["width"] // 8))}
    if "start" in case:
        generator = torch.Generator().manual_seed(case["start"])
        latent["samples"] = torch.randn(latent["samples"].shape, generator=generator) * 5.0
    if "batch_index" in case:
        latent["batch_index"] = case["batch_index"]
    settings = {key: case[key] for key in ("seed", "steps", "cfg", "sampler", "scheduler", "denoise")}
    drawn = host.sample_latent(model, positive, encode_prompt(clip, case["negative"]), latent, **settings)
    return host.decode(vae, drawn)


def _named(kind):
    return [pytest.param(number, id=_id(case)) for number, case in enumerate(CASES) if case["kind"] == kind]


def _id(case):
    changed = {key: value for key, value in case.items() if PICTURE.get(key) != value and key != "kind"}
    return "-".join(f"{key}={str(value)[:24]}" for key, value in changed.items()) or "plain"


@pytest.mark.parametrize("number", _named("picture"))
def test_pictures(world, number):
    ours, theirs = draw(world, CASES[number]), torch.from_numpy(world[3][number])
    assert ours.shape == theirs.shape
    mean = float((ours - theirs).abs().mean())
    print(f"mean difference {mean * 255:.4f}/255, largest {float((ours - theirs).abs().max()) * 255:.2f}/255")
    assert mean <= MAX_MEAN


@pytest.mark.parametrize("number", [*_named("text"), *_named("encode")])
def test_encodings(world, number):
    ours, theirs = draw(world, CASES[number]), torch.from_numpy(world[3][number])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("number", _named("sigmas"))
def test_sigmas(world, number):
    case = CASES[number]
    levels = world[1][0].base.levels
    ours = sigmas_for(levels, case["scheduler"], case["steps"], case["denoise"])
    np.testing.assert_allclose(ours, world[3][number], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("number", _named("times"))
def test_timesteps(world, number):
    levels = world[1][0].base.levels
    ours = [levels.timestep_at(float(s)) for s in levels.sigmas[::37] * CASES[number]["factor"]]
    np.testing.assert_array_equal(ours, world[3][number])
