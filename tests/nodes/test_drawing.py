"""The grid node: what is done once, what lies on disk, what comes back."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.tensors import write_tensors
from lora_atelier.evaluator.axes._spec import AxisValue, AxisValues
from lora_atelier.evaluator.cells import ADD_LORAS
from lora_atelier.merger.lora.handle import explain_strengths, open_lora
from lora_atelier.nodes import _draw
from lora_atelier.nodes.host import set_host

STEM = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
GRAPH = {
    "1": {"class_type": "AtelierOpenBase", "inputs": {"base_name": "some.safetensors"}},
    "9": {"class_type": "AtelierXYGrid", "inputs": {"model": ["1", 0]}},
}


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    yield host
    set_host(None)


def write_lora(host: FakeHost, name: str, value: float = 1.0) -> Any:
    tensors = {
        f"{STEM}.lora_down.weight": torch.full((2, 320), value),
        f"{STEM}.lora_up.weight": torch.ones(320, 2),
        f"{STEM}.alpha": torch.tensor(2.0),
    }
    write_tensors(host.loras_dir() / name, tensors, {})
    return open_lora(host.loras_dir() / name, name)


def axis(name: str, *values: tuple[str, dict[str, Any]]) -> AxisValues:
    return AxisValues(name=name, values=tuple(AxisValue(label=label, changes=changes) for label, changes in values))


def draw(host: FakeHost, **changes: Any) -> dict[str, Any]:
    node = NODE_CLASS_MAPPINGS["AtelierXYGrid"]()
    settings: dict[str, Any] = {
        "model": "model",
        "clip": "clip",
        "vae": "vae",
        "prompt": "a tree",
        "negative": "",
        "seed": 4,
        "steps": 3,
        "cfg": 6.0,
        "sampler": "euler",
        "scheduler": "normal",
        "width_px": 64,
        "height_px": 48,
        "graph": GRAPH,
        "extra_pnginfo": {"workflow": {"nodes": []}},
        "node_id": "9",
    }
    result: dict[str, Any] = node.draw(**{**settings, **changes})
    return result


def loras_by_prompts(host: FakeHost) -> dict[str, AxisValues]:
    lora = write_lora(host, "one.safetensors")
    return {
        "x": axis("LoRA", ("none", {ADD_LORAS: ()}), ("one", {ADD_LORAS: (lora,)})),
        "y": axis("Prompt", ("a", {"prompt": "a"}), ("b", {"prompt": "b"}), ("c", {"prompt": "c"})),
    }


def test_nothing_is_done_twice(host: FakeHost) -> None:
    result = draw(host, **loras_by_prompts(host))
    assert host.calls.count("apply_lora") == 1
    assert host.calls.count("encode_prompt") == 2 * (3 + 1)
    assert host.calls.count("sample") == 6
    sheet, ref = result["result"]
    assert sheet.shape[0] == 1
    assert sheet.shape[3] == 3
    assert result["ui"]["images"][0]["type"] == "output"
    assert (
        host.output_dir() / result["ui"]["images"][0]["subfolder"] / result["ui"]["images"][0]["filename"]
    ).is_file()
    assert len(json.loads((ref.folder / "cells.json").read_text(encoding="utf-8"))["cells"]) == 6
    host.calls.clear()
    draw(host, **loras_by_prompts(host))
    assert host.calls == []


def test_another_model_is_another_grid(host: FakeHost) -> None:
    axes = loras_by_prompts(host)
    first = draw(host, **axes)["result"][1]
    other = draw(host, model="another model", **axes)["result"][1]
    changed = json.loads(json.dumps(GRAPH).replace("some.safetensors", "other.safetensors"))
    third = draw(host, graph=changed, **axes)["result"][1]
    assert len({first.key, other.key, third.key}) == 3
    assert host.calls.count("sample") == 18


def test_a_lora_on_every_cell(host: FakeHost) -> None:
    lora = write_lora(host, "one.safetensors")
    strengths = axis("LoRA strength", ("0.5", {"lora_strength": 0.5}), ("1", {"lora_strength": 1.0}))
    draw(host, lora=lora, x=strengths)
    assert host.calls.count("apply_lora") == 2


def test_block_weights_that_do_not_fit_cost_nothing(host: FakeHost) -> None:
    lora = write_lora(host, "one.safetensors")
    blocks = axis("Blocks", ("ALL", {"lora_block_weights": "ALL"}), ("x", {"lora_block_weights": "NO_SUCH_PRESET"}))
    with pytest.raises(AtelierError, match="NO_SUCH_PRESET"):
        draw(host, lora=lora, x=blocks)
    assert host.calls == []


def test_a_lora_is_looked_into_once_however_many_cells_it_has(host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []

    def counted(lora: Any, **options: Any) -> Any:
        looked.append(lora)
        return explain_strengths(lora, **options)

    monkeypatch.setattr(_draw, "explain_strengths", counted)
    draw(host, **loras_by_prompts(host))
    assert len(looked) == 1


def test_pictures_carry_the_graph_and_the_parameters_unless_switched_off(host: FakeHost) -> None:
    (host.base / "checkpoints" / "some.safetensors").write_bytes(b"weights")
    ref = draw(host)["result"][1]
    with Image.open(next((ref.folder / "cells").glob("*.png"))) as cell:
        assert json.loads(cell.text["prompt"]) == GRAPH
        assert json.loads(cell.text["workflow"]) == {"nodes": []}
        assert cell.text["parameters"].startswith("a tree")
        assert "Model: some" in cell.text["parameters"]
        assert f"Model hash: {hashlib.sha256(b'weights').hexdigest()[:10]}" in cell.text["parameters"]
    host.without_metadata = True
    ref = draw(host, prompt="another tree")["result"][1]
    with Image.open(next((ref.folder / "cells").glob("*.png"))) as cell:
        assert not cell.text


def test_works_without_graph_and_page(host: FakeHost) -> None:
    assert draw(host, graph=None, extra_pnginfo=None, node_id=None)["result"][1].folder.is_dir()
