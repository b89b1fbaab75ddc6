"""The faders beside the block-weight text, in the page of a real browser."""

from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.browser import SCREENSHOTS
from atelier_tests.helpers.comfy_server import Comfy
from lora_atelier.core.tensors import write_tensors

NIN = "1,0,0,0,0,0,0,0,1,1,1,1,1,1,1,1,1"
_MAKE = """() => {
  const made = LiteGraph.createNode("AtelierOpenLora");
  made.pos = [80, 80];
  app.graph.add(made);
  const second = LiteGraph.createNode("AtelierApplyLora");
  second.pos = [600, 80];
  app.graph.add(second);
  app.canvas.ds.scale = 1.3;
  app.canvas.ds.offset = [0, 40];
  app.canvas.setDirty(true, true);
  return [made.id, second.id];
}"""
_STATE = """id => {
  const node = app.graph.getNodeById(id);
  const sliders = node.atelierSliders;
  return {
    text: node.widgets.find(w => w.name === "block_weights").value,
    values: sliders.faders.map(f => Number(f.input.value)),
    form: sliders.length,
    preset: sliders.presetMenu.value,
    note: sliders.note.textContent,
    dim: sliders.bank.style.opacity,
  };
}"""


@pytest.fixture(scope="module", autouse=True)
def loras(comfy: Comfy) -> None:
    folder = comfy.base / "models/loras"
    stem = "lora_unet_mid_block_attentions_0_proj_in"
    tensors = {f"{stem}.lora_{part}.weight": torch.ones(2, 2) for part in ("down", "up")}
    write_tensors(folder / "a-first.safetensors", tensors, {"ss_base_model_version": "sd_v1"})
    write_tensors(folder / "b-xl.safetensors", tensors, {"ss_base_model_version": "sdxl_base_v1-0"})


@pytest.fixture
def nodes(page: Any) -> Any:
    page.keyboard.press("Escape")
    page.evaluate("() => app.graph.clear()")
    ids = page.evaluate(_MAKE)
    page.wait_for_timeout(1500)
    return ids


def state(page: Any, node_id: int) -> dict[str, Any]:
    found: dict[str, Any] = page.evaluate(_STATE, node_id)
    return found


def set_widget(page: Any, node_id: int, name: str, value: str) -> None:
    page.evaluate(
        """([id, name, value]) => {
          const widget = app.graph.getNodeById(id).widgets.find(w => w.name === name);
          widget.value = value;
          widget.callback?.(value);
        }""",
        [node_id, name, value],
    )


def move(page: Any, node_id: int, index: int, value: float) -> None:
    page.evaluate(
        """([id, index, value]) => {
          const fader = app.graph.getNodeById(id).atelierSliders.faders[index].input;
          fader.value = value;
          fader.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        [node_id, index, value],
    )


def keep(page: Any, name: str, folder: Path) -> None:
    page.screenshot(path=str(Path(SCREENSHOTS or folder) / f"block-sliders-{name}.png"))


def test_faders_and_text_follow_each_other(page: Any, nodes: list[int], tmp_path: Path) -> None:
    first, second = nodes
    set_widget(page, first, "lora_name", "a-first.safetensors")
    page.wait_for_timeout(1500)
    for node_id in nodes:
        assert state(page, node_id)["values"] == [1.0] * 17
        assert state(page, node_id)["text"] == ""

    move(page, first, 7, 0.25)
    assert state(page, first)["text"] == ",".join(["1"] * 7 + ["0.25"] + ["1"] * 9)
    assert state(page, second)["text"] == ""
    set_widget(page, first, "block_weights", "NIN:step=5-10")
    shown = state(page, first)
    assert (shown["preset"], shown["note"]) == ("NIN", "step=5-10")
    assert shown["values"] == [float(number) for number in NIN.split(",")]
    move(page, first, 7, 0.5)
    assert state(page, first)["text"] == NIN.replace("0,1,1,1,1,1,1,1,1,1", "0.5,1,1,1,1,1,1,1,1,1") + ":step=5-10"

    set_widget(page, first, "block_weights", ",".join(["0.5"] * 20))
    assert (state(page, first)["form"], len(state(page, first)["values"])) == ("20", 20)
    set_widget(page, first, "block_weights", "NIN MID=0.5")
    assert "by hand" in state(page, first)["note"]
    assert state(page, first)["text"] == "NIN MID=0.5"
    set_widget(page, first, "block_weights", ",".join(["-0.5"] * 17))
    assert state(page, first)["values"] == [-0.5] * 17


def test_the_preset_menu_writes_the_name(page: Any, nodes: list[int]) -> None:
    page.evaluate(
        """id => {
          const menu = app.graph.getNodeById(id).atelierSliders.presetMenu;
          menu.value = "OUTALL";
          menu.dispatchEvent(new Event("change"));
        }""",
        nodes[1],
    )
    assert state(page, nodes[1])["text"] == "OUTALL"
    assert state(page, nodes[1])["values"][1:8] == [0.0] * 7


def test_the_file_chooses_the_form(page: Any, nodes: list[int], tmp_path: Path) -> None:
    set_widget(page, nodes[0], "lora_name", "b-xl.safetensors")
    page.wait_for_function("id => app.graph.getNodeById(id).atelierSliders.length === '12'", arg=nodes[0])
    assert len(state(page, nodes[0])["values"]) == 12


def test_only_the_text_is_saved(page: Any, nodes: list[int], tmp_path: Path) -> None:
    first, second = nodes
    set_widget(page, first, "lora_name", "a-first.safetensors")
    move(page, first, 0, 0.5)
    saved = page.evaluate("() => app.graph.serialize()")
    (of_first,) = [node["widgets_values"] for node in saved["nodes"] if node["id"] == first]
    assert of_first == ["a-first.safetensors", 1, 1, "0.5," + ",".join(["1"] * 16)]
    prompt = page.evaluate("async () => (await app.graphToPrompt()).output")
    assert set(prompt[str(first)]["inputs"]) == {"lora_name", "strength_model", "strength_clip", "block_weights"}
    page.evaluate("graph => app.loadGraphData(graph)", saved)
    page.wait_for_timeout(1500)
    assert state(page, first)["values"][0] == 0.5
    errors = [text for text in page.messages if "atelier" in text.lower() and text.startswith("error")]
    assert not errors


@pytest.mark.parametrize("palette", ["dark", "light"])
def test_how_it_looks(page: Any, nodes: list[int], tmp_path: Path, palette: str) -> None:
    page.evaluate("async name => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
    set_widget(page, nodes[0], "lora_name", "a-first.safetensors")
    set_widget(page, nodes[0], "block_weights", "1,0.8,0.6,0.4,0.2,0,0,0.5,1,1,1,0.7,0.5,0.3,1,1,1:step=3-12")
    set_widget(page, nodes[1], "block_weights", "LC-NCNF")
    page.evaluate("id => app.graph.getNodeById(id).atelierSliders.show('26')", nodes[1])
    page.evaluate("() => app.canvas.setDirty(true, true)")
    page.wait_for_timeout(2500)
    keep(page, palette, tmp_path)
    box = page.evaluate("id => app.graph.getNodeById(id).atelierSliders.bank.getBoundingClientRect().height", nodes[0])
    assert box > 60
