"""Opening and applying LoRAs: handles, stacks, block weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.tensors import write_tensors
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
    for name in ("one.safetensors", "two.safetensors"):
        tensors = {f"{stem}.lora_{part}.weight": torch.ones(2, 2) for stem in STEMS for part in ("down", "up")}
        write_tensors(host.loras_dir() / name, tensors, {})
    yield host
    set_host(None)


def open_lora(name: str = "one.safetensors", weights: str = "") -> Any:
    node = NODE_CLASS_MAPPINGS["AtelierOpenLora"]()
    return node.open(lora_name=name, strength_model=0.5, strength_clip=1.0, block_weights=weights)[0]


def apply(lora: Any, **changes: Any) -> Any:
    settings = {"strength_model": 1.0, "strength_clip": 1.0, "block_weights": "", **changes}
    return NODE_CLASS_MAPPINGS["AtelierApplyLora"]().apply(model="model", clip="clip", lora=lora, **settings)


def test_strengths_multiply_and_weights_replace(host: FakeHost) -> None:
    model, clip, applied, stack, report = apply(open_lora(weights="NIN"), strength_model=0.5, block_weights="ALL")
    assert (model, clip) == ("model+0.25*[1.0]", "clip+1.0*[1.0]")
    assert (applied.strength_model, applied.block_weights) == (0.25, "ALL")
    assert stack == [("one.safetensors", 0.25, 1.0)]
    assert report == "ALL: every block at 1."
    model, _, applied, *_ = apply(open_lora(weights="NIN"))
    assert model == "model+0.5*[0.0, 1.0]"
    assert applied.block_weights == "NIN"


def test_a_stack_is_applied_first_and_handed_on(host: FakeHost) -> None:
    stack = [("two.safetensors", 0.3, 0.4), ("None", 1.0, 1.0)]
    model, _, _, handed_on, _ = apply(open_lora(), lora_stack=stack)
    assert model == "model+0.3*[1.0]+0.5*[1.0]"
    assert handed_on == [*stack, ("one.safetensors", 0.5, 1.0)]
    assert len(stack) == 2


def test_wrong_names_and_weights_are_refused_when_opened(host: FakeHost) -> None:
    with pytest.raises(AtelierError, match="nowhere"):
        open_lora("nowhere.safetensors")
    for weights in ("NO_SUCH_PRESET", "1,1,1"):
        with pytest.raises(AtelierError, match="block weight|preset|numbers"):
            open_lora(weights=weights)


def test_a_rewritten_file_and_edited_presets_are_seen(host: FakeHost) -> None:
    node = NODE_CLASS_MAPPINGS["AtelierOpenLora"]
    states = [node.IS_CHANGED(lora_name="one.safetensors")]
    write_tensors(host.loras_dir() / "one.safetensors", {f"{STEMS[0]}.lora_up.weight": torch.ones(2, 2)}, {})
    states.append(node.IS_CHANGED(lora_name="one.safetensors"))
    host.user_dir().mkdir()
    (host.user_dir() / "block_presets.txt").write_text("MINE:" + ",".join(["1"] * 17), encoding="utf-8")
    states.append(node.IS_CHANGED(lora_name="one.safetensors"))
    assert len(set(states)) == 3
    assert open_lora("two.safetensors", "MINE").block_weights == "MINE"


def test_the_page_is_told_blocks_and_presets(host: FakeHost) -> None:
    def told(node: str) -> Any:
        return NODE_CLASS_MAPPINGS[node].INPUT_TYPES()["required"]["block_weights"][1]["atelier_blocks"]

    blocks = told("AtelierOpenLora")
    assert {length: len(rows) for length, rows in blocks["forms"].items()} == {"17": 17, "26": 26, "12": 12, "20": 20}
    assert blocks["presets"]["NIN"]["17"] == "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
    assert blocks["problem"] == ""
    host.user_dir().mkdir()
    (host.user_dir() / "block_presets.txt").write_text("MINE:" + ",".join(["0.5"] * 12), encoding="utf-8")
    assert told("AtelierApplyLora")["presets"]["MINE"] == {"12": ",".join(["0.5"] * 12)}
    (host.user_dir() / "block_presets.txt").write_text("BROKEN", encoding="utf-8")
    blocks = told("AtelierApplyLora")
    assert "line 1" in blocks["problem"]
    assert "NIN" in blocks["presets"]
