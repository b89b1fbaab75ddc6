"""The node that reads LoRA tags, and LoRAs with sampler steps in the other nodes."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError, InputError, UnknownNameError
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
    for name in ("one.safetensors", "chars/two.safetensors"):
        tensors = {f"{stem}.lora_{part}.weight": torch.ones(2, 2) for stem in STEMS for part in ("down", "up")}
        write_tensors(host.loras_dir() / name, tensors, {})
    yield host
    set_host(None)


def read(prompt: str, **given: Any) -> Any:
    return NODE_CLASS_MAPPINGS["AtelierLoraPrompt"]().apply("model", "clip", prompt, **given)


def test_tags_are_applied_in_order_and_taken_out(host: FakeHost) -> None:
    model, clip, prompt, loras, stack, report = read("a cat, <lora:one:0.8:NIN>, <lora:two:0.5:1>")
    assert model == "model+0.8*[0.0, 1.0]+1.0*[1.0]"
    assert clip == "clip+0.8*[0.0, 1.0]+0.5*[1.0]"
    assert prompt == "a cat,"
    assert [(lora.name, lora.block_weights) for lora in loras] == [
        ("one.safetensors", "NIN"),
        ("chars/two.safetensors", ""),
    ]
    assert stack == [("one.safetensors", 0.8, 0.8), ("chars/two.safetensors", 1.0, 0.5)]
    assert "Preset NIN: 17 numbers" in report
    assert "is chars/two.safetensors: text encoder 0.5, UNet 1" in report


def test_a_prompt_without_tags_changes_nothing(host: FakeHost) -> None:
    assert read("a cat")[:5] == ("model", "clip", "a cat", [], [])
    assert host.calls == []


def test_steps_go_through_the_hosts_schedule(host: FakeHost) -> None:
    model, clip, _, loras, _, report = read("<lora:one:0.8:NIN:step=5-10> x")
    assert model == "model"
    assert clip == "clip+0.8*[0.0, 1.0]@5-10"
    assert loras[0].block_weights == "NIN:step=5-10"
    assert "step 5 to step 9" in report
    applied = NODE_CLASS_MAPPINGS["AtelierApplyLora"]().apply(
        "model", "clip", loras[0], strength_model=0.5, strength_clip=1.0, block_weights=""
    )
    assert applied[1] == "clip+0.4*[0.0, 1.0]@5-10"


def test_an_unknown_word_warns_and_an_unknown_lbw_is_an_error(host: FakeHost) -> None:
    model, *_, report = read("<lora:one:1:NOPE>")
    assert model == "model+1.0*[1.0]"
    assert "'NOPE'" in report
    with pytest.raises(UnknownNameError, match=r"<lora:one:1:lbw=NOPE>: .*NOPE"):
        read("<lora:one:1:lbw=NOPE>")


@pytest.mark.parametrize("name", ["../one", "on", "chars", "/one"])
def test_only_files_of_the_loras_folder(host: FakeHost, name: str) -> None:
    with pytest.raises(AtelierError, match="LoRA in the prompt"):
        read(f"<lora:{name}:1>")


def test_the_seed_decides_random_letters(host: FakeHost) -> None:
    drawn = [read("<lora:one:1:ROUT>", seed=seed)[0] for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_changes_of_files_and_presets_are_seen(host: FakeHost) -> None:
    node = NODE_CLASS_MAPPINGS["AtelierLoraPrompt"]
    states = [node.IS_CHANGED(prompt="<lora:one:1>"), node.IS_CHANGED(prompt="<lora:nope:1>")]
    write_tensors(host.loras_dir() / "one.safetensors", {f"{STEMS[0]}.lora_up.weight": torch.ones(2, 2)}, {})
    states.append(node.IS_CHANGED(prompt="<lora:one:1>"))
    host.user_dir().mkdir()
    (host.user_dir() / "block_elements.txt").write_text("MINE::attn:0", encoding="utf-8")
    states += [node.IS_CHANGED(prompt="<lora:one:1>"), node.IS_CHANGED()]
    assert len(set(states)) == 5


def test_what_is_merged_into_a_base_has_no_steps(host: FakeHost) -> None:
    class Base:
        family, name = "sd15", "base"

        def with_lora(self, lora: Any) -> None:
            raise AssertionError("it was merged")

    lora = read("<lora:one:1:step=2-4>")[3][0]
    with pytest.raises(InputError, match="always on"):
        NODE_CLASS_MAPPINGS["AtelierBaseWithLora"]().merge(Base(), lora)
