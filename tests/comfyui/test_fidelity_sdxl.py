"""The local host against ComfyUI on pico SDXL: both text encoders, sizes, LoRA, predictions."""

import numpy as np
import pytest
import torch

from atelier_tests.comfyui.test_fidelity import LONG, MAX_MEAN, PICTURE, draw, drawn_by_comfyui
from lora_atelier.nodes.host.local_schedules import NoiseLevels, sigmas_for
from lora_atelier.nodes.host.protocol import PICO_XL_NAME

V = {"prediction_type": "v_prediction", "zero_terminal_snr": False}
V_ZERO = {"prediction_type": "v_prediction", "zero_terminal_snr": True}
CASES = [
    *({**PICTURE, "sampler": sampler, "seed": 11} for sampler in ("euler", "euler_ancestral", "ddim", "dpmpp_2m")),
    {**PICTURE, "scheduler": "karras", "width": 128, "height": 72},
    {**PICTURE, "cfg": 1.0, "width": 72, "height": 104},
    {**PICTURE, "positive": "red (circle:1.4), ((white background)), (small:0.6)", "negative": "(blue:1.3)"},
    {**PICTURE, "positive": LONG, "negative": "green"},
    {**PICTURE, "batch": 2, "sampler": "euler_ancestral"},
    {**PICTURE, "denoise": 0.55, "start": 4},
    {**PICTURE, "lora": [0.8, 0.5], "sampler": "dpmpp_2m"},
    {**PICTURE, "lora": [0.0, 1.0]},
    {**PICTURE, "clip_layer": -1},
    {**PICTURE, "clip_layer": -3},
    {**PICTURE, "clip_layer": -9},
    {**PICTURE, "variant": V},
    {**PICTURE, "variant": V_ZERO},
    {**PICTURE, "variant": V_ZERO, "scheduler": "sgm_uniform", "sampler": "euler_ancestral"},
    {"kind": "encode", "positive": "", "negative": "", "seed": 3, "width": 101, "height": 77},
    *({"kind": "text", "positive": text} for text in ("", "red circle", "(a:1.3), b", LONG)),
    *(
        {"kind": "sigmas", "scheduler": scheduler, "steps": 7, "denoise": 1.0, "variant": V_ZERO}
        for scheduler in ("normal", "karras", "sgm_uniform")
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Host, base, LoRA, and what ComfyUI drew."""
    return drawn_by_comfyui(tmp_path_factory.mktemp("fidelity-sdxl"), PICO_XL_NAME, CASES)


def _named(*kinds):
    return [pytest.param(number, id=str(number)) for number, case in enumerate(CASES) if case["kind"] in kinds]


@pytest.mark.parametrize("number", _named("picture"))
def test_pictures(world, number):
    ours, theirs = draw(world, CASES[number]), torch.from_numpy(world[3][number])
    assert ours.shape == theirs.shape
    mean = float((ours - theirs).abs().mean())
    print(f"mean difference {mean * 255:.4f}/255, largest {float((ours - theirs).abs().max()) * 255:.2f}/255")
    assert mean <= MAX_MEAN


@pytest.mark.parametrize("number", _named("text", "encode"))
def test_encodings(world, number):
    ours, theirs = draw(world, CASES[number]), torch.from_numpy(world[3][number])
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("number", _named("sigmas"))
def test_sigmas_with_zero_terminal_snr(world, number):
    case = CASES[number]
    levels = NoiseLevels.from_alphas_cumprod(world[1][0].base.family.alphas_cumprod(zero_terminal_snr=True))
    ours = sigmas_for(levels, case["scheduler"], case["steps"], case["denoise"])
    np.testing.assert_allclose(ours, world[3][number], rtol=1e-5, atol=1e-7)
