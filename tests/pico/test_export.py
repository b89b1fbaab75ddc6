"""The single file: LDM names as in a real SD1.x checkpoint, read back whole by diffusers' own converter."""

import json
from pathlib import Path

import pytest
import torch

from lora_atelier.pico import export, sizes, tokenizer
from lora_atelier.pico.progress_file import load_tensors

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def networks():
    vocabulary = tokenizer.build()
    ids = vocabulary.vocab
    config = sizes.text_encoder_config(len(ids), ids[tokenizer.START], ids[tokenizer.END])
    torch.manual_seed(0)
    return sizes.new_unet().eval(), sizes.new_vae().eval(), sizes.new_text_encoder(config).eval(), config, vocabulary


@pytest.fixture(scope="module")
def written(networks, tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "base.safetensors"
    export.write_base(path, *networks)
    return path


def test_unet_names_are_those_of_a_real_checkpoint(written):
    real = json.loads((FIXTURES / "sd15_unet_checkpoint_keys.json").read_text(encoding="utf-8"))
    tensors, _ = load_tensors(written)
    ours = {key: tensor for key, tensor in tensors.items() if key.startswith(export.UNET_PREFIX)}
    skips = {key for key in set(real) ^ set(ours)}
    assert all(".skip_connection." in key for key in skips), "levels of equal width need no 1x1 convolution"
    assert all(len(real[key]) == ours[key].ndim for key in set(real) & set(ours))


def test_file_is_fp16_with_int64_positions(written):
    tensors, metadata = load_tensors(written)
    positions = tensors.pop(export.TEXT_PREFIX + "embeddings.position_ids")
    assert positions.dtype == torch.int64
    assert positions.tolist() == [list(range(77))]
    assert {t.dtype for t in tensors.values()} == {torch.float16}
    assert metadata["atelier.family"] == "sd15"
    assert set(json.loads(metadata["atelier.sizes"])) == {"unet", "vae", "text_encoder"}
    assert set(json.loads(metadata["atelier.tokenizer"])) == {"vocab", "merges"}


def test_diffusers_converts_it_back_to_the_same_networks(networks, written):
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    unet, vae, text, _, vocabulary = networks
    again_unet, again_vae, again_text, again_vocabulary = export.load_base(written)
    assert again_vocabulary == vocabulary
    tensors, _ = load_tensors(written)
    theirs = single_file.convert_ldm_unet_checkpoint(dict(tensors), dict(unet.config))
    assert all(torch.equal(v, theirs[k].float()) for k, v in again_unet.state_dict().items())
    theirs = single_file.convert_ldm_vae_checkpoint(dict(tensors), dict(vae.config))
    assert all(torch.equal(v, theirs[k].float().view_as(v)) for k, v in again_vae.state_dict().items())
    noise, ids = torch.randn(1, 4, 10, 14), tokenizer.encode(["red circle"], vocabulary)
    with torch.no_grad():
        context, again = text(ids).last_hidden_state, again_text(ids).last_hidden_state
        assert (context - again).abs().max() < 0.02
        assert (unet(noise, 500, context).sample - again_unet(noise, 500, context).sample).abs().max() < 0.02
        assert (vae.decode(noise).sample - again_vae.decode(noise).sample).abs().max() < 0.05


def test_folding_the_latent_scale_changes_no_picture():
    torch.manual_seed(1)
    vae = sizes.new_vae().eval()
    picture = torch.rand(1, 3, 48, 40) * 2 - 1
    mean, std = torch.tensor([0.1, -0.2, 0.3, 0.4]), torch.tensor([0.5, 0.6, 0.7, 2.0])
    with torch.no_grad():
        before = vae.encode(picture).latent_dist
        rebuilt = vae.decode(before.mean).sample
        export.fold_latent_scale(vae, mean, std)
        after = vae.encode(picture).latent_dist
        assert torch.allclose(vae.decode(after.mean).sample, rebuilt, atol=1e-4)
    wide = std[:, None, None]
    assert torch.allclose(after.mean * sizes.VAE_SCALE, (before.mean - mean[:, None, None]) / wide, atol=1e-4)
    assert torch.allclose(after.std * sizes.VAE_SCALE, before.std / wide, atol=1e-4)


def test_unknown_tensor_is_refused():
    with pytest.raises(KeyError, match="has no place"):
        export.unet_name("down_blocks.0.motion.0.weight")
