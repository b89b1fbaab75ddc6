"""The choice of blocks that are trained."""

from __future__ import annotations

from typing import Any

from ..core.errors import InputError
from ..families._spec import families
from ..networks._targeting import Targeting, parse_targeting
from .widgets import ROOT_CATEGORY, text


class Blocks:
    """Chooses blocks by name."""

    ID = "AtelierBlocks"
    TITLE = "Blocks (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "Chooses which blocks of the model are trained, and which modules in them, with ranks and learning rates of "
        "their own. Fewer blocks train faster, need less memory and give smaller files."
    )
    SEARCH_ALIASES = ["block", "layer", "IN OUT MID", "block dims", "block lr", "targets"]
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
                    "encoder, or ALL; NOT in front takes all others. For example IN04-07,OUT03-06,TE. More lines may "
                    "follow: 'groups: attention, resnets', 'exclude: *to_out*', 'OUT03-06: rank 8, alpha 4, lr 0.5', "
                    "and kohya's block_dims, block_alphas, down_lr_weight, mid_lr_weight, up_lr_weight.",
                    default="ALL",
                    multiline=True,
                )
            }
        }

    def choose(self, blocks: str) -> tuple[str, str]:
        """Check the text and hand it on."""
        return blocks.strip(), ", ".join(parsed(blocks).blocks)


def parsed(text: str) -> Targeting:
    """The targets of a family that has these blocks and lists; the base is only known to 'Train LoRA'.

    Raises:
        InputError: The text fits no family; what the first one says.
    """
    first: InputError | None = None
    for family in families().values():
        try:
            return parse_targeting(text, family.blocks)
        except InputError as refusal:
            first = first or refusal
    raise first or InputError("no model family is known")


NODES = (Blocks,)
