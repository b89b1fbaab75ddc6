"""The pack in a real ComfyUI: it loads without a warning and every node is offered."""

import re

from atelier_tests.helpers.comfy_server import PACK_FOLDER, Comfy
from lora_atelier import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS


def test_loads_without_a_warning(comfy: Comfy) -> None:
    log = comfy.log()
    ours = [line for line in log.splitlines() if PACK_FOLDER in line]
    assert any(re.search(r"seconds: .*" + re.escape(PACK_FOLDER), line) for line in ours), ours
    for word in ("IMPORT FAILED", "warn", "error", "Traceback", "Cannot import", "Skip"):
        assert not [line for line in ours if word.lower() in line.lower()], ours
    assert "LoRA Atelier leaves out" not in log


def test_every_node_is_offered(comfy: Comfy) -> None:
    offered = comfy.get("/object_info")
    for node_id in NODE_CLASS_MAPPINGS:
        assert node_id in offered
        assert offered[node_id]["display_name"] == NODE_DISPLAY_NAME_MAPPINGS[node_id]
        assert offered[node_id]["description"]
        assert offered[node_id]["category"].startswith("Atelier")


def test_a_wrong_value_is_refused_before_anything_runs(comfy: Comfy) -> None:
    answer = comfy.post(
        "/prompt",
        {
            "prompt": {
                "1": {"class_type": "AtelierOpenBase", "inputs": {"base_name": "nothing.safetensors", "dtype": "fp32"}},
                "2": {"class_type": "AtelierBaseToModel", "inputs": {"base": ["1", 0]}},
                "3": {"class_type": "VAEDecode", "inputs": {"samples": ["4", 0], "vae": ["2", 2]}},
                "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
                "5": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
            }
        },
    )
    details = answer["node_errors"]["1"]["errors"][0]
    assert "nothing.safetensors" in str(details)
    assert "pico (built in)" in str(details)
