"""The one door for old pickle checkpoints: into a safetensors file."""

from __future__ import annotations

from typing import Any

from ..families._convert import convert_checkpoint
from .host import get_host
from .widgets import ROOT_CATEGORY, text

KINDS = ("models", "input", "output", "extra")


class ConvertCheckpoint:
    """Writes an old checkpoint as safetensors."""

    ID = "AtelierConvertCheckpoint"
    TITLE = "Convert Checkpoint (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Model"
    DESCRIPTION = (
        "Writes an old .ckpt or .pt checkpoint as a .safetensors file beside it, which every other node can open. "
        "Nothing in the old file is executed and no other file is replaced; needs torch 2.10 or newer."
    )
    SEARCH_ALIASES = ["ckpt to safetensors", "pickle", "convert"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("name",)
    OUTPUT_TOOLTIPS = ("Name of the new file below its folder, as the node 'Open Base Model' lists it.",)
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
        """Convert, unless that was done before."""
        host = get_host()
        roots = host.roots()
        source = roots.resolve(file, KINDS, what="checkpoint file")
        target = convert_checkpoint(source, source.with_suffix(".safetensors"), host.progress())
        folders = [folder.resolve() for kind in KINDS for folder in roots.folders.get(kind, ())]
        name = next(target.relative_to(folder).as_posix() for folder in folders if target.is_relative_to(folder))
        return {"ui": {"text": [name]}, "result": (name,)}


NODES = (ConvertCheckpoint,)
