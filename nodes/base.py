"""The base model: opened as a handle for training, and turned into MODEL, CLIP and VAE for generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..core.errors import AtelierError, InputError, UnknownNameError
from ..families._base import BY_FILE, SWITCHES, Base, MergedLora, open_base
from ..families._spec import PREDICTIONS
from ..merger.lora.handle import Lora
from ._changes import named_file_state
from .host import OWN_VAE, PICO_NAME, PICO_XL_NAME, get_host
from .lora import explained
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
                    "A .safetensors checkpoint of SD 1.x, SD 2.x or SDXL from the checkpoints folder, or one of the "
                    f"tiny models that come with the pack: '{PICO_NAME}' and '{PICO_XL_NAME}'.",
                ),
                "dtype": combo(
                    DTYPES,
                    "Number format for drawing with the command line: fp16 halves the memory on a GPU, all else is "
                    "computed in fp32. ComfyUI chooses its own format, and training goes by its own 'precision'.",
                    default="fp32",
                ),
            },
            "optional": {
                "vae": combo(
                    get_host().vae_names(),
                    "Whose VAE encodes the pictures for training and decodes what is drawn; a file of the vae folder "
                    "helps where the checkpoint's own is missing or damaged.",
                    default=OWN_VAE,
                ),
                "prediction": combo(
                    [BY_FILE, *PREDICTIONS],
                    "What the model answers. Most checkpoints that predict v say so; choose it by hand for one that "
                    "does not, and train it with the objective for v.",
                    default=BY_FILE,
                ),
                "zero_terminal_snr": combo(
                    list(SWITCHES),
                    "Whether the last time step is pure noise, as some models that predict v were trained. Most of "
                    "them say so in the file.",
                    default=BY_FILE,
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, base_name: str | None = None, vae: str | None = None, **_: Any) -> str:
        """A file written anew is seen."""
        state = named_file_state(get_host().checkpoint_path, base_name)
        return state if vae in (None, "", OWN_VAE) else f"{state} {named_file_state(get_host().vae_path, vae)}"

    @classmethod
    def VALIDATE_INPUTS(cls, base_name: str | None = None, vae: str | None = None) -> bool | str:
        """A name this machine lacks is answered with the nearest names instead of a bare refusal."""
        host = get_host()
        if base_name is not None:
            refusal = _refusal(host.checkpoint_path, base_name, where="; its file belongs into models/checkpoints")
            if refusal:
                return refusal
        return True if vae is None else _refusal(host.vae_path, vae) or True

    def open(
        self,
        base_name: str,
        dtype: str,
        vae: str = OWN_VAE,
        prediction: str = BY_FILE,
        zero_terminal_snr: str = BY_FILE,
    ) -> tuple[Base]:
        """Make the handle."""
        host = get_host()
        vae_path = host.vae_path(vae)
        base = open_base(
            host.checkpoint_path(base_name),
            name=base_name,
            dtype=dtype,
            vae_path=vae_path,
            vae_name="" if vae_path is None else vae,
            prediction=prediction,
            zero_terminal_snr=zero_terminal_snr,
        )
        return (base,)


def _refusal(path_of: Callable[[str], Any], name: str, where: str = "") -> str:
    try:
        path_of(name)
    except UnknownNameError as refusal:
        return f"{refusal}{where}"
    except AtelierError as refusal:
        return str(refusal)
    return ""


class BaseWithLora:
    """Merges a LoRA into the base before anything is done with it."""

    ID = "AtelierBaseWithLora"
    TITLE = "Base with LoRA Merged In (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Model"
    DESCRIPTION = (
        "Makes a LoRA part of the base model: training starts from the changed weights, and what is trained does not "
        "contain it. Several can be put one after another. No file is written."
    )
    SEARCH_ALIASES = ["merge lora", "base weights", "relora", "bake lora"]
    RETURN_TYPES = ("ATELIER_BASE",)
    RETURN_NAMES = ("base",)
    OUTPUT_TOOLTIPS = ("The same base model with the LoRA merged in first.",)
    FUNCTION = "merge"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "base": socket("ATELIER_BASE", "The base model."),
                "lora": socket("ATELIER_LORA", "The LoRA to merge in, with its strengths and block weights."),
            }
        }

    def merge(self, base: Base, lora: Lora) -> tuple[Base]:
        """Make the handle."""
        return (base.with_lora(merged_lora(base, lora)),)


def merged_lora(base: Base, lora: Lora) -> MergedLora:
    """A LoRA as a part of a base, with the owner's presets.

    Raises:
        InputError: it is of another family, or on at some sampler steps only.
    """
    if lora.family != base.family:
        raise InputError(
            f"{lora.name} is a LoRA for {lora.family} and {base.name} is {base.family}: merge in a LoRA that was "
            "trained for this kind of base."
        )
    weights = explained(lora)
    if weights.scheduled:
        raise InputError(
            f"The block weights of {lora.name} say at which sampler steps it is on, but what is merged into a base "
            "is always on: take start, stop and step out of them."
        )
    other = sorted((stem, factor) for stem, factor in weights.factors.items() if factor != 1.0)
    return MergedLora(
        path=lora.path,
        name=lora.name,
        strength_model=lora.strength_model,
        strength_clip=lora.strength_clip,
        stem_strengths=tuple(other),
    )


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


NODES = (OpenBase, BaseToModel, BaseWithLora)
