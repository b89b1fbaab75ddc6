"""Masks for the pictures of a data set."""

from __future__ import annotations

from typing import Any

from ..core.errors import AtelierError
from ..dataset.crops_sheets import mask_sheet
from ..dataset.identity import fingerprint_folder
from ..dataset.masks import MaskParams, with_masks
from ..dataset.table import Dataset
from ._images import show_once
from .data import DATA_ROOTS
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, text, widgets


class SetMasks:
    """Sets masks."""

    ID = "AtelierSetMasks"
    TITLE = "Set Masks (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Gives pictures a mask: white counts in the loss, black does not. From their own transparency, or from "
        "pictures of the same name; sizes are checked, and mask files are taken out of the pictures."
    )
    SEARCH_ALIASES = ["alpha mask", "masked loss", "masklabel", "transparent", "inpaint mask"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = ("The data set with masks.", "How many masks were found and which do not fit.")
    FUNCTION = "set"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set; its files are left alone."),
                **widgets(MaskParams),
                "mask_folder": text(
                    "Folder of masks named as the pictures, below the allowed folders; empty looks beside the pictures "
                    "for NAME-masklabel.png and NAME_mask.png."
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, mask_folder: str | None = None, **_: Any) -> str:
        """Masks that were edited are seen."""
        if mask_folder is None:
            return "wired"
        if not mask_folder.strip():
            return "none"
        try:
            return fingerprint_folder(get_host().roots().resolve(mask_folder, DATA_ROOTS, what="mask folder"))
        except AtelierError as refusal:
            return str(refusal)  # it comes again, as the error, when the node runs

    def set(self, dataset: Dataset, mask_folder: str, **values: Any) -> dict[str, Any]:
        """Find the masks and show some."""
        host = get_host()
        roots, progress = host.roots(), host.progress()
        folder = roots.resolve(mask_folder, DATA_ROOTS, what="mask folder") if mask_folder.strip() else None
        params = params_from(MaskParams, values)
        result = with_masks(dataset, params, folder=folder, allowed=roots.contains, progress=progress)
        shown: dict[str, Any] = {"text": [result.report]}
        if result.dataset.masks is not None:
            shown["images"] = [show_once(mask_sheet(result.dataset, progress=progress), "masks")]
        return {"ui": shown, "result": (result.dataset, result.report)}


NODES = (SetMasks,)
