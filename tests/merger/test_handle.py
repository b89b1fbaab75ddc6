"""The LoRA handle: what it opens, what it refuses by name, and the strength of every stem."""

import json
from pathlib import Path

import pytest
import torch

from lora_atelier.core.errors import AtelierError, FormatError, InputError
from lora_atelier.core.tensors import write_tensors
from lora_atelier.merger.lora.handle import explain_strengths, lora_stems, open_lora, stem_of_key

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def write_lora(path, fixture="kohya_sd15_lora_rank4", *, keys=None):
    shapes = keys or json.loads((FIXTURES / f"{fixture}.json").read_text(encoding="utf-8"))
    write_tensors(path, {key: torch.zeros(shape, dtype=torch.float16) for key, shape in shapes.items()}, {})
    return path


def few_keys(stem, rank=4, width=8, context=8):
    return {f"{stem}.lora_down.weight": [rank, context], f"{stem}.lora_up.weight": [width, rank], f"{stem}.alpha": []}


def test_opens_a_kohya_lora(tmp_path):
    lora = open_lora(write_lora(tmp_path / "x.safetensors"), "sub/x.safetensors", strength_model=0.5)
    assert (lora.family, lora.strength_model, lora.strength_clip) == ("sd15", 0.5, 1.0)
    assert len(lora.sha256) == 64
    assert json.dumps(lora.to_json())
    assert len(lora_stems(lora.path)) == 264


def test_hash_follows_the_file(tmp_path):
    path = write_lora(tmp_path / "x.safetensors", keys=few_keys("lora_unet_mid_block_attentions_0_proj_in"))
    first = open_lora(path, "x").sha256
    write_lora(path, keys=few_keys("lora_unet_mid_block_attentions_0_proj_out"))
    assert open_lora(path, "x").sha256 != first


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"model.diffusion_model.out.2.weight": [4, 4]}, "not a LoRA"),
        (few_keys("lora_unet_double_blocks_0_img_attn_qkv"), "transformer model"),
        (few_keys("something_else"), "unknown model"),
    ],
)
def test_other_files_are_named(tmp_path, keys, said):
    with pytest.raises(FormatError, match=said):
        open_lora(write_lora(tmp_path / "x.safetensors", keys=keys), "x.safetensors")


@pytest.mark.parametrize(
    ("keys", "family"),
    [
        (few_keys("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", context=1024), "sd2"),
        (few_keys("lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k", context=2048), "sdxl"),
        (few_keys("lora_te2_text_model_encoder_layers_0_mlp_fc1"), "sdxl"),
        (few_keys("lora_te_text_model_encoder_layers_0_mlp_fc1"), "sd15"),
    ],
)
def test_the_family_shows_in_shapes_and_names(tmp_path, keys, family):
    assert open_lora(write_lora(tmp_path / "x.safetensors", keys=keys), "x").family == family


def test_the_unets_part_of_an_sdxl_lora_is_enough(tmp_path):
    shapes = json.loads((FIXTURES / "kohya_sdxl_lora_rank4.json").read_text(encoding="utf-8"))
    few = dict(list(shapes.items())[-300:])
    assert open_lora(write_lora(tmp_path / "x.safetensors", keys=few), "x").family == "sdxl"


@pytest.mark.parametrize(
    ("metadata", "family"),
    [
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "sdxl"),
        ({"ss_base_model_version": "sd_v2_v"}, "sd2"),
        ({"ss_v2": "True"}, "sd2"),
        ({"ss_base_model_version": "sd_v1"}, "sd15"),
    ],
)
def test_what_the_metadata_says_wins(tmp_path, metadata, family):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.zeros(2, 2)}, metadata)
    assert open_lora(path, "x").family == family


def test_truncated_file_is_an_error_of_ours(tmp_path):
    path = write_lora(tmp_path / "x.safetensors", keys=few_keys("lora_unet_mid_block_attentions_0_proj_in"))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(AtelierError):
        open_lora(path, "x.safetensors")


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 101.0])
def test_strength_out_of_range(tmp_path, strength):
    path = write_lora(tmp_path / "x.safetensors", keys=few_keys("lora_unet_mid_block_attentions_0_proj_in"))
    with pytest.raises(InputError, match="model strength"):
        open_lora(path, "x", strength_model=strength)


@pytest.mark.parametrize(
    ("key", "stem"),
    [
        ("lora_unet_mid_block_x.lora_down.weight", "lora_unet_mid_block_x"),
        ("lora_unet_mid_block_x.alpha", "lora_unet_mid_block_x"),
        ("lora_unet_mid_block_x.hada_w1_a", "lora_unet_mid_block_x"),
        ("unet.down_blocks.0.attn.to_k.lora_A.weight", "unet.down_blocks.0.attn.to_k"),
        ("unet.down_blocks.0.attn.to_k.lora.down.weight", "unet.down_blocks.0.attn.to_k"),
        ("model.diffusion_model.out.2.weight", None),
    ],
)
def test_stem_of_key(key, stem):
    assert stem_of_key(key) == stem


def test_strengths_of_stems(tmp_path):
    keys = {
        **few_keys("lora_te_text_model_encoder_layers_0_mlp_fc1"),
        **few_keys("lora_unet_mid_block_attentions_0_proj_in"),
        **few_keys("lora_unet_up_blocks_1_attentions_0_proj_in"),
    }
    lora = open_lora(write_lora(tmp_path / "x.safetensors", keys=keys), "x", block_weights="NIN")
    found = explain_strengths(lora)
    assert [found.factors[stem] for stem in sorted(found.factors)] == [1.0, 0.0, 1.0]
    assert "NIN" in found.report[0]


def test_all_needs_no_known_blocks(tmp_path):
    keys = {**few_keys("lora_unet_odd_thing"), **few_keys("lora_unet_mid_block_attentions_0_proj_in")}
    path = write_lora(tmp_path / "x.safetensors", keys=keys)
    assert set(explain_strengths(open_lora(path, "x", block_weights="ALL")).factors.values()) == {1.0}
    with pytest.raises(FormatError, match="odd_thing"):
        explain_strengths(open_lora(path, "x", block_weights="NIN"))
