"""The blocks of a LoRA file: shown, and baked into a file of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from ..merger.lora.handle import Lora, open_lora
from ..merger.lora.saving import IF_EXISTS, KEEP_BOTH
from ._lora_output import lora_path
from .host import get_host
from .lora import block_weights_field, explained, presets_state
from .widgets import ROOT_CATEGORY, combo, socket, text

LORA_CATEGORY = f"{ROOT_CATEGORY}/LoRA"


def with_weights(lora: Lora, block_weights: str) -> Lora:
    """The handle with other block weights where some are given."""
    return dataclasses.replace(lora, block_weights=block_weights.strip() or lora.block_weights)


class LoraBlockMap:
    """Shows what a LoRA changes, block by block."""

    ID = "AtelierLoraBlockMap"
    TITLE = "LoRA Block Map (Atelier)"
    CATEGORY = LORA_CATEGORY
    DESCRIPTION = (
        "Shows which blocks a LoRA file has, how many modules and keys are in each, and how much of its change lies "
        "there: the exact Frobenius norm, worked out from the small matrices. With block weights, also what is left."
    )
    SEARCH_ALIASES = ["lora block weight", "lbw", "analyze lora", "block norm", "lora energy", "inspect"]
    RETURN_TYPES = ("IMAGE", "STRING")
    RETURN_NAMES = ("map", "report")
    OUTPUT_TOOLTIPS = ("The map as a picture.", "The same as a table, and how the block weights were read.")
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        from ._block_picture import THEMES

        return {
            "required": {
                "lora": socket("ATELIER_LORA", "The LoRA to look at."),
                "theme": combo(list(THEMES), "Colours of the picture."),
            },
            "optional": {"block_weights": block_weights_field()},
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """The owner's presets are seen when they change."""
        return presets_state()

    def show(self, lora: Lora, theme: str, block_weights: str = "") -> dict[str, Any]:
        """Measure and draw."""
        from ..merger.lora.block_map import map_blocks, report_of
        from ._block_picture import draw_block_map
        from ._images import show_once, to_image

        lora = with_weights(lora, block_weights)
        found = map_blocks(lora, explained(lora), progress=get_host().progress())
        picture, report = draw_block_map(found, theme=theme), report_of(found)
        return {
            "ui": {"text": [report], "images": [show_once(picture, "block-map")]},
            "result": (to_image([picture]), report),
        }


class BakeLora:
    """Writes a LoRA with its block weights in it."""

    ID = "AtelierBakeLora"
    TITLE = "Bake Block Weights (Atelier)"
    CATEGORY = LORA_CATEGORY
    DESCRIPTION = (
        "Saves a LoRA with its strengths, block weights and elemental rules in the file itself: an ordinary LoRA that "
        "every loader applies at strength 1 as this one is applied now. Trained numbers are kept; the factors go into "
        "the alphas."
    )
    SEARCH_ALIASES = ["save lora block weight", "lbw save", "apply block weight to file", "merge strength"]
    RETURN_TYPES = ("ATELIER_LORA", "STRING")
    RETURN_NAMES = ("lora", "report")
    OUTPUT_TOOLTIPS = ("The new LoRA, at strength 1 without block weights.", "What was kept, changed and left out.")
    FUNCTION = "bake"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "lora": socket("ATELIER_LORA", "The LoRA with its strengths and block weights."),
                "file_name": text("Name in the loras folder, with folders if you like; empty makes NAME-baked."),
                "if_exists": combo(
                    list(IF_EXISTS),
                    "Where another file has that name: keep both (a number is added), replace it, or refuse. A file "
                    "made by exactly these settings is never made twice.",
                    default=KEEP_BOTH,
                ),
            },
            "optional": {"block_weights": block_weights_field()},
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """The owner's presets are seen when they change."""
        return presets_state()

    def bake(self, lora: Lora, file_name: str, if_exists: str, block_weights: str = "") -> dict[str, Any]:
        """Write the file, unless it is there."""
        from ..merger.lora.bake import save_baked

        lora = with_weights(lora, block_weights)
        weights = explained(lora)
        path = lora_path(file_name, f"{Path(lora.name).stem}-baked")
        saved, baked = save_baked(lora, weights, path, if_exists=if_exists, progress=get_host().progress())
        name = saved.path.relative_to(get_host().loras_dir().resolve()).as_posix()
        lines = [f"{lora.name}: text encoder {lora.strength_clip:g}, UNet {lora.strength_model:g}", *weights.report]
        if baked is None:
            lines.append(f"{name} is there already, made by exactly these settings.")
        else:
            lines.append(
                f"{baked.scaled} modules have a new factor, {baked.kept} are as they were, {baked.dropped} of factor 0 "
                "are left out; the metadata is kept, with what was baked in."
            )
            if baked.widened:
                lines.append(f"{baked.widened} tensors are fp32 now: their own format would have rounded.")
            lines.append(f"Saved as {name} in the loras folder ({saved.size_bytes / 2**20:.2f} MiB).")
        report = "\n".join(lines)
        made = open_lora(saved.path, name, trigger=lora.trigger)
        return {"ui": {"text": [report]}, "result": (made, report)}


NODES = (LoraBlockMap, BakeLora)
