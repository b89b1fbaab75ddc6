"""LoRAs that begin and end at a sampler step, on the local host with a tiny random base."""

import math

import pytest
import torch

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.families._base import open_base
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.nodes.host.local_generate import encode_prompt
from lora_atelier.nodes.host.shared import step_of

STEPS = 6
SETTINGS = {"width_px": 64, "height_px": 48, "seed": 5, "steps": STEPS, "cfg": 4.0}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    host = LocalHost(tmp_path_factory.mktemp("steps"))
    path = host.folders.models("checkpoints")[0] / "tiny.safetensors"
    write_tiny_checkpoint(path, dtype=torch.float32)
    return host, host.load_base(open_base(path, name="tiny.safetensors"))


def random_lora(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in model.base.family.targets(model.base.components):
        out, features = target.module.weight.shape[:2]
        tail = (1, 1) if target.module.weight.ndim == 4 else ()
        tensors[f"{target.stem}.lora_down.weight"] = torch.randn((2, features, *tail), generator=generator)
        tensors[f"{target.stem}.lora_up.weight"] = torch.randn((out, 2, *tail), generator=generator)
    return tensors


def scheduled(loaded, start, stop, *, sampler="euler", scheduler="normal", strength_clip=0.5, seed=0):
    host, (model, clip, _) = loaded
    given = {"strength_model": 0.7, "strength_clip": strength_clip, "stem_strengths": {}}
    model, clip = host.schedule_lora(model, clip, random_lora(model, seed), **given, start=start, stop=stop)
    return draw(host, model, clip, sampler=sampler, scheduler=scheduler)


def plain(loaded, *, on, sampler="euler", scheduler="normal", strength_clip=0.5):
    """The LoRA on at every step or at none; the text is encoded with it either way."""
    host, (model, clip, _) = loaded
    given = {"strength_clip": strength_clip, "stem_strengths": {}}
    model, clip = host.apply_lora(model, clip, random_lora(model), strength_model=0.7 if on else 0.0, **given)
    return draw(host, model, clip, sampler=sampler, scheduler=scheduler)


def draw(host, model, clip, **settings):
    texts = [encode_prompt(clip, text) for text in ("red circle", "blurry")]
    return host.sample(model, *texts, **SETTINGS, **settings)["samples"]


@pytest.mark.parametrize("sampler", ["euler", "euler_ancestral", "dpmpp_2m"])
def test_all_steps_are_the_plain_lora_and_no_step_is_none(loaded, sampler):
    assert torch.equal(scheduled(loaded, None, STEPS + 1, sampler=sampler), plain(loaded, on=True, sampler=sampler))
    assert torch.equal(scheduled(loaded, STEPS + 1, None, sampler=sampler), plain(loaded, on=False, sampler=sampler))


@pytest.mark.parametrize("scheduler", ["normal", "karras", "simple"])
def test_parts_of_the_way_are_drawn_by_hand_alike(loaded, scheduler):
    """Euler: x after every step is known, so the way can be walked with and without the LoRA and joined."""
    host, (model, clip, _) = loaded
    whole = scheduled(loaded, 3, 5, scheduler=scheduler)
    others = [scheduled(loaded, start, stop, scheduler=scheduler) for start, stop in ((2, 5), (4, 5), (3, 4), (3, 6))]
    assert all(not torch.allclose(whole, other, atol=1e-5) for other in others)
    given = {"strength_model": 0.7, "strength_clip": 0.5, "stem_strengths": {}}
    on, patched = host.apply_lora(model, clip, random_lora(model), **given)
    joined = walk(host, [model, model, on, on, model, model], patched, scheduler)
    torch.testing.assert_close(whole, joined, rtol=1e-4, atol=1e-4)


def walk(host, models, clip, scheduler):
    from lora_atelier.nodes.host.local_generate import _first_noise_scale, _guided, start_noise
    from lora_atelier.nodes.host.local_schedules import sigmas_for

    base = models[0].base
    sigmas = sigmas_for(base.levels, scheduler, STEPS, 1.0)
    latent = torch.zeros(1, 4, SETTINGS["height_px"] // 8, SETTINGS["width_px"] // 8)
    texts = [encode_prompt(clip, text) for text in ("red circle", "blurry")]
    with torch.inference_mode():
        x = start_noise(latent, SETTINGS["seed"], None) * _first_noise_scale(sigmas[0], base.levels.sigma_max)
        for step, model in enumerate(models):
            clean = _guided(model, *texts, SETTINGS["cfg"], latent, sigmas)(x, sigmas[step])
            x = torch.lerp(clean, x, sigmas[step + 1] / sigmas[step])
    return x / base.family.latent_scale


def test_two_loras_with_steps_of_their_own(loaded):
    host, (model, clip, _) = loaded
    given = {"strength_model": 0.7, "strength_clip": 0.0, "stem_strengths": {}}
    first, second = random_lora(model, 1), random_lora(model, 2)
    _, one = host.schedule_lora(model, clip, first, **given, start=None, stop=3)
    _, both = host.schedule_lora(model, one, second, **given, start=3, stop=None)
    assert [(at.start, at.stop) for at in both.step_patches] == [(1, 3), (3, None)]
    pictures = [draw(host, model, carrying, sampler="euler", scheduler="normal") for carrying in (clip, one, both)]
    assert not torch.allclose(pictures[1], pictures[2], atol=1e-5)
    assert len({host.fingerprint(carrying) for carrying in (clip, one, both)}) == 3


def test_only_texts_encoded_with_it_carry_it(loaded):
    host, (model, clip, _) = loaded
    given = {"strength_model": 0.7, "strength_clip": 0.0, "stem_strengths": {}}
    _, carrying = host.schedule_lora(model, clip, random_lora(model), **given, start=2, stop=4)
    texts = [encode_prompt(carrying, "red circle"), encode_prompt(clip, "blurry")]
    mixed = host.sample(model, *texts, **SETTINGS, sampler="euler", scheduler="normal")["samples"]
    both = draw(host, model, carrying, sampler="euler", scheduler="normal")
    none = draw(host, model, clip, sampler="euler", scheduler="normal")
    assert not torch.allclose(mixed, both, atol=1e-5)
    assert not torch.allclose(mixed, none, atol=1e-5)


def test_the_base_is_left_alone(loaded):
    host, (model, clip, _) = loaded
    before = draw(host, model, clip, sampler="euler", scheduler="normal")
    scheduled(loaded, 2, 4)
    assert torch.equal(before, draw(host, model, clip, sampler="euler", scheduler="normal"))


def test_steps_of_noise_levels():
    sigmas = [14.6, 7.0, 3.0, 1.0, 0.0]
    assert [step_of(sigma, sigmas) for sigma in sigmas[:-1]] == [1, 2, 3, 4]
    assert [step_of(math.nextafter(sigma, 0.0), sigmas) for sigma in sigmas[:-1]] == [1, 2, 3, 4]
    assert step_of(5.0, sigmas) == 2  # between two steps: a second look of the earlier one
    assert step_of(99.0, sigmas) == 1
