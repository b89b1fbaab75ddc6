import json
from pathlib import Path

import pytest
import torch

from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import Header, read_header
from lora_atelier.families._single_file import build_on_meta
from lora_atelier.families._spec import Components, Family, TextState
from lora_atelier.families.sd15 import FULL_SIZES
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"


def fixture(name: str) -> dict[str, dict[str, str]]:
    data: dict[str, dict[str, str]] = json.loads((FIXTURES / name).read_text(encoding="utf-8"))
    return data


@pytest.fixture(scope="module")
def full_on_meta() -> Components:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return Components(
        unet=build_on_meta(lambda: UNet2DConditionModel(**FULL_SIZES["unet"]), "UNet"),
        text_encoders=(build_on_meta(lambda: CLIPTextModel(CLIPTextConfig(**FULL_SIZES["text_encoder"])), "TE"),),
    )


def test_a_rank_4_network_on_the_full_model_has_kohyas_keys_and_shapes(
    full_on_meta: Components, family: Family
) -> None:
    targets = family.targets(full_on_meta)
    assert [len([t for t in targets if t.part == part]) for part in ("text_encoder", "unet")] == [72, 192]
    assert [target.part for target in targets] == ["text_encoder"] * 72 + ["unet"] * 192
    adapters = AdapterSet.attach(
        targets, Choice(kind="network", name="lora", params=LoraParams(rank=4, alpha=1.0)), seed=0
    )
    own = {key: list(value.shape) for key, value in adapters.state().items()}
    adapters.detach_from_model()
    assert own == fixture("kohya_sd15_lora_rank4.json")
    assert adapters.num_parameters == 4 * 589_824
    accepted = fixture("comfyui_0.3.64_sd15_lora_stems.json")
    assert {target.stem for target in targets} <= {*accepted["unet"], *accepted["text_encoder"]}


def test_blocks_of_the_targets(full_on_meta: Components, family: Family) -> None:
    by_block: dict[str, int] = {}
    for target in family.targets(full_on_meta):
        by_block[target.block] = by_block.get(target.block, 0) + 1
    attending = ["IN01", "IN02", "IN04", "IN05", "IN07", "IN08", "MID", *(f"OUT{i:02d}" for i in range(3, 12))]
    assert by_block == {"TE": 72, **dict.fromkeys(attending, 12)}


def test_both_namings_of_every_stem_that_comfyui_knows_give_the_same_block(family: Family) -> None:
    accepted = fixture("comfyui_0.3.64_sd15_lora_stems.json")
    for stem, key in accepted["unet"].items():
        if "add_embedding" in stem or "class_embedding" in stem or "label_emb" in stem:
            continue
        if stem in ("lora_unet_down_blocks_3_downsamplers_0_conv", "lora_unet_up_blocks_3_upsamplers_0_conv"):
            continue  # named by ComfyUI's table, but no SD1.x model has them
        assert family.block_of_stem(stem) == family.block_of_stem(key.removesuffix(".weight")), stem
    assert {family.block_of_stem(stem) for stem in accepted["text_encoder"]} == {"TE"}


@pytest.mark.parametrize(
    ("stem", "block"),
    [
        ("lora_unet_down_blocks_0_attentions_0_proj_in", "IN01"),
        ("lora_unet_down_blocks_0_downsamplers_0_conv", "IN03"),
        ("lora_unet_down_blocks_3_resnets_1_conv1", "IN11"),
        ("lora_unet_input_blocks_8_1_proj_out", "IN08"),
        ("lora_unet_middle_block_1_proj_in", "MID"),
        ("lora_unet_up_blocks_0_upsamplers_0_conv", "OUT02"),
        ("lora_unet_up_blocks_1_attentions_0_proj_in", "OUT03"),
        ("unet.up_blocks.3.attentions.2.transformer_blocks.0.attn1.processor.to_q", "OUT11"),
        ("diffusion_model.output_blocks.5.2.conv", "OUT05"),
        ("lycoris_mid_block_attentions_0_proj_in", "MID"),
        ("lora_unet_conv_in", "IN00"),
        ("lora_unet_time_embedding_linear_1", "IN00"),
        ("lora_unet_conv_out", "OUT11"),
        ("text_encoder.text_model.encoder.layers.3.mlp.fc1", "TE"),
        ("lora_te_text_model_encoder_layers_11_mlp_fc2", "TE"),
    ],
)
def test_block_of_stem(family: Family, stem: str, block: str) -> None:
    assert family.block_of_stem(stem) == block


@pytest.mark.parametrize(
    "stem",
    ["lora_unet_double_blocks_0_img_attn_qkv", "lora_unet_input_blocks_12_1_proj_in", "lora_unet_up_blocks_4_x", ""],
)
def test_a_stem_of_another_family_is_refused(family: Family, stem: str) -> None:
    with pytest.raises(FormatError, match="Stable Diffusion 1"):
        family.block_of_stem(stem)


def test_accepted_stems_are_comfyuis_for_weights_that_exist(family: Family) -> None:
    checkpoint = fixture("sd15_unet_checkpoint_keys.json")
    shapes = {key: tuple(int(size) for size in shape) for key, shape in checkpoint.items()}
    text = "cond_stage_model.transformer.text_model."
    accepted = fixture("comfyui_0.3.64_sd15_lora_stems.json")
    for key in accepted["text_encoder"].values():
        shapes[f"{text}{key.removeprefix('clip_l.transformer.text_model.')}"] = (1, 1)
    header = Header(shapes=shapes, dtypes={}, metadata={}, offsets={})
    own = family.accepted_stems(header)
    exists = {key.replace("model.diffusion_model.", "diffusion_model.") for key in checkpoint}
    expected = {stem for stem, key in accepted["unet"].items() if key in exists} | set(accepted["text_encoder"])
    assert {stem for stem in own if stem.startswith(("lora_unet_", "lora_te"))} == expected
    assert "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_out" in own
    assert "diffusion_model.input_blocks.0.0" in own


def test_accepted_stems_are_the_same_from_header_path_and_parts(
    tiny: Components, tiny_path: Path, family: Family
) -> None:
    stems = family.accepted_stems(tiny)
    assert stems == family.accepted_stems(read_header(tiny_path)) == family.accepted_stems(tiny_path)
    assert {target.stem for target in family.targets(tiny)} <= stems


def test_targets_need_their_part(family: Family) -> None:
    with pytest.raises(InputError, match="text encoder"):
        family.targets(Components())
    with pytest.raises(InputError, match="UNet"):
        family.targets(Components(), text_encoder=False)


def test_noise_schedule_equals_diffusers(family: Family) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    own = family.alphas_cumprod()
    assert own.dtype == torch.float64
    torch.testing.assert_close(own.float(), scheduler.alphas_cumprod, rtol=2e-5, atol=0)


def test_pictures_go_to_latents_and_back_in_their_ranges(tiny: Components, family: Family) -> None:
    pixels = torch.rand(2, 3, 32, 48) * 2 - 1
    mean, std = family.encode_image(tiny.vae, pixels)
    assert mean.shape == std.shape == (2, 4, 4, 6)
    assert bool((std > 0).all())
    decoded = family.decode_image(tiny.vae, mean * family.latent_scale)
    assert decoded.shape == (2, 32, 48, 3)
    assert float(decoded.min()) >= 0.0
    assert float(decoded.max()) <= 1.0
    expected = (tiny.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(decoded, expected, rtol=1e-4, atol=1e-5)


def test_the_unet_answers_for_odd_sizes_too(tiny: Components, family: Family) -> None:
    text = TextState(hidden=torch.randn(1, 77, 64))
    for height, width in ((4, 4), (9, 16), (12, 10)):
        noisy = torch.randn(1, 4, height, width)
        assert family.predict(tiny.unet, noisy, torch.tensor([500]), text).shape == noisy.shape
