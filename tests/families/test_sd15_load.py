import socket
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers import full_size
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_tensors, write_tensors
from lora_atelier.families import _spec
from lora_atelier.families._spec import Components, Family
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams

UNET_KEY = "model.diffusion_model.input_blocks.1.1.proj_in.weight"


def tiny_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    from lora_atelier.core.tensors import read_header

    return read_tensors(path), dict(read_header(path).metadata)


def test_every_part_is_frozen_in_evaluation_mode_and_of_the_asked_dtype(tiny_path: Path, family: Family) -> None:
    loaded = family.load(tiny_path, dtype=torch.bfloat16)
    for module in (loaded.unet, loaded.vae, *loaded.text_encoders):
        assert not module.training
        assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
        assert not any(parameter.requires_grad or parameter.is_meta for parameter in module.parameters())
        assert not any(buffer.is_meta for buffer in module.buffers())


def test_values_equal_those_that_diffusers_own_conversion_gives(tiny_path: Path, tiny: Components) -> None:
    single_file = pytest.importorskip("diffusers.loaders.single_file_utils")
    tensors, _ = tiny_tensors(tiny_path)
    unet = single_file.convert_ldm_unet_checkpoint(dict(tensors), config=dict(tiny.unet.config))
    vae = single_file.convert_ldm_vae_checkpoint(dict(tensors), config=dict(tiny.vae.config))
    for module, oracle in ((tiny.unet, unet), (tiny.vae, vae)):
        own = module.state_dict()
        assert own.keys() == oracle.keys()
        for key, value in own.items():
            assert torch.equal(value, oracle[key].float().reshape(value.shape)), key
    text = {key[len("cond_stage_model.transformer.") :]: value for key, value in tensors.items() if "cond_stage" in key}
    for key, value in tiny.text_encoders[0].state_dict().items():
        assert torch.equal(value, text[f"text_model.{key.removeprefix('text_model.')}"].float()), key


def test_only_the_asked_parts_are_read(tiny_path: Path, family: Family) -> None:
    loaded = family.load(tiny_path, parts=("vae",))
    assert loaded.unet is None
    assert loaded.text_encoders == () == loaded.tokenizers
    with pytest.raises(InputError, match="unet, text_encoder, vae"):
        family.load(tiny_path, parts=("unnet",))


def test_nothing_asks_the_network(tiny_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert family.load(tiny_path).unet is not None


@pytest.mark.parametrize("position_ids", [torch.int64, torch.float32, torch.float16, None])
@pytest.mark.parametrize("nai_names", [False, True])
def test_text_encoder_keys_of_every_kind(
    tmp_path: Path, family: Family, position_ids: torch.dtype | None, nai_names: bool
) -> None:
    path = full_size.write_tiny_checkpoint(
        tmp_path / "base.safetensors",
        position_ids=position_ids,
        nai_names=nai_names,
        extra={
            "model_ema.diffusion_modelinput_blocks00weight": torch.zeros(2),
            "cond_stage_model.transformer.text_projection.weight": torch.zeros(4, 4),
            "cond_stage_model.logit_scale": torch.zeros(1),
            "alphas_cumprod": torch.zeros(3),
        },
    )
    loaded = family.load(path, parts=("text_encoder",))
    [ids] = [buffer for name, buffer in loaded.text_encoders[0].named_buffers() if name.endswith("position_ids")]
    assert ids.dtype == torch.int64
    assert ids.flatten().tolist() == list(range(77))
    assert torch.isfinite(family.encode_text(loaded, ["red circle"], clip_skip=1).hidden).all()


def test_missing_left_over_and_misshapen_keys_are_named(tmp_path: Path, tiny_path: Path, family: Family) -> None:
    tensors, metadata = tiny_tensors(tiny_path)
    path = tmp_path / "base.safetensors"

    write_tensors(path, {key: value for key, value in tensors.items() if key != UNET_KEY}, metadata)
    with pytest.raises(FormatError, match=rf"UNet of base\.safetensors.*1 keys are missing \({UNET_KEY}\)"):
        family.load(path, parts=("unet",))

    write_tensors(path, {**tensors, "model.diffusion_model.time_embed.7.weight": torch.zeros(3)}, metadata)
    with pytest.raises(FormatError, match=r"1 keys are not known \(model.diffusion_model.time_embed.7.weight\)"):
        family.load(path, parts=("unet",))

    write_tensors(path, {**tensors, UNET_KEY: torch.zeros(64, 32, 1, 1)}, metadata)
    with pytest.raises(FormatError, match=rf"{UNET_KEY} has the shape \[64, 32, 1, 1\].*needs \[64, 64, 1, 1\]"):
        family.load(path, parts=("unet",))

    for prefix, part, name in (("first_stage_model.", "vae", "VAE"), ("cond_stage", "text_encoder", "text encoder")):
        write_tensors(path, {key: value for key, value in tensors.items() if not key.startswith(prefix)}, metadata)
        with pytest.raises(FormatError, match=f"holds no {name}"):
            family.load(path, parts=(part,))


def test_linear_shaped_projections_and_attention_are_accepted(tmp_path: Path, tiny_path: Path, family: Family) -> None:
    tensors, metadata = tiny_tensors(tiny_path)
    flat = {key: value.flatten(1) if ".attn_1." in key and value.ndim == 4 else value for key, value in tensors.items()}
    path = tmp_path / "base.safetensors"
    write_tensors(path, flat, metadata)
    first, second = family.load(tiny_path, parts=("vae",)).vae, family.load(path, parts=("vae",)).vae
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize(
    "sizes",
    [
        "no json",
        "[]",
        '{"unet": {}}',
        '{"unet": {"block_out_channels": [64, 64, 64]}, "vae": {}, "text_encoder": {}}',
        '{"unet": {"block_out_channels": [64, 64, 64, 1e99]}, "vae": {}, "text_encoder": {}}',
        '{"unet": {"down_block_types": ["X", "X", "X", "X"]}, "vae": {}, "text_encoder": {}}',
        '{"unet": {"block_out_channels": [64, 64, 64, 64.0]}, "vae": {}, "text_encoder": {}}',
        '{"unet": {"block_out_channels": [64, 64, 64, 65]}, "vae": {}, "text_encoder": {}}',
        '{"unet": {"attention_head_dim": 0}, "vae": {}, "text_encoder": {}}',
        '{"unet": {}, "vae": {"scaling_factor": 0.13025}, "text_encoder": {}}',
        '{"unet": {}, "vae": {}, "text_encoder": {"num_hidden_layers": 60000}}',
        '{"unet": {"layers_per_block": 3}, "vae": {}, "text_encoder": {}}',
        '{"unet": {}, "vae": {}, "text_encoder": {"vocab_size": "many"}}',
        '{"unet": {}, "vae": {}, "text_encoder": {"hidden_size": -1}}',
    ],
)
def test_broken_sizes_in_the_metadata_are_refused(tmp_path: Path, tiny_path: Path, family: Family, sizes: str) -> None:
    tensors, metadata = tiny_tensors(tiny_path)
    path = tmp_path / "base.safetensors"
    write_tensors(path, tensors, {**metadata, "atelier.sizes": sizes})
    with pytest.raises(FormatError, match=r"metadata"):
        family.load(path, parts=("unet",))


def test_parts_loaded_and_adapted_in_inference_mode_can_be_trained(tiny_path: Path, family: Family) -> None:
    with torch.inference_mode():
        loaded = family.load(tiny_path, parts=("text_encoder",))
        choice = Choice(kind="network", name="lora", params=LoraParams(rank=2, alpha=1.0))
        adapters = AdapterSet.attach(family.targets(loaded, unet=False), choice, seed=0)
    family.encode_text(loaded, ["red circle"], clip_skip=1).hidden.square().sum().backward()
    assert adapters.parts_of(adapters.stems[0])["lora_up.weight"].grad is not None


def test_another_family_is_refused(tmp_path: Path, family: Family) -> None:
    path = tmp_path / "other.safetensors"
    write_tensors(path, {"weight": torch.zeros(2)}, {})
    with pytest.raises(FormatError, match=r"other\.safetensors is not a Stable Diffusion 1\.x checkpoint"):
        family.load(path)


def test_cancel_reaches_the_caller_unchanged(tiny_path: Path, family: Family) -> None:
    class Stop(BaseException):
        pass

    class Cancelling:
        def check(self) -> None:
            raise Stop

        def update(self, done: int, total: int, text: str = "") -> None: ...

        def status(self, text: str) -> None: ...

        def preview(self, image: Any) -> None: ...

    with pytest.raises(Stop):
        family.load(tiny_path, progress=Cancelling())


def test_the_built_in_pico_base_loads(family: Family) -> None:
    path = Path(_spec.__file__).resolve().parent.parent / "pico" / "assets" / "pico-base.safetensors"
    if not path.is_file():
        pytest.skip("the pico base has not been made")
    loaded = family.load(path)
    assert family.tokenize(loaded.tokenizers, ["red circle"])[0].shape == (1, 77)
    layers = loaded.text_encoders[0].config.num_hidden_layers
    assert len(family.targets(loaded)) == 192 + 6 * layers


@pytest.mark.slow
def test_a_full_size_checkpoint_takes_little_more_memory_than_its_parts(tmp_path: Path, family: Family) -> None:
    resource = pytest.importorskip("resource")
    path = full_size.write_checkpoint(tmp_path / "full.safetensors", tokenizer=full_size.byte_tokenizer())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = family.load(path, dtype=torch.float16)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    size_bytes = sum(
        value.numel() * 2 for part in (loaded.unet, loaded.vae, *loaded.text_encoders) for value in part.parameters()
    )
    assert (after - before) * 1024 < size_bytes * 1.25 + 3e8
