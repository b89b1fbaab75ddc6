"""The LoRA tools in a real ComfyUI: the shipped workflow, and files that its own loaders read as ours do."""

import json
from pathlib import Path
from typing import Any

from atelier_tests.helpers.browser import open_template, screenshot
from atelier_tests.helpers.comfy_server import PACK, PACK_FOLDER, Comfy

NAME = "lora-surgery"


def api_form() -> dict[str, Any]:
    form: dict[str, Any] = json.loads((PACK / f"api_workflows/{NAME}.json").read_text(encoding="utf-8"))
    return form


def shortened(graph: dict[str, Any]) -> dict[str, Any]:
    """A training of a few steps and pictures of two."""
    changes = {
        "AtelierTrainLora": {"steps": 6, "batch_size": 2},
        "AtelierOptimizerAdamw": {"warmup_steps": 0},
        "AtelierXYGrid": {"steps": 2},
    }
    for node in graph.values():
        node["inputs"] |= changes.get(node["class_type"], {})
    return graph


def said_by(graph: dict[str, Any], outputs: dict[str, Any]) -> dict[str, str]:
    """The texts under the nodes, by title."""
    return {graph[node_id]["_meta"]["title"]: "\n".join(shown.get("text", ())) for node_id, shown in outputs.items()}


def test_the_workflow_runs_every_tool(comfy: Comfy) -> None:
    graph = shortened(api_form())
    outputs = comfy.run(graph, timeout_s=1200)["outputs"]
    said = said_by(graph, outputs)
    assert "Energy by block" in said["Inspect the trained LoRA"]
    assert "Relative error of the cut" in said["Resize to rank 4"]
    assert "Saved as atelier/surgery" in said["Into a checkpoint, saved"]
    assert "layers differ" in said["Extract it again"]
    assert "mean cosine" in said["Compare with the one that went in"]
    assert "layers are changed by all 2 LoRAs" in said["Half and half"]
    pictures = [image for shown in outputs.values() for image in shown.get("images", ())]
    assert len(pictures) >= 4
    assert all(comfy.image(image)[:4] == b"\x89PNG" for image in pictures)


def test_the_page_opens_it(comfy: Comfy, page: Any, tmp_path: Path) -> None:
    prompt = open_template(comfy, page, PACK_FOLDER, NAME)
    wanted = {node_id: node["inputs"] for node_id, node in api_form().items()}
    assert {node_id: node["inputs"] for node_id, node in prompt.items()} == wanted
    screenshot(page, NAME, tmp_path)


def test_a_live_merge_a_saved_one_and_the_core_loader_draw_the_same(comfy: Comfy) -> None:
    """The trained LoRA put on by 'Apply LoRA', merged live, and merged into a file: one picture."""
    graph = shortened(api_form())
    by_title = {node["_meta"]["title"]: node_id for node_id, node in graph.items()}
    train, baked = by_title["Train LoRA (Atelier)"], by_title["Into a checkpoint, saved"]
    base = next(node_id for node_id, node in graph.items() if node["class_type"] == "AtelierOpenBase")
    kept = {train, baked, base, *_ancestors(graph, train)}
    graph = {node_id: graph[node_id] for node_id in kept}
    live = {**graph[baked], "inputs": {**graph[baked]["inputs"], "dry_run": True}}
    graph["live"] = live
    graph["plain"] = {"class_type": "AtelierBaseToModel", "inputs": {"base": [base, 0]}}
    graph["applied"] = {
        "class_type": "AtelierApplyLora",
        "inputs": {"model": ["plain", 0], "clip": ["plain", 1], "lora": [train, 1], "strength_model": 1.0,
                   "strength_clip": 1.0, "block_weights": ""},
    }  # fmt: skip
    graph["live_model"] = {"class_type": "AtelierBaseToModel", "inputs": {"base": ["live", 0]}}
    graph["saved_model"] = {"class_type": "AtelierBaseToModel", "inputs": {"base": [baked, 0]}}
    for name, model in (("applied", "applied"), ("live", "live_model"), ("saved", "saved_model")):
        vae = "plain" if name == "applied" else model
        graph |= _drawing(name, [model, 0], [model, 1], [vae, 2])
    outputs = comfy.run(graph, timeout_s=1200)["outputs"]
    pictures = [comfy.image(outputs[f"{name}_show"]["images"][0]) for name in ("applied", "live", "saved")]
    assert pictures[0] == pictures[1] == pictures[2]


def _ancestors(graph: dict[str, Any], node_id: str) -> set[str]:
    found: set[str] = set()
    for value in graph[node_id]["inputs"].values():
        if isinstance(value, list):
            found |= {value[0], *_ancestors(graph, value[0])}
    return found


def _drawing(name: str, model: list[Any], clip: list[Any], vae: list[Any]) -> dict[str, Any]:
    return {
        f"{name}_text": {"class_type": "CLIPTextEncode", "inputs": {"text": "lumo kest, red", "clip": clip}},
        f"{name}_empty": {"class_type": "EmptyLatentImage", "inputs": {"width": 96, "height": 96, "batch_size": 1}},
        f"{name}_sample": {
            "class_type": "KSampler",
            "inputs": {
                "model": model, "positive": [f"{name}_text", 0], "negative": [f"{name}_text", 0],
                "latent_image": [f"{name}_empty", 0], "seed": 1, "steps": 4, "cfg": 1.0, "sampler_name": "euler",
                "scheduler": "normal", "denoise": 1.0,
            },
        },
        f"{name}_decode": {"class_type": "VAEDecode", "inputs": {"samples": [f"{name}_sample", 0], "vae": vae}},
        f"{name}_show": {"class_type": "PreviewImage", "inputs": {"images": [f"{name}_decode", 0]}},
    }  # fmt: skip
