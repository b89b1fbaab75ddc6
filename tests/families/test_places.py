"""A module's one name: every naming of LoRA files is read into it, and it is found in checkpoints."""

import json
from pathlib import Path

import pytest

from lora_atelier.core.tensors import Header
from lora_atelier.families import _names
from lora_atelier.families._ldm import unet_table
from lora_atelier.families._spec import COMFY, DIFFUSERS, KOHYA, NAMINGS, Place, get_family
from lora_atelier.networks._apply import split_file

FIXTURES = Path(__file__).parents[1] / "fixtures"


def fixture(name):
    return json.loads((FIXTURES / name).read_text(encoding="utf-8"))


def kohya_stems(name):
    return list(split_file(fixture(name)))


@pytest.mark.parametrize(
    ("family", "name"), [("sd15", "kohya_sd15_locon_rank4_conv4.json"), ("sdxl", "kohya_sdxl_locon_rank4_conv4.json")]
)
def test_every_naming_goes_there_and_back(family, name):
    family = get_family(family)
    stems = kohya_stems(name)
    places = [family.place_of_stem(stem) for stem in stems]
    assert None not in places
    assert len(set(places)) == len(stems)
    for naming in NAMINGS:
        written = [family.stem_of_place(place, naming) for place in places]
        assert [family.place_of_stem(stem) for stem in written] == places, naming
    assert [family.stem_of_place(place, KOHYA) for place in places] == stems


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_every_stem_of_comfyui_means_the_weight_it_means_there(family):
    spec = get_family(family)
    accepted = fixture(f"comfyui_0.3.64_{family}_lora_stems.json")
    weights = fixture(f"{family}_unet_checkpoint_keys.json")
    for stem, key in accepted["unet"].items():
        if f"model.{key}" not in weights:  # names of layers that these models do not have
            continue
        place = spec.place_of_stem(stem)
        assert place is not None, stem
        ldm = _names.unet_to_ldm(place.path, unet_table(spec.published["unet"]))
        assert f"diffusion_model.{ldm}.weight" == key, stem
    for stem, key in accepted["text_encoder"].items():
        place = spec.place_of_stem(stem)
        assert place is not None, stem
        encoder = next(one for one in spec.text_encoders if one.part == place.part)
        assert f"{encoder.comfy_name}.transformer.{place.path}.weight" == key, stem


@pytest.mark.parametrize(
    "stem",
    [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "lycoris_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_out_0",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_out_0",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_out.0",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out",
    ],
)
def test_names_of_one_layer(stem):
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    assert get_family("sd15").place_of_stem(stem) == Place(part="unet", path=path)


def test_text_encoders_are_told_apart():
    path = "text_model.encoder.layers.3.self_attn.q_proj"
    flat = path.replace(".", "_")
    sdxl = get_family("sdxl")
    first, second = Place(part="text_encoder", path=path), Place(part="text_encoder_2", path=path)
    for stem in (
        f"lora_te_{flat}",
        f"lora_te1_{flat}",
        f"text_encoder.{path}",
        f"lycoris_{flat}",
        f"lycoris_te1_{flat}",
    ):
        assert sdxl.place_of_stem(stem) == first, stem
    for stem in (f"lora_te2_{flat}", f"text_encoder_2.{path}", f"text_encoders.clip_g.transformer.{path}"):
        assert sdxl.place_of_stem(stem) == second, stem
    assert get_family("sd15").place_of_stem(f"lora_te2_{flat}") is None
    assert sdxl.stem_of_place(second, DIFFUSERS) == f"text_encoder_2.{path}"
    assert get_family("sd15").stem_of_place(first, COMFY) == f"text_encoders.clip_l.transformer.{path}"


@pytest.mark.parametrize(
    "stem", ["lora_unet_", "lora_unet_double_blocks_0_img_mlp_0", "unet.", "lora_te_encoder",
             "lora_unet_down_blocks_9_attentions_0_proj_in", "transformer.x", "lora_unet_input_blocks_77_1_proj_in"],
)  # fmt: skip
def test_strangers_have_no_place(stem):
    assert get_family("sd15").place_of_stem(stem) is None
    assert get_family("sdxl").place_of_stem(stem) is None


def header_of(shapes):
    return Header(
        shapes=shapes, dtypes=dict.fromkeys(shapes, "F16"), metadata={}, offsets=dict.fromkeys(shapes, (0, 0))
    )


def test_places_of_a_checkpoint_are_its_weights():
    shapes = {key: tuple(shape) for key, shape in fixture("sd15_unet_checkpoint_keys.json").items()}
    family, header = get_family("sd15"), header_of(shapes)
    places = family.places_of_file(header)
    keys = [family.place_in_file(place, header).key for place in places]
    assert keys == [key for key in shapes if key.endswith(".weight")]
    biases = [family.place_in_file(place, header, "bias") for place in places]
    assert {bias.key for bias in biases if bias} == {key for key in shapes if key.endswith(".bias")}


def test_a_fused_tensor_is_cut_in_rows():
    prefix = "conditioner.embedders.1.model.transformer.resblocks.0."
    shapes = {
        f"{prefix}attn.in_proj_weight": (3840, 1280), f"{prefix}attn.in_proj_bias": (3840,),
        f"{prefix}attn.out_proj.weight": (1280, 1280), f"{prefix}mlp.c_fc.weight": (5120, 1280),
    }  # fmt: skip
    family, header = get_family("sdxl"), header_of(shapes)
    found = {
        place.path.rpartition(".")[2]: family.place_in_file(place, header) for place in family.places_of_file(header)
    }
    assert found["k_proj"].key == f"{prefix}attn.in_proj_weight"
    assert found["k_proj"].rows == (1280, 2560)
    assert set(found) == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1"}
    value = Place(part="text_encoder_2", path="text_model.encoder.layers.0.self_attn.v_proj")
    assert family.place_in_file(value, header, "bias").rows == (2560, 3840)
