"""SD2: the OpenCLIP-H layout, the two kinds, names; on a random model of tiny sizes."""

from pathlib import Path

import pytest
import torch

from atelier_tests.helpers import full_size
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.families._base import open_base
from lora_atelier.families._spec import Components, Family, Variant, get_family
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams

MARKER = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
PREFIX = "cond_stage_model.model."


@pytest.fixture(scope="module")
def sd2() -> Family:
    return get_family("sd2")


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size.write_tiny_checkpoint(tmp_path_factory.mktemp("sd2") / "sd2.safetensors", family="sd2")


@pytest.fixture(scope="module")
def loaded(path: Path, sd2: Family) -> Components:
    return sd2.load(path)


def test_values_equal_those_that_diffusers_own_conversion_gives(path: Path, loaded: Components) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    tensors = read_tensors(path)
    unet = single_file.convert_ldm_unet_checkpoint(dict(tensors), config=dict(loaded.unet.config))
    text = single_file.convert_open_clip_checkpoint(loaded.text_encoders[0], dict(tensors), prefix=PREFIX)
    for module, oracle in ((loaded.unet, unet), (loaded.text_encoders[0], text)):
        for key, value in module.state_dict().items():
            found = oracle[key] if key in oracle else oracle[f"text_model.{key}"]
            assert torch.equal(value, found.float().reshape(value.shape)), key


def test_text_is_the_penultimate_layer_through_the_final_norm(loaded: Components, sd2: Family) -> None:
    (ids,) = sd2.tokenize(loaded.tokenizers, ["red star"])
    assert ids[0, -1] == 0
    model = loaded.text_encoders[0]
    inner = getattr(model, "text_model", model)
    states = model(input_ids=ids, output_hidden_states=True).hidden_states
    for clip_skip, layer in ((1, 2), (2, 2), (3, 3)):
        found = sd2.encode_text(loaded, ["red star"], clip_skip=clip_skip)
        assert found.pooled is None
        # the model ends one layer before the file does
        torch.testing.assert_close(found.hidden, inner.final_layer_norm(states[-layer + 1]))


def test_the_last_layer_is_no_target_and_a_file_may_lack_it(
    tmp_path: Path, path: Path, loaded: Components, sd2: Family
) -> None:
    targets = sd2.targets(loaded, unet=False)
    assert len(targets) == 3 * 6  # of four layers
    short = tmp_path / "short.safetensors"
    tensors = {key: value for key, value in read_tensors(path).items() if "resblocks.3." not in key}
    write_tensors(short, tensors, dict(read_header(path).metadata))
    again = sd2.load(short)
    assert len(sd2.targets(again, unet=False)) == 3 * 6
    for clip_skip in (1, 3):
        one, two = (sd2.encode_text(parts, ["red"], clip_skip=clip_skip).hidden for parts in (loaded, again))
        torch.testing.assert_close(one, two)


def test_keys_of_a_network(loaded: Components, sd2: Family) -> None:
    targets = sd2.targets(loaded)
    adapters = AdapterSet.attach(
        targets, Choice(kind="network", name="lora", params=LoraParams(rank=2, alpha=1.0)), seed=0
    )
    shapes = {key: tuple(value.shape) for key, value in adapters.state().items()}
    adapters.detach_from_model()
    assert len(targets) == 192 + 18
    assert shapes["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"] == (2, 64)  # linear, unlike SD1.x
    assert shapes["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] == (128, 2)
    accepted = sd2.accepted_stems(loaded)
    assert {target.stem for target in targets} <= accepted
    assert "text_encoders.clip_h.transformer.text_model.encoder.layers.0.mlp.fc1" in accepted
    modules = sd2.modules_by_stem(loaded)
    assert all(modules[target.stem] is target.module for target in targets)


@pytest.mark.parametrize(("spread", "prediction"), [(0.0, "epsilon"), (0.3, "v_prediction")])
def test_the_768_px_models_are_known_by_the_spread_of_a_bias(
    tmp_path: Path, path: Path, sd2: Family, spread: float, prediction: str
) -> None:
    tensors = read_tensors(path)
    tensors[MARKER] = torch.randn(tensors[MARKER].shape, generator=torch.Generator().manual_seed(0)).half() * spread
    other = tmp_path / "base.safetensors"
    write_tensors(other, tensors, dict(read_header(path).metadata))
    base = open_base(other, name="base")
    assert (base.family, base.prediction_type) == ("sd2", prediction)
    assert open_base(other, name="base", prediction="epsilon").prediction_type == "epsilon"


def test_what_a_lora_says_of_its_base(sd2: Family) -> None:
    small, large = (sd2.file_facts(Variant(prediction_type=kind)) for kind in ("epsilon", "v_prediction"))
    assert (small["ss_base_model_version"], large["ss_base_model_version"]) == ("sd_v2", "sd_v2_v")
    assert small["modelspec.architecture"] == "stable-diffusion-v2-512/lora"
    assert large["modelspec.architecture"] == "stable-diffusion-v2-768-v/lora"
    assert small["ss_v2"] is True
