"""The nodes that show and bake the blocks of a LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.tensors import read_tensors, write_tensors
from lora_atelier.merger.lora.handle import open_lora
from lora_atelier.nodes.host import set_host

STEMS = (
    "lora_unet_down_blocks_0_attentions_0_proj_in",
    "lora_unet_up_blocks_1_attentions_0_proj_in",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
)


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    tensors = {f"{stem}.lora_{part}.weight": torch.ones(2, 2) for stem in STEMS for part in ("down", "up")}
    write_tensors(host.loras_dir() / "one.safetensors", tensors, {})
    yield host
    set_host(None)


def handle(host: FakeHost, weights: str = "", strength: float = 1.0) -> Any:
    path = host.loras_dir() / "one.safetensors"
    return open_lora(path, "one.safetensors", strength_model=strength, block_weights=weights)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_map_is_a_picture_and_a_table(host: FakeHost, theme: str) -> None:
    shown = NODE_CLASS_MAPPINGS["AtelierLoraBlockMap"]().show(handle(host, "NIN"), theme)
    image, report = shown["result"]
    assert image.shape[-1] == 3
    assert image.shape[2] > image.shape[1] > 400
    assert float(image.std()) > 0.02
    assert (float(image[0, 2, 2].mean()) > 0.9) == (theme == "light")
    assert "OUT03" in report
    assert "Preset NIN" in report
    assert shown["ui"]["text"] == [report]
    assert (host.temp_dir() / shown["ui"]["images"][0]["filename"]).is_file()


def bake(lora: Any, name: str = "", **given: Any) -> Any:
    return NODE_CLASS_MAPPINGS["AtelierBakeLora"]().bake(lora, name, "keep both", **given)["result"]


def test_baking_writes_below_the_loras_folder(host: FakeHost) -> None:
    made, report = bake(handle(host, strength=0.5), block_weights="NIN")
    assert made.name == "atelier/one-baked.safetensors"
    assert (made.strength_model, made.block_weights) == (1.0, "")
    tensors = read_tensors(host.loras_dir() / made.name)
    assert {key.rpartition(".lora")[0] or key.rpartition(".")[0] for key in tensors} == set(STEMS[1:])
    assert float(tensors[f"{STEMS[1]}.alpha"]) == 1.0
    assert "1 modules have a new factor, 1 are as they were, 1 of factor 0" in report
    again, report = bake(handle(host, strength=0.5), block_weights="NIN")
    assert again.name == made.name
    assert "there already" in report
    other, _ = bake(handle(host, strength=0.25), block_weights="NIN")
    assert other.name == "atelier/one-baked-2.safetensors"


@pytest.mark.parametrize(
    ("name", "said"),
    [("../evil", r"'\.\.'"), ("x.ckpt", "only .safetensors"), ("con", "reserved"), ("one", "never replaced")],
)
def test_names_that_are_refused(host: FakeHost, name: str, said: str) -> None:
    before = (host.loras_dir() / "one.safetensors").read_bytes()
    with pytest.raises(AtelierError, match=said):
        bake(handle(host, "NIN"), name)
    assert (host.loras_dir() / "one.safetensors").read_bytes() == before
    assert [path.name for path in host.loras_dir().rglob("*")] == ["one.safetensors"]
