"""The pack in a real ComfyUI: it loads without a warning and every node is offered."""

import re

from atelier_tests.helpers.comfy_server import PACK_FOLDER, Comfy
from lora_atelier import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

BAD = re.compile(r"IMPORT FAILED|Traceback|Cannot import|leaves out|warn|error|exception|deprecat|skip", re.I)
OF_COMFYUI = re.compile("^WARNING: You need pytorch")
"""Lines of ComfyUI itself that its version and the machine decide."""


def complaints(log: str) -> list[str]:
    """Lines of a start that report a fault, whoever is named in them; later requests' lines are left out."""
    start = log.split("To see the GUI go to")[0].splitlines()
    return [line for line in start if BAD.search(line) and not OF_COMFYUI.match(line)]


def test_loads_without_a_warning(comfy: Comfy) -> None:
    log = comfy.log()
    assert re.search(r"seconds: .*" + re.escape(PACK_FOLDER), log), log
    assert complaints(log) == []


def test_a_fault_without_the_packs_name_would_be_seen() -> None:
    for line in ("Traceback (most recent call last):", "UserWarning: old", "LoRA Atelier leaves out train.py"):
        assert complaints(f"Starting server\n{line}\nTo see the GUI go to: http://x\nerror later") == [line]


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
