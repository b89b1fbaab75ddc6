"""LoRA files: names and shapes of the fixture, metadata, hashes, and everything that must never be saved."""

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from torch import nn

from lora_atelier.core.errors import FormatError, TrainingError
from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import TensorFile, read_header
from lora_atelier.families._spec import Components, Target, get_family
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams
from lora_atelier.trainer.export import save_lora
from lora_atelier.trainer.train import RunResult

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
STEMS = ("lora_unet_a_to_q", "lora_te_text_model_b")


def adapter_of(*, rank: int = 2, up: float = 0.01) -> AdapterSet:
    """Two linear modules, one of the UNet and one of the text encoder, whose up weights are ``up`` times noise."""
    parts = ("unet", "text_encoder")
    targets = [
        Target(stem=stem, path=stem, part=part, block="MID", kind="linear", module=nn.Linear(8, 6))
        for stem, part in zip(STEMS, parts, strict=True)
    ]
    params = LoraParams(rank=rank, alpha=1.0)
    adapter = AdapterSet.attach(targets, Choice(kind="network", name="lora", params=params), seed=0)
    generator = torch.Generator().manual_seed(4)
    state = adapter.state()
    for name in state:
        if name.endswith("lora_up.weight"):
            state[name] = up * torch.randn(state[name].shape, generator=generator)
    adapter.load_state(state)
    return adapter


def save(path: Path, adapter: AdapterSet, *, dtype: str = "fp16", accepted: tuple[str, ...] = STEMS) -> object:
    return save_lora(path, adapter, metadata={"ss_x": "1"}, dtype=dtype, accepted_stems=accepted)


@pytest.mark.parametrize(("dtype", "stored"), [("fp16", "F16"), ("bf16", "BF16"), ("fp32", "F32")])
def test_the_file_is_the_adapter(tmp_path: Path, dtype: str, stored: str) -> None:
    report = save_lora(tmp_path / "x.safetensors", adapter_of(), metadata={}, dtype=dtype, accepted_stems=STEMS)
    assert report.max_relative_error == 0.0
    assert report.rounding_error < {"fp16": 1e-3, "bf16": 1e-2, "fp32": 1e-12}[dtype]
    header = read_header(tmp_path / "x.safetensors")
    assert set(header.dtypes.values()) == {stored}
    assert header.shapes["lora_unet_a_to_q.alpha"] == ()
    assert header.shapes["lora_unet_a_to_q.lora_down.weight"] == (2, 8)
    assert header.shapes["lora_unet_a_to_q.lora_up.weight"] == (6, 2)


def test_values_too_small_for_fp16_are_saved_in_fp32(tmp_path: Path) -> None:
    report = save_lora(tmp_path / "x.safetensors", adapter_of(up=1e-6), metadata={}, dtype="fp16", accepted_stems=STEMS)
    assert report.dtype == "fp32"
    assert report.rounding_error <= 1e-3
    assert "fp16 cannot hold values this small" in report.text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    adapter = adapter_of()
    state = adapter.state()
    state["lora_unet_a_to_q.lora_down.weight"] = torch.full((2, 8), value)
    adapter.load_state(state)
    with pytest.raises(TrainingError, match="lora_unet_a_to_q.lora_down.weight is not finite"):
        save(tmp_path / "x.safetensors", adapter)
    assert not list(tmp_path.iterdir())


def test_a_zero_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="All 1 modules of the unet are still zero"):
        save(tmp_path / "x.safetensors", adapter_of(up=0.0))
    assert not list(tmp_path.iterdir())


def test_names_that_comfyui_would_not_load_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="1 modules of the LoRA have names that ComfyUI would not load"):
        save(tmp_path / "x.safetensors", adapter_of(), accepted=STEMS[:1])


def test_a_file_that_differs_from_the_adapter_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_atelier.trainer import export

    def read_back_wrongly(path: Path) -> dict[str, torch.Tensor]:
        with TensorFile(path) as file:
            return {key: file.tensor(key) * (1.01 if "up" in key else 1.0) for key in file.keys()}  # noqa: SIM118

    monkeypatch.setattr(export, "read_tensors", read_back_wrongly)
    with pytest.raises(TrainingError, match="read back with a relative error of 0.01"):
        save(tmp_path / "x.safetensors", adapter_of())


def test_full_size_file_equals_the_fixture(tmp_path: Path) -> None:
    """Names and shapes of a default kohya network, from a full-size model that is only described, not filled."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from lora_atelier.families.sd15 import FULL_SIZES

    family = get_family("sd15")
    with torch.device("meta"):
        components = Components(
            unet=UNet2DConditionModel(**FULL_SIZES["unet"]),
            text_encoders=(CLIPTextModel(CLIPTextConfig(**FULL_SIZES["text_encoder"])),),
        )
    choice = Choice(kind="network", name="lora", params=LoraParams(rank=4, alpha=4.0))
    adapter = AdapterSet.attach(family.targets(components), choice, seed=0, device="cpu")
    state = adapter.state()
    adapter.load_state({key: torch.full_like(value, 0.1) if "up" in key else value for key, value in state.items()})
    expected = json.loads((FIXTURES / "kohya_sd15_lora_rank4.json").read_text(encoding="utf-8"))
    assert {key: list(value.shape) for key, value in adapter.state().items()} == expected
    assert set(adapter.stems) <= family.accepted_stems(components)


def metadata_of(path: Path) -> dict[str, str]:
    with TensorFile(path) as file:
        return file.metadata


def test_metadata(whole_run: RunResult) -> None:
    said = metadata_of(whole_run.lora_path)
    expected = {
        "ss_base_model_version": "sd_v1",
        "ss_v2": "False",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "2",
        "ss_network_alpha": "2.0",
        "ss_output_name": "tiny",
        "ss_steps": "7",
        "ss_max_train_steps": "7",
        "ss_epoch": "3",
        "ss_num_epochs": "3",
        "ss_num_train_images": "10",
        "ss_num_reg_images": "0",
        "ss_num_batches_per_epoch": "5",
        "ss_gradient_accumulation_steps": "2",
        "ss_clip_skip": "1",
        "ss_seed": "7",
        "ss_mixed_precision": "no",
        "ss_lr_scheduler": "constant",
        "ss_unet_lr": "0.001",
        "ss_text_encoder_lr": "0.001",
        "ss_sd_model_name": "tiny.safetensors",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "tiny",
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.timestep_range": "0,1000",
        "modelspec.encoder_layer": "1",
    }
    assert {key: said.get(key) for key in expected} == expected
    assert said["ss_optimizer"].startswith("torch.optim.adamw.AdamW(beta1=0.9,")
    assert json.loads(said["ss_dataset_dirs"]) == {"2_ring": {"n_repeats": 2, "img_count": 5}}
    tags = json.loads(said["ss_tag_frequency"])["2_ring"]
    assert tags["lumo kest"] == 5
    assert tags["tag3"] == 1
    buckets = json.loads(said["ss_bucket_info"])["buckets"]
    assert sorted((tuple(entry["resolution"]), entry["count"]) for entry in buckets.values()) == [
        ((64, 64), 4),
        ((80, 48), 6),
    ]
    assert float(said["ss_training_started_at"]) <= float(said["ss_training_finished_at"])
    step = metadata_of(whole_run.lora_path.with_name("tiny-step00000003.safetensors"))
    assert (step["ss_steps"], step["ss_epoch"], step["ss_output_name"]) == ("3", "2", "tiny-step00000003")


def test_no_file_of_a_run_tells_where_the_pictures_lie(whole_run: RunResult, pictures: Path, tiny_base: Path) -> None:
    for path in (*whole_run.run.folder.rglob("*.json"), whole_run.lora_path, whole_run.run.folder / "metrics.csv"):
        content = path.read_bytes()
        assert str(pictures.parent).encode() not in content, path
        assert str(tiny_base.parent).encode() not in content, path


def test_hashes_are_kohya_s(whole_run: RunResult) -> None:
    raw = whole_run.lora_path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    said = metadata_of(whole_run.lora_path)
    assert said["sshs_model_hash"] == hashlib.sha256(raw[8 + header_bytes :]).hexdigest()
    assert len(said["sshs_legacy_hash"]) == 8
