"""Block weights of a merge: a curve or numbers, single rows, and rules for elements."""

from __future__ import annotations

from typing import Any

from ..families._spec import families
from ..merger.block_curves import CURVES
from ..merger.block_weights import BlockWeights, ResolvedRows
from ._changes import file_state
from ._merge import BLOCKS, USER_VECTORS_NAME, with_own_vectors
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, text

BASE = 0.5
"""Stands for the method's own value in the table."""


class MergeBlocks:
    """Writes block weights for a merge."""

    ID = "AtelierMergeBlocks"
    TITLE = "Merge Block Weights (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Block weights (MBW) for a merge: how much of B goes into every block, 0 keeps A and 1 is all B. The VAE stays "
        "A's unless a row says otherwise; the text encoders have the method's own value."
    )
    SEARCH_ALIASES = ["mbw", "merge block weighted", "supermerger", "block merge", "ModelMergeSD1", "ModelMergeSDXL"]
    RETURN_TYPES = (BLOCKS, "STRING")
    RETURN_NAMES = ("weights", "table")
    OUTPUT_TOOLTIPS = (
        "The block weights, for the input 'weights' of a merge.",
        "The weight of every row; 'own' is the method's own alpha.",
    )
    FUNCTION = "write"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "weights": text(
                    "Share of B by block, 0 keeps A and 1 is all B: a curve ("
                    + ", ".join(list(CURVES)[:6])
                    + " ...), or the numbers of IN00 to the last OUT (25 for SD1.x, 19 for SDXL; one more in front is "
                    "the text encoders'), or nothing for the method's own value. Then single rows, such as TE=0.3 "
                    "VAE=1 TIME=0 LABEL=0 OUT=1 IN04-07=0.5 MID=0.",
                    default="GRAD_V",
                    multiline=True,
                ),
                "elements": text(
                    "Rules BLOCKS:ELEMENTS:SHARE that win over the rows, one to a line, for example "
                    "IN05-OUT05:attn2:0. 0 keeps A, 1 is all B.",
                    multiline=True,
                ),
                "family": combo(
                    list(families()),
                    "Kind of the models, for the table and the check; the merge takes its own models'.",
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, **_: Any) -> str:
        """Edits of the owner's own vectors are seen."""
        return file_state(get_host().user_dir() / USER_VECTORS_NAME)

    def write(self, weights: str, elements: str, family: str) -> dict[str, Any]:
        """Check them and show the table."""
        made = with_own_vectors(BlockWeights(text=weights.strip(), elements=elements.strip()))
        table = table_of(made.resolve(family, BASE), made.resolve(family, BASE + 0.25))
        return {"ui": {"text": [table]}, "result": (made, table)}


def table_of(rows: ResolvedRows, moved: ResolvedRows) -> str:
    """One line per row; what moves with the method's own value is called own."""
    lines = [
        f"{row:6} {'own' if weight != moved.weights[row] else format(weight, 'g')}"
        for row, weight in rows.weights.items()
    ]
    return "\n".join([*lines, *(f"rule   {rule.written}" for rule in rows.rules)])


NODES = (MergeBlocks,)
