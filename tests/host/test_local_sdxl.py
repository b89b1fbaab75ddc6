"""The local host on pico SDXL: draws, takes LoRAs on both encoders, follows sizes and predictions."""

import pytest
import torch

from lora_atelier.core.tensors import write_tensors
from lora_atelier.families._base import MergedLora, open_base
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.protocol import PICO_XL_NAME


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return LocalHost(tmp_path_factory.mktemp("host"))


@pytest.fixture(scope="module")
def parts(host):
    return host.load_base(open_base(host.checkpoint_path(PICO_XL_NAME), name=PICO_XL_NAME))


def random_lora(model):
    generator, tensors = torch.Generator().manual_seed(1), {}
    for target in model.base.family.targets(model.base.components):
        out, features = target.module.weight.shape[:2]
        tensors[f"{target.stem}.lora_down.weight"] = torch.randn((2, features), generator=generator) * 0.2
        tensors[f"{target.stem}.lora_up.weight"] = torch.randn((out, 2), generator=generator) * 0.2
    return tensors


def draw(host, model, clip, **sizes):
    positive = host.encode_prompt(clip, "red circle")
    positive[0][1].update(sizes)
    latent = host.sample(
        model, positive, host.encode_prompt(clip, ""), width_px=64, height_px=48, seed=3, steps=2, cfg=4.0,
        sampler="euler", scheduler="normal",
    )  # fmt: skip
    return latent["samples"]


def apply(host, model, clip, tensors, **strengths):
    return host.apply_lora(
        model, clip, tensors, **{"strength_model": 1.0, "strength_clip": 1.0, "stem_strengths": {}, **strengths}
    )


def test_it_draws_and_a_lora_on_unet_and_encoders_changes_the_picture(host, parts):
    model, clip, vae = parts
    plain, lora = draw(host, model, clip), random_lora(model)
    assert host.decode(vae, {"samples": plain}).shape == (1, 48, 64, 3)
    on_unet, on_text = (apply(host, model, clip, lora, **{name: 0.0}) for name in ("strength_clip", "strength_model"))
    second = {key: value for key, value in lora.items() if key.startswith("lora_te2_")}
    pictures = [draw(host, *changed) for changed in (on_unet, on_text, apply(host, model, clip, second))]
    assert all(bool(picture.isfinite().all()) and not torch.allclose(picture, plain) for picture in pictures)
    assert torch.equal(draw(host, model, clip), plain)


def test_the_prompt_is_both_encoders_and_the_second_ones_pooled_state(host, parts):
    _, clip, _ = parts
    ((hidden, said),) = host.encode_prompt(clip, "red circle")
    assert hidden.shape == (1, 77, 96 + 64)
    assert said["pooled_output"].shape == (1, 64)
    long = host.encode_prompt(clip, "red circle, " * 40)[0][0]
    assert long.shape[1] % 77 == 0
    assert long.shape[1] > 77


def test_sizes_in_the_conditioning_are_followed(host, parts):
    model, clip, _ = parts
    plain = draw(host, model, clip)
    assert torch.equal(draw(host, model, clip, width=64, height=48), plain)
    assert not torch.allclose(draw(host, model, clip, crop_w=40), plain)
    assert not torch.allclose(draw(host, model, clip, target_height=900), plain)


def test_what_the_base_handle_says_is_drawn(host, parts, tmp_path):
    model, clip, _ = parts
    path = host.checkpoint_path(PICO_XL_NAME)
    lora = random_lora(model)
    write_tensors(tmp_path / "x.safetensors", lora, {})
    merged = open_base(path, name="xl").with_lora(MergedLora(path=tmp_path / "x.safetensors", name="x"))
    expected = draw(host, *apply(host, model, clip, lora))
    assert torch.equal(draw(host, *host.load_base(merged)[:2]), expected)
    predicted = open_base(path, name="xl", prediction="v_prediction")
    other = host.load_base(predicted)
    assert not torch.allclose(draw(host, *other[:2]), draw(host, model, clip))
    assert host.fingerprint(other[0]) != host.fingerprint(model)
