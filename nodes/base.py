"""The base model: opened as a handle for training, and turned into MODEL, CLIP and VAE for generation."""

from __future__ import annotations

from typing import Any

from ..families._base import Base, open_base
from ._changes import named_file_state
from .host import PICO_NAME, get_host
from .widgets import ROOT_CATEGORY, combo, socket

DTYPES = ["fp32", "fp16", "bf16"]


class OpenBase:
    """Chooses the base model."""

    ID = "AtelierOpenBase"
    TITLE = "Open Base Model (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Model"
    DESCRIPTION = (
        "Chooses the model a LoRA is trained on. Nothing is loaded yet: training and 'Base to MODEL CLIP VAE' load it "
        "when they run."
    )
    SEARCH_ALIASES = ["checkpoint", "load model", "base model", "pico"]
    RETURN_TYPES = ("ATELIER_BASE",)
    RETURN_NAMES = ("base",)
    OUTPUT_TOOLTIPS = ("The base model as a handle: which file, which family, which number format.",)
    FUNCTION = "open"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        names = get_host().checkpoint_names()
        return {
            "required": {
                "base_name": combo(
                    names,
                    f"A .safetensors checkpoint of the SD 1.x family from the checkpoints folder, or '{PICO_NAME}', a "
                    "tiny model that comes with the pack.",
                ),
                "dtype": combo(
                    DTYPES,
                    "Number format for drawing with the command line: fp16 halves the memory on a GPU, all else is "
                    "computed in fp32. ComfyUI chooses its own format, and training goes by its own 'precision'.",
                    default="fp32",
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, base_name: str | None = None, **_: Any) -> str:
        """A file written anew is seen."""
        return named_file_state(get_host().checkpoint_path, base_name)

    @classmethod
    def VALIDATE_INPUTS(cls, base_name: str | None = None) -> bool | str:
        """A name this machine lacks is answered with the nearest names instead of a bare refusal."""
        if base_name is None:
            return True
        return _refusal(base_name) or True

    def open(self, base_name: str, dtype: str) -> tuple[Base]:
        """Make the handle."""
        return (open_base(get_host().checkpoint_path(base_name), name=base_name, dtype=dtype),)


def _refusal(base_name: str) -> str:
    from ..core.errors import AtelierError

    try:
        get_host().checkpoint_path(base_name)
    except AtelierError as refusal:
        return str(refusal)
    return ""


class BaseToModel:
    """Loads the base for generation."""

    ID = "AtelierBaseToModel"
    TITLE = "Base to MODEL CLIP VAE (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Model"
    DESCRIPTION = (
        "Loads the base model for drawing, the same as the checkpoint loader does; any node can use the outputs."
    )
    SEARCH_ALIASES = ["load checkpoint", "model", "clip", "vae"]
    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    RETURN_NAMES = ("model", "clip", "vae")
    OUTPUT_TOOLTIPS = (
        "The diffusion model, for samplers, LoRA nodes and grids.",
        "The text encoder, for prompts.",
        "The autoencoder, between pictures and latents.",
    )
    FUNCTION = "load"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"base": socket("ATELIER_BASE", "The base model to load.")}}

    def load(self, base: Base) -> tuple[Any, Any, Any]:
        """Load it through the host."""
        return get_host().load_base(base)


NODES = (OpenBase, BaseToModel)
