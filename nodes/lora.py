"""LoRA files: opened as a handle, and applied with block weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..core.errors import AtelierError
from ..core.tensors import read_tensors
from ..merger.lora.blocks import ResolvedWeights
from ..merger.lora.dialects import parse_weights
from ..merger.lora.elements import USER_ELEMENTS_NAME, load_elements
from ..merger.lora.forms import vector_blocks
from ..merger.lora.handle import Lora, explain_strengths, open_lora
from ..merger.lora.presets import USER_PRESETS_NAME, Presets, load_presets
from ._changes import file_state, named_file_state
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, number, socket, text

if TYPE_CHECKING:
    import torch

BLOCKS_TOOLTIP = (
    "How strong each block of the model is: a preset name such as {names} ..., or 17 or 26 numbers (SDXL: 12 or 20) "
    "separated by commas, blocks by name on top (NIN MID=0.5), lbwe= rules and step=5-10 behind ':'. Empty or ALL is "
    "the same as an ordinary LoRA loader."
)


def presets() -> Presets:
    """The shipped presets and those of the owner's ``block_presets.txt``."""
    return load_presets(get_host().user_dir())


def presets_state() -> str:
    """Changes when the owner's presets or elemental sets do."""
    folder = get_host().user_dir()
    return f"{file_state(folder / USER_PRESETS_NAME)} {file_state(folder / USER_ELEMENTS_NAME)}"


def explained(lora: Lora) -> ResolvedWeights:
    """The block weights of a LoRA's file, with the owner's presets and elemental sets."""
    return explain_strengths(lora, presets=presets(), elements=load_elements(get_host().user_dir()))


def block_weights_field(*, sliders: bool = False) -> tuple[str, dict[str, Any]]:
    """The text field for block weights, with some preset names in its tooltip.

    Args:
        sliders: Tell the page which blocks and presets there are, for its faders beside the text.
    """
    told = {"atelier_blocks": _blocks_for_page()} if sliders else {}
    return text(BLOCKS_TOOLTIP.format(names=", ".join(list(load_presets())[:6])), **told)


def _blocks_for_page() -> dict[str, Any]:
    """The blocks of the four usual vectors and the numbers of every preset that has one of them.

    The list of all nodes asks for this, so a mistake in the owner's presets is handed on in words and not raised.
    """
    problem = ""
    try:
        known: Presets = presets()
    except AtelierError as refusal:
        known, problem = load_presets(), str(refusal)
    forms = {str(length): list(vector_blocks(length)) for length in (17, 26, 12, 20)}
    numbers = {
        name: {
            str(length): ",".join(slot if isinstance(slot, str) else f"{slot:g}" for slot in vector)
            for length, vector in preset.vectors.items()
            if str(length) in forms
        }
        for name, preset in known.items()
    }
    return {"forms": forms, "presets": {name: rows for name, rows in numbers.items() if rows}, "problem": problem}


def strength_field(what: str) -> tuple[str, dict[str, Any]]:
    """A field for a strength, as in the core loader."""
    return number("FLOAT", 1.0, -100.0, 100.0, 0.05, f"How strongly the {what} is changed; 0 is off, 1 is as trained.")


class OpenLora:
    """Chooses a LoRA file."""

    ID = "AtelierOpenLora"
    TITLE = "Open LoRA (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = "Chooses a LoRA file with its strengths and block weights; 'Apply LoRA' and grids use it."
    SEARCH_ALIASES = ["load lora", "lora loader", "block weight", "lbw"]
    RETURN_TYPES = ("ATELIER_LORA", "STRING")
    RETURN_NAMES = ("lora", "report")
    OUTPUT_TOOLTIPS = (
        "The LoRA as a handle: which file, how strong, which block weights.",
        "How the block weights were read for this file.",
    )
    FUNCTION = "open"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "lora_name": combo(get_host().lora_names(), "A LoRA file from the loras folder."),
                "strength_model": strength_field("UNet"),
                "strength_clip": strength_field("text encoder"),
                "block_weights": block_weights_field(sliders=True),
            }
        }

    @classmethod
    def IS_CHANGED(cls, lora_name: str | None = None, **_: Any) -> str:
        """A file written anew is seen, and so are the owner's presets."""
        return f"{named_file_state(get_host().lora_path, lora_name)} {presets_state()}"

    def open(self, lora_name: str, strength_model: float, strength_clip: float, block_weights: str) -> tuple[Lora, str]:
        """Make the handle."""
        lora = open_lora(
            get_host().lora_path(lora_name),
            lora_name,
            strength_model=strength_model,
            strength_clip=strength_clip,
            block_weights=block_weights,
        )
        # Block weights that do not fit the file are refused here, before anything is loaded.
        if cell := parse_weights(lora.block_weights).cell:
            return lora, f"{cell}: the block weights come from a grid's block weight axis."
        return lora, "\n".join(explained(lora).report)


def apply_loras(model: Any, clip: Any, loras: Sequence[Lora]) -> tuple[Any, Any]:
    """Patched copies of model and clip, the LoRAs put on in order."""
    for lora in loras:
        model, clip = put_on(model, clip, lora, explained(lora), read_tensors(lora.path))
    return model, clip


def put_on(
    model: Any, clip: Any, lora: Lora, weights: ResolvedWeights, tensors: Mapping[str, torch.Tensor]
) -> tuple[Any, Any]:
    """One LoRA on model and clip, at all sampler steps or at those its block weights name."""
    strengths = {"strength_model": lora.strength_model, "strength_clip": lora.strength_clip}
    if not weights.scheduled:
        return get_host().apply_lora(model, clip, tensors, **strengths, stem_strengths=weights.factors)
    return get_host().schedule_lora(
        model, clip, tensors, **strengths, stem_strengths=weights.factors, start=weights.start, stop=weights.stop
    )


def loras_of_stack(stack: Sequence[Sequence[Any]]) -> list[Lora]:
    """Handles of another pack's LORA_STACK: rows of (name, model strength, clip strength)."""
    host = get_host()
    return [
        open_lora(host.lora_path(name), name, strength_model=float(model), strength_clip=float(clip))
        for name, model, clip, *_ in stack
        if name not in ("", "None", None)
    ]


class ApplyLora:
    """Applies a LoRA with block weights."""

    ID = "AtelierApplyLora"
    TITLE = "Apply LoRA with Block Weights (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/LoRA"
    DESCRIPTION = (
        "Applies a LoRA to MODEL and CLIP, each block at its own strength. With block weights ALL the result is "
        "exactly that of the core LoRA loader. The strengths here multiply those of the handle."
    )
    SEARCH_ALIASES = ["lora loader", "lora block weight", "lbw", "inspire"]
    RETURN_TYPES = ("MODEL", "CLIP", "ATELIER_LORA", "LORA_STACK", "STRING")
    RETURN_NAMES = ("model", "clip", "lora", "lora_stack", "report")
    OUTPUT_TOOLTIPS = (
        "The model with the LoRA applied.",
        "The text encoder with the LoRA applied.",
        "The LoRA with the strengths and block weights it was applied with.",
        "The stack that came in, with this LoRA at its end, for nodes that take a LORA_STACK (without block weights).",
        "How the block weights were read for this file.",
    )
    FUNCTION = "apply"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "model": socket("MODEL", "The model to change."),
                "clip": socket("CLIP", "The text encoder to change."),
                "lora": socket("ATELIER_LORA", "The LoRA to apply: from 'Train LoRA' or 'Open LoRA'."),
                "strength_model": strength_field("UNet"),
                "strength_clip": strength_field("text encoder"),
                "block_weights": block_weights_field(sliders=True),
            },
            "optional": {
                "lora_stack": socket("LORA_STACK", "LoRAs of another pack's stack, applied first."),
            },
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """The owner's presets are seen when they change."""
        return presets_state()

    def apply(
        self,
        model: Any,
        clip: Any,
        lora: Lora,
        strength_model: float,
        strength_clip: float,
        block_weights: str,
        lora_stack: Sequence[Sequence[Any]] | None = None,
    ) -> tuple[Any, Any, Lora, list[tuple[str, float, float]], str]:
        """Apply the stack, then the LoRA."""
        stack = [tuple(row) for row in lora_stack or ()]
        applied = dataclasses.replace(
            lora,
            strength_model=lora.strength_model * strength_model,
            strength_clip=lora.strength_clip * strength_clip,
            block_weights=block_weights.strip() or lora.block_weights,
        )
        model, clip = apply_loras(model, clip, [*loras_of_stack(stack), applied])
        row = (applied.name, applied.strength_model, applied.strength_clip)
        return model, clip, applied, [*stack, row], "\n".join(explained(applied).report)


NODES = (OpenLora, ApplyLora)
