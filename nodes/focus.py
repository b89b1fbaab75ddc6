"""The point around which pictures are cropped to their bucket."""

from __future__ import annotations

from typing import Any

from ..dataset.crops_sheets import focus_sheet
from ..dataset.focus import FocusParams, with_focus
from ..dataset.table import Dataset
from ._boxes import DETECTOR, FILES, NAMES, NONE, box_inputs, boxes_state, detector_refusal, read_boxes
from ._images import show_once
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class FocalCrop:
    """Sets focal points."""

    ID = "AtelierFocalCrop"
    TITLE = "Focal Point Crop (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Chooses the part of each picture that survives the crop to its bucket: around faces, corners and fine detail "
        "instead of the middle. Nothing is written; the training node crops so."
    )
    SEARCH_ALIASES = ["autocrop", "focal point", "face crop", "smart crop", "random crop", "center crop"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = ("The data set with focal points.", "How many pictures have one, and where.")
    FUNCTION = "focus"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set; its files are left alone."),
                **widgets(FocusParams),
                **box_inputs([NONE, DETECTOR, FILES, NAMES]),
            }
        }

    @classmethod
    def IS_CHANGED(
        cls, boxes: str | None = None, detector_name: str | None = None, box_place: str | None = None, **_: Any
    ) -> str:
        """A detector or box files written anew are seen."""
        return boxes_state(boxes, detector_name, box_place)

    @classmethod
    def VALIDATE_INPUTS(cls, boxes: str | None = None, detector_name: str | None = None) -> bool | str:
        """A detector this machine lacks is answered with the file that goes where."""
        return detector_refusal(boxes, detector_name)

    def focus(
        self,
        dataset: Dataset,
        boxes: str,
        detector_name: str,
        least_score: float,
        box_place: str,
        **values: Any,
    ) -> dict[str, Any]:
        """Find the points and show some."""
        progress = get_host().progress()
        params = params_from(FocusParams, values)
        found = None
        if params.mode == "focal point":
            found = read_boxes(
                dataset, boxes=boxes, detector_name=detector_name, least_score=least_score, box_place=box_place
            )
        result = with_focus(dataset, params, boxes=found, index=index_if_usable(progress), progress=progress)
        shown: dict[str, Any] = {"text": [result.report]}
        if result.dataset.focus is not None:
            shown["images"] = [show_once(focus_sheet(result.dataset, progress=progress), "focus")]
        return {"ui": shown, "result": (result.dataset, result.report)}


NODES = (FocalCrop,)
