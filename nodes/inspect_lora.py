"""What a LoRA file is, and how it goes with another."""

from __future__ import annotations

import json
from typing import Any

from ..merger.lora.handle import Lora
from ..merger.lora.inspection import inspect_lora
from ..merger.lora.inspection_report import as_json, report
from ..merger.lora.modules import LoraFile
from ..merger.lora.overlap import overlap, overlap_json, overlap_report
from ._images import show_once, to_image
from .host import get_host
from .widgets import ROOT_CATEGORY, socket


class InspectLora:
    """Looks into a LoRA file."""

    ID = "AtelierInspectLora"
    TITLE = "Inspect LoRA (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Tells what a LoRA file is: algorithm, ranks, alphas, blocks and their energy, trigger words, what it says of "
        "its training, and modules that are dead or broken. With a second LoRA: whether the two disturb each other."
    )
    SEARCH_ALIASES = ["lora info", "lora metadata", "trigger words", "lora doctor", "compare loras"]
    RETURN_TYPES = ("STRING", "IMAGE", "STRING")
    RETURN_NAMES = ("report", "picture", "json")
    OUTPUT_TOOLTIPS = (
        "What was found, in lines.",
        "Energy and ranks by block; with a second LoRA, how far the two do the same.",
        "Everything as JSON, module by module.",
    )
    FUNCTION = "inspect"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {"lora": socket("ATELIER_LORA", "The LoRA to look into.")},
            "optional": {"other": socket("ATELIER_LORA", "Another LoRA to compare it with.")},
        }

    def inspect(self, lora: Lora, other: Lora | None = None) -> dict[str, Any]:
        """Measure, draw and tell."""
        from ._lora_plots import inspection_plot

        progress = get_host().progress()
        with LoraFile.of(lora) as file:
            found = inspect_lora(file, progress=progress)
            said, data, rows = report(found), as_json(found), None
            if other is not None:
                with LoraFile.of(other) as second:
                    rows = overlap(file, second, progress=progress)
                said = f"{said}\n{overlap_report(rows, (lora.name, other.name))}"
                data["overlap"] = overlap_json(rows)
        picture = inspection_plot(found, rows, other.name if other is not None else "")
        shown = {"images": [show_once(picture, "atelier-lora")], "text": [said]}
        return {"ui": shown, "result": (said, to_image([picture]), json.dumps(data, ensure_ascii=False))}


NODES = (InspectLora,)
