"""The choice of blocks that are trained."""

from __future__ import annotations

from typing import Any

from ..families._spec import get_family
from ..networks._blocks import expand_selection
from .widgets import ROOT_CATEGORY, text


class Blocks:
    """Chooses blocks by name."""

    ID = "AtelierBlocks"
    TITLE = "Blocks (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "Chooses which blocks of the model are trained. Fewer blocks train faster, need less memory and give smaller "
        "files."
    )
    SEARCH_ALIASES = ["block", "layer", "IN OUT MID"]
    RETURN_TYPES = ("ATELIER_BLOCKS", "STRING")
    RETURN_NAMES = ("blocks", "names")
    OUTPUT_TOOLTIPS = ("The choice, for 'Train LoRA'.", "The chosen blocks, written out.")
    FUNCTION = "choose"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "blocks": text(
                    "Blocks and ranges separated by commas: IN00 to IN11, MID, OUT00 to OUT11, TE for the text "
                    "encoder, or ALL; NOT in front takes all others. For example IN04-07,OUT03-06,TE.",
                    default="ALL",
                )
            }
        }

    def choose(self, blocks: str) -> tuple[str, str]:
        """Check the text and hand it on."""
        names = expand_selection(blocks, get_family("sd15").blocks)
        return blocks.strip(), ", ".join(names)


NODES = (Blocks,)
