"""SDXL: layout, both text encoders, sizes, names, variants; on a random model of tiny sizes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers import full_size
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import Header, read_header, read_tensors, write_tensors
from lora_atelier.families._base import open_base
from lora_atelier.families._clip import encode_ids
from lora_atelier.families._single_file import build_on_meta
from lora_atelier.families._spec import Components, Conditioning, Family, TextState, Variant, get_family
from lora_atelier.families.sdxl import FULL_SIZES
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
PREFIX_G = "conditioner.embedders.1.model."


def fixture(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((FIXTURES / name).read_text(encoding="utf-8"))
    return data


@pytest.fixture(scope="module")
def sdxl() -> Family:
    return get_family("sdxl")


@pytest.fixture(scope="module")
def xl_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return full_size.write_tiny_checkpoint(tmp_path_factory.mktemp("xl") / "xl.safetensors", family="sdxl")


@pytest.fixture(scope="module")
def xl(xl_path: Path, sdxl: Family) -> Components:
    return sdxl.load(xl_path)


@pytest.fixture(scope="module")
def full_on_meta() -> Components:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    first, second = (CLIPTextConfig(**FULL_SIZES[part]) for part in ("text_encoder", "text_encoder_2"))
    return Components(
        unet=build_on_meta(lambda: UNet2DConditionModel(**FULL_SIZES["unet"]), "UNet"),
        text_encoders=(
            build_on_meta(lambda: CLIPTextModel(first), "TE1"),
            build_on_meta(lambda: CLIPTextModelWithProjection(second), "TE2"),
        ),
    )


# names ----------------------------------------------------------------------------------------------------------------


def test_a_rank_4_network_on_the_full_model_has_kohyas_keys_and_shapes(full_on_meta: Components, sdxl: Family) -> None:
    targets = sdxl.targets(full_on_meta)
    stems = [target.stem for target in targets]
    counts = [sum(stem.startswith(prefix) for stem in stems) for prefix in ("lora_te1_", "lora_te2_", "lora_unet_")]
    assert counts == [72, 192, 722]
    adapters = AdapterSet.attach(
        targets, Choice(kind="network", name="lora", params=LoraParams(rank=4, alpha=1.0)), seed=0
    )
    own = {key: list(value.shape) for key, value in adapters.state().items()}
    adapters.detach_from_model()
    assert own == fixture("kohya_sdxl_lora_rank4.json")
    accepted = fixture("comfyui_0.3.64_sdxl_lora_stems.json")
    assert set(stems) <= {*accepted["unet"], *accepted["text_encoder"]}


def test_blocks_of_the_targets(full_on_meta: Components, sdxl: Family) -> None:
    by_block: dict[str, int] = {}
    for target in sdxl.targets(full_on_meta):
        by_block[target.block] = by_block.get(target.block, 0) + 1
    shallow = dict.fromkeys(("IN04", "IN05", "OUT03", "OUT04", "OUT05"), 22)
    deep = dict.fromkeys(("IN07", "IN08", "MID", "OUT00", "OUT01", "OUT02"), 102)
    assert by_block == {"TE": 264, **shallow, **deep}


def test_the_layout_of_the_unet_is_that_of_a_real_checkpoint(full_on_meta: Components, sdxl: Family) -> None:
    shapes = {key: tuple(shape) for key, shape in fixture("sdxl_unet_checkpoint_keys.json").items()}
    own = full_size.unet_shapes(full_size.FULL_SDXL["unet"], "sdxl")
    assert {f"model.diffusion_model.{key}": shape for key, shape in own.items()} == shapes


def test_accepted_stems_are_comfyuis_for_weights_that_exist(sdxl: Family) -> None:
    shapes = full_size.checkpoint_shapes(full_size.FULL_SDXL, "sdxl")
    own = sdxl.accepted_stems(Header(shapes=shapes, dtypes={}, metadata={}, offsets={}))
    accepted = fixture("comfyui_0.3.64_sdxl_lora_stems.json")
    exists = {key.removeprefix("model.") for key in shapes}
    expected = {stem for stem, key in accepted["unet"].items() if key in exists} | set(accepted["text_encoder"])
    assert {stem for stem in own if stem.startswith(("lora_unet_", "lora_te"))} == expected
    assert "unet.mid_block.attentions.0.transformer_blocks.9.attn1.processor.to_out" in own
    assert "text_encoders.clip_g.transformer.text_model.encoder.layers.31.mlp.fc1" in own


def test_both_namings_of_every_stem_give_the_same_block(sdxl: Family) -> None:
    accepted = fixture("comfyui_0.3.64_sdxl_lora_stems.json")
    for stem, key in accepted["unet"].items():
        if stem in ("lora_unet_down_blocks_2_downsamplers_0_conv", "lora_unet_up_blocks_2_upsamplers_0_conv"):
            continue  # named by ComfyUI's table, but no SDXL model has them
        assert sdxl.block_of_stem(stem) == sdxl.block_of_stem(key.removesuffix(".weight")), stem
    assert {sdxl.block_of_stem(stem) for stem in accepted["text_encoder"]} == {"TE"}
    with pytest.raises(FormatError, match="Stable Diffusion XL"):
        sdxl.block_of_stem("lora_unet_input_blocks_10_1_proj_in")


def test_every_target_is_found_again_by_its_stem(xl: Components, sdxl: Family) -> None:
    modules = sdxl.modules_by_stem(xl)
    for target in sdxl.targets(xl):
        assert modules[target.stem] is target.module
        if target.part == "unet":
            assert modules[f"lora_unet_{target.path.replace('.', '_')}"] is target.module
    assert modules.keys() <= sdxl.accepted_stems(xl)
    assert sdxl.accepted_stems(xl) >= modules.keys()


# loading --------------------------------------------------------------------------------------------------------------


def test_values_equal_those_that_diffusers_own_conversion_gives(xl_path: Path, xl: Components) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    tensors = read_tensors(xl_path)
    unet = single_file.convert_ldm_unet_checkpoint(dict(tensors), config=dict(xl.unet.config))
    vae = single_file.convert_ldm_vae_checkpoint(dict(tensors), config=dict(xl.vae.config))
    second = single_file.convert_open_clip_checkpoint(xl.text_encoders[1], dict(tensors), prefix=PREFIX_G)
    first = {
        key.removeprefix("conditioner.embedders.0.transformer."): value
        for key, value in tensors.items()
        if key.startswith("conditioner.embedders.0.")
    }
    for module, oracle in (
        (xl.unet, unet),
        (xl.vae, vae),
        (xl.text_encoders[0], first),
        (xl.text_encoders[1], second),
    ):
        for key, value in module.state_dict().items():
            found = oracle[key] if key in oracle else oracle[f"text_model.{key}"]
            assert torch.equal(value, found.float().reshape(value.shape)), key


def test_a_projection_that_is_linear_already_is_taken_as_it_is(
    tmp_path: Path, xl_path: Path, xl: Components, sdxl: Family
) -> None:
    tensors = read_tensors(xl_path)
    tensors[f"{PREFIX_G}text_projection.weight"] = tensors.pop(f"{PREFIX_G}text_projection").T.contiguous()
    path = tmp_path / "linear.safetensors"
    write_tensors(path, tensors, dict(read_header(xl_path).metadata))
    again = sdxl.load(path, parts=("text_encoder",)).text_encoders[1]
    assert torch.equal(again.text_projection.weight, xl.text_encoders[1].text_projection.weight)


def test_a_missing_second_encoder_is_named(tmp_path: Path, xl_path: Path, sdxl: Family) -> None:
    tensors = {key: value for key, value in read_tensors(xl_path).items() if not key.startswith(PREFIX_G)}
    path = tmp_path / "half.safetensors"
    write_tensors(path, tensors, dict(read_header(xl_path).metadata))
    with pytest.raises(FormatError, match=r"half\.safetensors holds no second text encoder"):
        sdxl.load(path, parts=("text_encoder",))


@pytest.mark.parametrize("layout", ["ldm", "bare", "diffusers", "old diffusers", "checkpoint"])
def test_the_vae_of_another_file_takes_its_place(
    tmp_path: Path, xl_path: Path, xl: Components, sdxl: Family, layout: str
) -> None:
    other = full_size.write_tiny_checkpoint(tmp_path / "other.safetensors", family="sdxl", seed=5)
    expected = sdxl.load(other, parts=("vae",)).vae
    tensors = {key: value for key, value in read_tensors(other).items() if key.startswith("first_stage_model.")}
    if layout == "bare":
        tensors = {key.removeprefix("first_stage_model."): value for key, value in tensors.items()}
    elif layout.endswith("diffusers"):
        tensors = {key: value.clone() for key, value in expected.state_dict().items()}
        if layout.startswith("old"):
            for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
                tensors = {key.replace(f".0.{new}.", f".0.{old}."): value for key, value in tensors.items()}
    path = tmp_path / "vae.safetensors"
    write_tensors(path, read_tensors(other) if layout == "checkpoint" else tensors, {})
    found = sdxl.load(xl_path, parts=("vae",), vae_path=path).vae
    for key, value in found.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key]), key
    assert not torch.equal(found.encoder.conv_in.weight, xl.vae.encoder.conv_in.weight)
    base = open_base(xl_path, name="xl", vae_path=path, vae_name="vae")
    assert base.vae_path == path


def test_a_vae_file_that_is_none_is_refused(tmp_path: Path, xl_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    write_tensors(path, {"lora_unet_x.lora_down.weight": torch.zeros(2, 2)}, {})
    with pytest.raises(FormatError, match=r"lora\.safetensors holds no VAE"):
        open_base(xl_path, name="xl", vae_path=path)


# text -----------------------------------------------------------------------------------------------------------------


def test_the_second_encoder_is_filled_up_with_zeros(xl: Components, sdxl: Family) -> None:
    first, second = sdxl.tokenize(xl.tokenizers, ["ab", ""])
    end = 513
    assert first[0, 3:].tolist() == [end] * 74
    assert second[0, 3:].tolist() == [end] + [0] * 73
    assert second[1].tolist() == [512, end] + [0] * 75


def test_text_is_the_penultimate_layers_side_by_side_and_the_projected_end_mark(xl: Components, sdxl: Family) -> None:
    captions = ["red circle, hat", ""]
    state = sdxl.encode_text(xl, captions, clip_skip=1)
    first, second = sdxl.tokenize(xl.tokenizers, captions)
    with torch.no_grad():
        one = xl.text_encoders[0](input_ids=first, output_hidden_states=True)
        two = xl.text_encoders[1](input_ids=second, output_hidden_states=True)
    expected = torch.cat((one.hidden_states[-2], two.hidden_states[-2]), dim=-1)
    torch.testing.assert_close(state.hidden, expected)
    assert state.hidden.shape == (2, 77, 64 + 48)
    assert state.pooled is not None
    torch.testing.assert_close(state.pooled, two.text_embeds)
    ends = (second == 513).int().argmax(dim=1)
    by_hand = two.last_hidden_state[torch.arange(2), ends] @ xl.text_encoders[1].text_projection.weight.T
    torch.testing.assert_close(state.pooled, by_hand)


def test_the_hidden_states_are_before_the_final_norm(xl: Components, sdxl: Family) -> None:
    (first, _), model, spec = sdxl.tokenize(xl.tokenizers, ["star"]), xl.text_encoders[0], sdxl.text_encoders[0]
    inner = getattr(model, "text_model", model)
    last, _ = encode_ids(model, first, spec, layer=1)
    torch.testing.assert_close(inner.final_layer_norm(last), model(input_ids=first).last_hidden_state)
    beyond, _ = encode_ids(model, first, spec, layer=9)
    torch.testing.assert_close(beyond, model(input_ids=first).last_hidden_state)


def test_clip_skip_counts_from_the_last_layer_and_one_is_the_models_own(xl: Components, sdxl: Family) -> None:
    states = [sdxl.encode_text(xl, ["star"], clip_skip=skip) for skip in (1, 2, 3)]
    assert torch.equal(states[0].hidden, states[1].hidden)
    assert not torch.allclose(states[1].hidden, states[2].hidden)
    assert states[0].pooled is not None
    assert states[2].pooled is not None
    assert torch.equal(states[0].pooled, states[2].pooled)
    with pytest.raises(InputError, match="allowed is 1 to 3"):
        sdxl.encode_text(xl, ["star"], clip_skip=4)


# sizes ----------------------------------------------------------------------------------------------------------------


def embedded(numbers: list[int]) -> torch.Tensor:
    """Kohya's `get_size_embeddings`, written out: cosines, then sines, 256 for each number."""
    frequencies = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128)
    rows = [torch.cat(((number * frequencies).cos(), (number * frequencies).sin())) for number in numbers]
    return torch.cat(rows)


def test_sizes_reach_the_unet_as_kohya_and_comfyui_compute_them(xl: Components, sdxl: Family) -> None:
    seen: list[torch.Tensor] = []
    handle = xl.unet.add_embedding.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    text = TextState(hidden=torch.randn(2, 77, 112), pooled=torch.randn(2, 48))
    told = Conditioning(
        original_size=torch.tensor([[1500, 1000], [900, 800]]),
        crop=torch.tensor([[16, 0], [3, 7]]),
        target_size=torch.tensor([[1216, 832], [1024, 1024]]),
    )
    noisy, times = torch.randn(2, 4, 8, 12), torch.tensor([10, 900])
    try:
        with torch.no_grad():
            sdxl.predict(xl.unet, noisy, times, text, conditioning=told)
            sdxl.predict(xl.unet, noisy, times, text)
    finally:
        handle.remove()
    assert text.pooled is not None
    expected = torch.stack((embedded([1500, 1000, 16, 0, 1216, 832]), embedded([900, 800, 3, 7, 1024, 1024])))
    torch.testing.assert_close(seen[0], torch.cat((text.pooled, expected), dim=1), rtol=1e-4, atol=1e-4)
    plain = embedded([64, 96, 0, 0, 64, 96]).expand(2, -1)
    torch.testing.assert_close(seen[1], torch.cat((text.pooled, plain), dim=1), rtol=1e-4, atol=1e-4)


def test_odd_sizes_and_half_precision(xl: Components, sdxl: Family) -> None:
    text = TextState(hidden=torch.randn(1, 77, 112), pooled=torch.randn(1, 48))
    for height, width in ((4, 4), (9, 13), (6, 10)):
        noisy = torch.randn(1, 4, height, width)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            answer = sdxl.predict(xl.unet, noisy, torch.tensor([3]), text)
        assert answer.shape == noisy.shape
        assert bool(answer.isfinite().all())


# variants -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({}, Variant()),
        ({"v_pred": torch.zeros(0)}, Variant(prediction_type="v_prediction")),
        (
            {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)},
            Variant(prediction_type="v_prediction", zero_terminal_snr=True),
        ),
    ],
)
def test_the_markers_of_a_file(tmp_path: Path, sdxl: Family, extra: dict[str, torch.Tensor], expected: Variant) -> None:
    path = full_size.write_tiny_checkpoint(tmp_path / "base.safetensors", family="sdxl", extra=extra)
    base = open_base(path, name="base")
    assert base.variant == expected == sdxl.variant(path)
    assert base.prediction_type == expected.prediction_type
    assert base.zero_terminal_snr == expected.zero_terminal_snr
    assert base.told == ""
    sdxl.load(path)


def test_modelspecs_prediction_type_is_read(tmp_path: Path, xl_path: Path, sdxl: Family) -> None:
    path = tmp_path / "spec.safetensors"
    metadata = {**read_header(xl_path).metadata, "modelspec.prediction_type": "v"}
    write_tensors(path, read_tensors(xl_path), metadata)
    assert sdxl.variant(path).prediction_type == "v_prediction"


def test_what_the_person_says_wins(xl_path: Path) -> None:
    base = open_base(xl_path, name="xl", prediction="v_prediction", zero_terminal_snr="on")
    assert base.variant == Variant(prediction_type="v_prediction", zero_terminal_snr=True)
    assert base.told == "v_prediction ztsnr"
    assert open_base(xl_path, name="xl", prediction="epsilon", zero_terminal_snr="off").told == ""


def test_zero_terminal_snr_keeps_the_first_and_empties_the_last(sdxl: Family) -> None:
    plain, fixed = sdxl.alphas_cumprod(), sdxl.alphas_cumprod(zero_terminal_snr=True)
    assert float(fixed[-1]) == 0.0
    torch.testing.assert_close(fixed[0], plain[0])
    assert bool((fixed.diff() < 0).all())
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(fixed, (1 - rescale_zero_terminal_snr(betas)).cumprod(0), rtol=1e-6, atol=1e-9)


def test_what_a_lora_says_of_its_base(sdxl: Family) -> None:
    facts = sdxl.file_facts(Variant(prediction_type="v_prediction"))
    assert facts["ss_base_model_version"] == "sdxl_base_v1-0"
    assert facts["ss_v2"] is False
    assert facts["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert facts["modelspec.implementation"] == "https://github.com/Stability-AI/generative-models"
    assert facts["modelspec.prediction_type"] == "v"
