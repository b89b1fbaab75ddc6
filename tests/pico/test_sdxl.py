"""Pico SDXL: the committed file, its names, and what diffusers and our own family make of them."""

import json

import pytest
import torch

from lora_atelier.families._spec import get_family
from lora_atelier.nodes.host.shared import PICO_XL_BASE
from lora_atelier.pico import make, sdxl, sizes, tokenizer, train_sdxl
from lora_atelier.pico.progress_file import load_tensors


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Untrained networks, and the file made of them."""
    vocabulary = tokenizer.build()
    ids = vocabulary.vocab
    config = sizes.text_encoder_config(len(ids), ids[tokenizer.START], ids[tokenizer.END])
    torch.manual_seed(0)
    networks = sdxl.new_networks(config)
    path = tmp_path_factory.mktemp("xl") / "xl.safetensors"
    sdxl.write_base(path, networks, config, vocabulary)
    return networks, path


def test_the_committed_file_is_small_finite_and_of_the_family():
    assert PICO_XL_BASE.stat().st_size <= make.SIZE_LIMIT_BYTES["pico-sdxl.safetensors"] <= 8_000_000
    tensors, metadata = load_tensors(PICO_XL_BASE)
    assert all(torch.isfinite(t).all() for t in tensors.values() if t.is_floating_point())
    assert json.loads(metadata["atelier.sizes"])["vae"]["scaling_factor"] == pytest.approx(0.13025)
    loaded = get_family("sdxl").load(PICO_XL_BASE)
    targets = get_family("sdxl").targets(loaded)
    assert {target.stem.split("_")[1] for target in targets} == {"te1", "te2", "unet"}


def test_our_family_reads_back_the_same_networks(written):
    networks, path = written
    loaded = get_family("sdxl").load(path)
    pairs = ((networks.unet, loaded.unet), (networks.vae, loaded.vae))
    pairs += tuple(zip((networks.first, networks.second), loaded.text_encoders, strict=True))
    for made, read in pairs:
        own = read.state_dict()
        for key, value in made.state_dict().items():
            if not key.endswith("position_ids"):
                assert torch.equal(own[key], value.half().float()), key


def test_openclips_joined_tensors_are_those_of_diffusers_converter(written):
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    networks, path = written
    tensors, _ = load_tensors(path)
    theirs = single_file.convert_open_clip_checkpoint(networks.second, dict(tensors), prefix=sdxl.SECOND_PREFIX)
    for key, value in networks.second.state_dict().items():
        if not key.endswith("position_ids"):
            assert torch.equal(theirs[key].float(), value.half().float()), key


def test_zeros_stand_behind_the_first_end_mark():
    ids = torch.tensor([[5, 1, 2, 9, 9, 9], [5, 9, 9, 9, 9, 9]])
    assert sdxl.filled_with_zeros(ids, 9).tolist() == [[5, 1, 2, 9, 0, 0], [5, 9, 0, 0, 0, 0]]


def test_latents_have_unit_scale():
    import random

    from lora_atelier.pico import world
    from lora_atelier.pico.train_vae import pictures_to_tensor

    rng = random.Random("fresh sdxl drawings")
    scenes = [world.random_scene(rng, bucket_px=(96, 96)) for _ in range(8)]
    family = get_family("sdxl")
    vae = family.load(PICO_XL_BASE, parts=("vae",)).vae
    with torch.no_grad():
        mean, _ = family.encode_image(vae, pictures_to_tensor([world.draw(scene) for scene in scenes]))
    assert 0.7 < float((mean * family.latent_scale).std()) < 1.4


def test_a_stopped_training_goes_on_where_it_was(tmp_path):
    settings = train_sdxl.SdxlTraining(vae_steps=1, steps=2, drawings=4, batch=2, save_every_steps=1)
    path = train_sdxl.train_sdxl(tmp_path / "whole", make.ASSETS / "pico-base.safetensors", settings)
    first = train_sdxl.SdxlTraining(vae_steps=1, steps=1, drawings=4, batch=2, save_every_steps=1)
    train_sdxl.train_sdxl(tmp_path / "halves", make.ASSETS / "pico-base.safetensors", first)
    again = train_sdxl.train_sdxl(tmp_path / "halves", make.ASSETS / "pico-base.safetensors", settings)
    one, two = load_tensors(path)[0], load_tensors(again)[0]
    assert all(torch.equal(one[key], two[key]) for key in one)
