"""The base node: what its number format promises is what the code does."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.sources import ROOT
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import InputError
from lora_atelier.core.tensors import write_tensors
from lora_atelier.merger.lora.handle import open_lora
from lora_atelier.nodes.base import BaseWithLora, OpenBase
from lora_atelier.nodes.host import set_host


def test_the_number_format_is_for_drawing_and_training_has_its_own(tmp_path: Path) -> None:
    set_host(FakeHost(tmp_path))
    try:
        shown = NODE_CLASS_MAPPINGS["AtelierOpenBase"].INPUT_TYPES()["required"]["dtype"][1]["tooltip"]
        assert "precision" in NODE_CLASS_MAPPINGS["AtelierTrainLora"].INPUT_TYPES()["required"]
    finally:
        set_host(None)
    readers = [
        path.relative_to(ROOT).as_posix()
        for folder in ("trainer", "nodes")
        for path in (ROOT / folder).rglob("*.py")
        if "base.dtype" in path.read_text(encoding="utf-8") or "base.torch_dtype" in path.read_text(encoding="utf-8")
    ]
    assert readers == ["nodes/host/local.py"]  # whoever adds a reader tells it in the tooltip, too
    assert "command line" in shown
    assert "training goes by its own 'precision'" in shown


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Path]:
    """The folder of a fake host with a tiny SDXL base in it."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "vae").mkdir()
    write_tiny_checkpoint(tmp_path / "checkpoints" / "xl.safetensors", family="sdxl")
    set_host(FakeHost(tmp_path))
    yield tmp_path
    set_host(None)


def test_vae_and_prediction_are_carried_by_the_handle(nodes: Path) -> None:
    write_tiny_checkpoint(nodes / "vae" / "own.safetensors", family="sdxl", seed=2)
    opened = OpenBase().open("xl.safetensors", "fp32", vae="own.safetensors", prediction="v_prediction")[0]
    assert (opened.family, opened.vae_name, opened.prediction_type) == ("sdxl", "own.safetensors", "v_prediction")
    assert OpenBase().open("xl.safetensors", "fp32")[0].vae_path is None
    assert OpenBase.VALIDATE_INPUTS(base_name="xl.safetensors", vae="own.safetensors") is True
    assert "unknown VAE" in str(OpenBase.VALIDATE_INPUTS(base_name="xl.safetensors", vae="other.safetensors"))
    changed = OpenBase.IS_CHANGED(base_name="xl.safetensors", vae="own.safetensors")
    assert changed != OpenBase.IS_CHANGED(base_name="xl.safetensors")


def test_a_lora_joins_the_base_with_strengths_and_block_weights(nodes: Path) -> None:
    base = OpenBase().open("xl.safetensors", "fp32")[0]
    keys = {f"lora_unet_{place}.lora_down.weight": torch.zeros(2, 2) for place in ("middle_block_1_proj_in", "out_2")}
    write_tensors(nodes / "x.safetensors", keys, {"ss_base_model_version": "sdxl_base_v1-0"})
    weights = ",".join(["1"] * 10 + ["0.5"] + ["1"] * 9)  # 20 numbers, MID at 0.5
    lora = open_lora(nodes / "x.safetensors", "x", strength_model=0.7, block_weights=weights)
    (merged,) = BaseWithLora().merge(base, lora)
    assert merged.loras[0].strength_model == 0.7
    assert merged.loras[0].stem_strengths == (("lora_unet_middle_block_1_proj_in", 0.5),)
    (twice,) = BaseWithLora().merge(merged, lora)
    assert len(twice.loras) == 2
    assert base.loras == ()


def test_a_lora_of_another_family_is_refused(nodes: Path) -> None:
    base = OpenBase().open("xl.safetensors", "fp32")[0]
    write_tensors(
        nodes / "x.safetensors", {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(2, 2)}, {}
    )
    with pytest.raises(InputError, match="x is a LoRA for sd15 and xl.safetensors is sdxl"):
        BaseWithLora().merge(base, open_lora(nodes / "x.safetensors", "x"))
