"""The one door for old pickle checkpoints: into a safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..families._convert import convert_checkpoint
from .host import get_host
from .widgets import ROOT_CATEGORY, text


class ConvertCheckpoint:
    """Writes an old checkpoint as safetensors."""

    ID = "AtelierConvertCheckpoint"
    TITLE = "Convert Checkpoint (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Model"
    DESCRIPTION = (
        "Writes an old .ckpt or .pt checkpoint as a .safetensors file beside it, which every other node can open. "
        "Nothing in the old file is executed; needs torch 2.10 or newer."
    )
    SEARCH_ALIASES = ["ckpt to safetensors", "pickle", "convert"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("name",)
    OUTPUT_TOOLTIPS = ("Path of the new file.",)
    FUNCTION = "convert"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "file": text("Name of a .ckpt or .pt file below the models, input or output folder, e.g. old.ckpt."),
            }
        }

    def convert(self, file: str) -> dict[str, Any]:
        """Convert, keeping a file that is already there."""
        host = get_host()
        source = host.roots().resolve(file, ("models", "input", "output", "extra"), what="checkpoint file")
        target = source.with_suffix(".safetensors")
        written = convert_checkpoint(source, target, host.progress())
        shown = str(written if isinstance(written, Path) else target)
        return {"ui": {"text": [shown]}, "result": (shown,)}


NODES = (ConvertCheckpoint,)
