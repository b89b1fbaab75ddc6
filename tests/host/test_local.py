"""The local host on a tiny random base: folders, patching, core nodes."""

import json

import pytest
import torch
from PIL import Image

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.pictures import save_picture
from lora_atelier.core.errors import FormatError, InputError, StorageError, UnknownNameError
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.tensors import write_tensors
from lora_atelier.families._base import open_base
from lora_atelier.nodes.host import set_host
from lora_atelier.nodes.host.local import LocalHost, _file_identity
from lora_atelier.nodes.host.local_generate import empty_latent, start_noise
from lora_atelier.nodes.host.local_nodes import CORE_NODES, KSampler, LoadImage, LoraLoader, SaveImage, VAEEncode
from lora_atelier.nodes.host.protocol import PICO_NAME, PICO_XL_NAME, Host

SETTINGS = {
    "width_px": 64,
    "height_px": 48,
    "seed": 5,
    "steps": 2,
    "cfg": 4.0,
    "sampler": "euler",
    "scheduler": "normal",
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A host with a loaded tiny base; tests never change the base's weights."""
    host = LocalHost(tmp_path_factory.mktemp("local"))
    path = host.folders.models("checkpoints")[0] / "sub" / "tiny.safetensors"
    path.parent.mkdir()
    write_tiny_checkpoint(path, dtype=torch.float32)
    return host, host.load_base(open_base(path, name="sub/tiny.safetensors"))


@pytest.fixture
def host(tmp_path):
    made = LocalHost(tmp_path)
    set_host(made)
    yield made
    set_host(None)


def random_lora(model, seed=0, rank=2):
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in model.base.family.targets(model.base.components):
        out, features = target.module.weight.shape[:2]
        tail = (1, 1) if target.module.weight.ndim == 4 else ()
        tensors[f"{target.stem}.lora_down.weight"] = torch.randn((rank, features, *tail), generator=generator)
        tensors[f"{target.stem}.lora_up.weight"] = torch.randn((out, rank, *tail), generator=generator)
        tensors[f"{target.stem}.alpha"] = torch.tensor(1.0)
    return tensors


def apply(host, model, clip, tensors, strength_model=1.0, strength_clip=1.0, **factors):
    return host.apply_lora(
        model, clip, tensors, strength_model=strength_model, strength_clip=strength_clip, stem_strengths=factors
    )


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_is_a_host(host):
    assert isinstance(host, Host)
    for name in ("input", "output", "temp", "datasets", "user/atelier", "models/checkpoints", "models/loras"):
        assert (host.folders.base_dir / name).is_dir()
    assert host.checkpoint_names() == [PICO_NAME, PICO_XL_NAME]
    assert host.tagger_names() == [PICO_NAME]
    assert host.detector_names() == [PICO_NAME]
    assert host.lora_names() == []
    with pytest.raises(UnknownNameError):
        host.lora_path("x.safetensors")


def test_a_missing_detector_says_which_file_goes_where(host):
    place = host.folders.base_dir / "models" / "detectors"
    (place / "faces").mkdir()
    (place / "faces" / "model.onnx").write_bytes(b"x")
    (place / "head.onnx").write_bytes(b"x")
    assert host.detector_names() == ["faces", "head.onnx", PICO_NAME]
    assert host.detector_path("head.onnx") == place / "head.onnx"
    with pytest.raises(
        InputError, match=r"unknown detector 'haed.onnx'; did you mean 'head.onnx'.*put a .*ONNX"
    ) as refusal:
        host.detector_path("haed.onnx")
    assert str(place) in str(refusal.value)


def test_names_use_forward_slashes_and_extra_model_folders(host, tmp_path):
    extra = tmp_path / "other" / "models"
    for path in (host.loras_dir() / "a" / "b.safetensors", extra / "loras" / "c.safetensors"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (host.loras_dir() / "old.ckpt").write_bytes(b"x")
    assert host.lora_names() == ["a/b.safetensors"]
    (host.user_dir() / "settings.json").write_text(json.dumps({"models": [str(extra)]}), encoding="utf-8")
    assert host.lora_names() == ["a/b.safetensors", "c.safetensors"]
    assert host.lora_path("a\\b.safetensors") == host.loras_dir() / "a" / "b.safetensors"
    (host.user_dir() / "settings.json").write_text(json.dumps({"models": "x"}), encoding="utf-8")
    with pytest.raises(FormatError, match="list of folder names"):
        host.lora_names()


def test_patches_are_base_plus_delta_and_leave_the_base_alone(loaded):
    host, (model, clip, _) = loaded
    base_unet, base_text = weights(model.unet()), weights(clip.text_encoders()[0])
    tensors = random_lora(model)
    patched, patched_clip = apply(host, model, clip, tensors, 0.75, -0.5)
    got, got_text = weights(patched.unet()), weights(patched_clip.text_encoders()[0])
    checked = 0
    for target in model.base.family.targets(model.base.components):
        up, down = (tensors[f"{target.stem}.lora_{part}.weight"].flatten(1) for part in ("up", "down"))
        strength = 0.75 if target.part == "unet" else -0.5
        before, after = (base_unet, got) if target.part == "unet" else (base_text, got_text)
        name = f"{target.path.removeprefix('text_model.') if target.part == 'text_encoder' else target.path}.weight"
        expected = before[name] + strength * 0.5 * (up @ down).reshape(before[name].shape)
        torch.testing.assert_close(after[name], expected, rtol=1e-5, atol=1e-5)
        checked += 1
    assert checked > 150
    changed = {name for name in got if not torch.equal(got[name], base_unet[name])}
    assert all(name.endswith(".weight") for name in changed)
    for name, value in model.unet().state_dict().items():
        assert torch.equal(value, base_unet[name]), "the base is back, bit for bit"
    again = weights(patched.unet())
    assert all(torch.equal(again[name], got[name]) for name in got)


def test_sets_are_built_once_and_swapped(loaded, monkeypatch):
    host, (model, clip, _) = loaded
    one, _ = apply(host, model, clip, random_lora(model, 1))
    two, _ = apply(host, model, clip, random_lora(model, 2))
    both, _ = apply(host, one, clip, random_lora(model, 2))
    keep = weights(both.unet())
    one.unet()
    two.unet()
    monkeypatch.setattr("lora_atelier.nodes.host.local_models.module_change", None)
    for patched in (one, model, two, both):
        patched.unet()
    same, _ = apply(host, model, clip, random_lora(model, 1))
    same.unet()
    assert all(torch.equal(keep[name], value) for name, value in weights(both.unet()).items())


def test_block_strengths(loaded):
    host, (model, clip, _) = loaded
    tensors = random_lora(model, 3)
    stems = {key.split(".")[0] for key in tensors}
    plain, _ = apply(host, model, clip, tensors, 0.6)
    ones, _ = apply(host, model, clip, tensors, 0.6, **dict.fromkeys(stems, 1.0))
    assert host.fingerprint(plain) == host.fingerprint(ones)
    none, _ = apply(host, model, clip, tensors, 0.6, **dict.fromkeys(stems, 0.0))
    assert none is model or not none.patches
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    only, _ = apply(host, model, clip, tensors, 0.6, **{other: 0.0 for other in stems if other != stem})
    before, after = weights(model.unet()), weights(only.unet())
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["mid_block.attentions.0.proj_in.weight"]


def test_strength_zero_gives_back_what_was_given(loaded):
    host, (model, clip, _) = loaded
    assert apply(host, model, clip, random_lora(model), 0.0, 0.0) == (model, clip)
    patched, same = apply(host, model, clip, random_lora(model), 1.0, 0.0)
    assert patched is not model
    assert same is clip


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_input_blocks_1_1_proj_in",
        "diffusion_model.input_blocks.1.1.proj_in",
        "lycoris_down_blocks_0_attentions_0_proj_in",
        "lora_unet_down_blocks_0_resnets_0_conv1",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    ],
)
def test_other_namings_are_found(loaded, stem):
    host, (model, clip, _) = loaded
    assert stem in model.base.unet.stems or stem in clip.base.text_stems


def test_accepted_stems_are_those_of_the_family(loaded):
    _, (model, clip, _) = loaded
    accepted = model.base.family.accepted_stems(model.base.components)
    ours = {stem for table in (model.base.unet.stems, clip.base.text_stems) for stem in table}
    assert ours <= accepted
    assert {target.stem for target in model.base.family.targets(model.base.components)} <= ours


def test_lora_of_another_kind_is_refused(loaded, caplog):
    host, (model, clip, _) = loaded
    part = {"lora_down.weight": torch.ones(1, 4), "lora_up.weight": torch.ones(4, 1)}
    alien = {f"lora_unet_nowhere.{name}": value for name, value in part.items()}
    with pytest.raises(InputError, match="none of the LoRA's 1 modules"):
        apply(host, model, clip, alien)
    apply(host, model, clip, {**random_lora(model), **alien})
    assert "lora key not loaded: lora_unet_nowhere" in caplog.text


def test_fingerprint_tells_objects_apart(loaded):
    host, (model, clip, vae) = loaded
    patched, patched_clip = apply(host, model, clip, random_lora(model))
    prints = {
        host.fingerprint(*objects) for objects in ((model, clip, vae), (patched, clip, vae), (model, patched_clip, vae))
    }
    assert len(prints) == 3
    assert host.fingerprint(model, clip, vae) == host.fingerprint(model, clip, vae)


def test_draws_the_same_picture_again(loaded):
    host, (model, clip, vae) = loaded
    positive, negative = host.encode_prompt(clip, "a red (circle:1.3)"), host.encode_prompt(clip, "")
    first = host.decode(vae, host.sample(model, positive, negative, **SETTINGS))
    assert first.shape == (1, 48, 64, 3)
    assert first.dtype == torch.float32
    assert float(first.min()) >= 0
    assert float(first.max()) <= 1
    again = host.decode(vae, host.sample(model, positive, negative, **SETTINGS))
    assert torch.equal(first, again)
    other = host.decode(vae, host.sample(model, positive, negative, **{**SETTINGS, "seed": 6}))
    assert not torch.equal(first, other)


def test_cfg_1_ignores_the_negative(loaded):
    host, (model, clip, _) = loaded
    positive = host.encode_prompt(clip, "red")
    results = [
        host.sample(model, positive, host.encode_prompt(clip, text), **{**SETTINGS, "cfg": 1.0})["samples"]
        for text in ("", "blue")
    ]
    assert torch.equal(*results)


def test_prompts_of_different_length_can_be_mixed(loaded):
    host, (model, clip, _) = loaded
    long = host.encode_prompt(clip, "word " * 100)
    assert long[0][0].shape[1] > 77
    out = host.sample(model, long, host.encode_prompt(clip, ""), **SETTINGS)
    assert torch.isfinite(out["samples"]).all()


def test_denoise_0_and_image_to_image(loaded):
    host, (model, clip, vae) = loaded
    condition = host.encode_prompt(clip, "red")
    latent = host.encode(vae, torch.rand(1, 50, 67, 4, generator=torch.Generator().manual_seed(3)))
    assert latent["samples"].shape == (1, 4, 6, 8)
    settings = {key: value for key, value in SETTINGS.items() if not key.endswith("_px")}
    same = host.sample_latent(model, condition, condition, latent, denoise=0.0, **settings)
    assert torch.equal(same["samples"], latent["samples"])
    near = host.sample_latent(model, condition, condition, latent, denoise=0.01, **settings)
    far = host.sample_latent(model, condition, condition, latent, denoise=1.0, **settings)
    moved, moved_far = (float((one["samples"] - latent["samples"]).abs().mean()) for one in (near, far))
    assert 0 < moved < 0.7 * moved_far


def test_noise_rules():
    shape = empty_latent(64, 64, 3)["samples"]
    noise = start_noise(shape, 9)
    torch.manual_seed(9)
    assert torch.equal(noise, torch.randn(3, 4, 8, 8))
    single = start_noise(shape[:2], 9, [2, 0])
    generator = torch.manual_seed(9)
    draws = [torch.randn((1, 4, 8, 8), generator=generator) for _ in range(3)]
    assert torch.equal(single, torch.cat([draws[2], draws[0]]))


def test_cancel_is_seen_between_steps(loaded):
    host, (model, clip, _) = loaded
    condition = host.encode_prompt(clip, "red")
    host.cancel_event.set()
    try:
        with pytest.raises(Cancelled):
            host.sample(model, condition, condition, **SETTINGS)
    finally:
        host.cancel_event.clear()


def test_combined_conditionings_are_refused(loaded):
    host, (model, clip, _) = loaded
    condition = host.encode_prompt(clip, "red")
    with pytest.raises(InputError, match="one prompt at a time"):
        host.sample(model, condition + condition, condition, **SETTINGS)


def test_training_leaves_inference_mode(host):
    with torch.inference_mode():
        with host.training():
            assert torch.is_grad_enabled()
            assert not torch.is_inference_mode_enabled()
        assert torch.is_inference_mode_enabled()


def test_weights_stay_trainable_after_use_in_inference_mode(loaded):
    host, (model, clip, _) = loaded
    with torch.inference_mode():
        patched, _ = apply(host, model, clip, {key: value.clone() for key, value in random_lora(model, 8).items()})
        patched.unet()
    assert not any(p.is_inference() for p in model.base.components.unet.parameters())


def test_save_and_load_image(host):
    pixels = torch.linspace(0, 1, 3 * 8 * 8 * 2).reshape(2, 8, 8, 3)
    saved = SaveImage().save_images(pixels, "a/b_%height%", prompt={"1": {}}, extra_pnginfo={"workflow": {"x": 1}})
    entries = saved["ui"]["images"]
    assert [entry["filename"] for entry in entries] == ["b_8_00001_.png", "b_8_00002_.png"]
    assert entries[0]["subfolder"] == "a"
    with Image.open(host.output_dir() / "a" / "b_8_00001_.png") as picture:
        assert json.loads(picture.info["workflow"]) == {"x": 1}
    back, mask = LoadImage().load_image("a/b_8_00002_.png [output]")
    assert float((back[0] - pixels[1]).abs().max()) <= 1 / 255
    assert mask.shape == (1, 64, 64)
    with pytest.raises(InputError, match=r"'\.\.'"):
        SaveImage().save_images(pixels, "../x")
    with pytest.raises((InputError, StorageError)):
        LoadImage().load_image("/etc/hostname")


def test_date_marks_of_the_page(host):
    saved = SaveImage().save_images(torch.zeros(1, 8, 8, 3), "%date:yyyy-MM-dd%/x_%year%%month%%day%")
    entry = saved["ui"]["images"][0]
    assert entry["filename"] == f"x_{entry['subfolder'].replace('-', '')}_00001_.png"
    assert len(entry["subfolder"]) == len("2026-01-01")


def test_load_image_turns_and_reads_alpha(host):
    picture = Image.new("RGBA", (4, 2), (255, 0, 0, 51))
    picture.save(host.input_dir() / "a.png")
    pixels, mask = LoadImage().load_image("a.png")
    assert pixels.shape == (1, 2, 4, 3)
    assert float(mask[0, 0, 0]) == pytest.approx(0.8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 2)).save(host.input_dir() / "turned.jpg", exif=exif)
    assert LoadImage().load_image("turned.jpg")[0].shape == (1, 4, 2, 3)
    assert LoadImage.INPUT_TYPES()["required"]["image"][0] == ["a.png", "turned.jpg"]


def test_core_nodes_have_comfyuis_shape(host):
    save_picture(host.input_dir() / "a.png", (8, 8))
    for name, node in CORE_NODES.items():
        declared = node.INPUT_TYPES()
        assert callable(getattr(node, node.FUNCTION)), name
        assert len(node.RETURN_TYPES) == len(set(node.RETURN_TYPES)), name
        for entry in declared["required"].values():
            options = entry[1] if len(entry) > 1 else {}
            if "min" in options:
                assert options["min"] <= options["default"] <= options["max"], name
    assert list(KSampler.INPUT_TYPES()["required"]) == [
        "model", "seed", "steps", "cfg", "sampler_name", "scheduler", "positive", "negative", "latent_image", "denoise"
    ]  # fmt: skip


def test_lora_loader_node(loaded):
    host, (model, clip, vae) = loaded
    set_host(host)
    try:
        write_tensors(host.loras_dir() / "r.safetensors", random_lora(model, 4), {})
        patched, patched_clip = LoraLoader().load_lora(model, clip, "r.safetensors", 0.5, 0.5)
        assert len(patched.patches) == len(patched_clip.patches) == 1
        assert LoraLoader().load_lora(model, clip, "r.safetensors", 0.0, 0.0) == (model, clip)
        with pytest.raises(InputError, match="too small"):
            VAEEncode().encode(vae, torch.zeros(1, 4, 4, 3))
    finally:
        set_host(None)


def test_files_equal_at_both_ends_are_told_apart(tmp_path):
    content = bytearray(b"\x02" + bytes(7) + b"{}" + bytes(6 * 2**20))
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(content)
    content[3 * 2**20 : 3 * 2**20 + 2**17] = b"x" * 2**17
    (tmp_path / "c").write_bytes(content)
    (tmp_path / "empty").write_bytes(b"")
    same, other, changed, empty = (_file_identity(tmp_path / name) for name in ("a", "b", "c", "empty"))
    assert same == other
    assert len({same, changed, empty}) == 3
