"""Boxes as the nodes offer them: a detector by name, box files below the allowed folders, or file names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import AtelierError
from ..dataset.detect import open_detector
from ..dataset.detect_files import boxes_from_files, boxes_from_names
from ..dataset.detect_rows import Boxes, find_boxes
from ..dataset.identity import fingerprint_folder
from ..dataset.table import Dataset
from ._changes import file_state, named_file_state
from ._index import index_if_usable
from .data import DATA_ROOTS
from .host import PICO_NAME, get_host
from .widgets import combo, number, text

if TYPE_CHECKING:
    from collections.abc import Sequence

DETECTOR, FILES, NAMES, NONE = "detector", "box files", "file names", "none"


def box_inputs(sources: list[str], default_score: float = 0.4) -> dict[str, Any]:
    """The widgets that say where boxes come from."""
    return {
        "boxes": combo(
            sources,
            "Where boxes come from: a detector, label files, or names that end in _cx_cy_w_h (centre and size in px).",
            default=sources[0],
        ),
        "detector_name": combo(
            get_host().detector_names(),
            "A detection model exported to ONNX (YOLOv5 to v11) in the detectors model folder, with its class names in "
            f"the file or in a .txt beside it; or '{PICO_NAME}', which finds body and head of the tiny world's shapes.",
        ),
        "least_score": number("FLOAT", default_score, 0.05, 1.0, 0.05, "Boxes that the detector is less sure of go."),
        "box_place": text(
            "For box files: a folder of YOLO .txt or .json files named as the pictures, or one .json file (COCO), "
            "below the allowed folders; empty looks beside the pictures for NAME.boxes.txt and NAME.boxes.json."
        ),
    }


def read_boxes(
    dataset: Dataset,
    *,
    boxes: str,
    detector_name: str,
    least_score: float,
    box_place: str,
    rows: Sequence[int] | None = None,
) -> Boxes | None:
    """The boxes that the widgets ask for; None for none.

    Raises:
        InputError: The detector or the place is not there.
        AtelierError: The detector or the files cannot be used.
    """
    host = get_host()
    if boxes == NONE:
        return None
    if boxes == NAMES:
        return boxes_from_names(dataset)
    if boxes == FILES:
        return boxes_from_files(dataset, _place(box_place) if box_place.strip() else None)
    progress = host.progress()
    detector = open_detector(host.detector_path(detector_name))
    return find_boxes(
        dataset, detector, least_score=least_score, rows=rows, index=index_if_usable(progress), progress=progress
    )


def boxes_state(boxes: str | None, detector_name: str | None, box_place: str | None) -> str:
    """For ``IS_CHANGED``: state of the detector, or of the box files."""
    if boxes is None or detector_name is None or box_place is None:
        return "wired"
    if boxes == DETECTOR:
        return named_file_state(get_host().detector_path, detector_name)
    if boxes != FILES or not box_place.strip():
        return "none"
    try:
        place = _place(box_place)
        return file_state(place) if place.is_file() else fingerprint_folder(place, caption_extension=".json")
    except AtelierError as refusal:
        return str(refusal)  # it comes again, as the error, when the node runs


def detector_refusal(boxes: str | None, detector_name: str | None) -> bool | str:
    """For ``VALIDATE_INPUTS``: True, or which file goes where."""
    if boxes not in (DETECTOR, None) or detector_name is None:
        return True
    try:
        get_host().detector_path(detector_name)
    except AtelierError as refusal:
        return str(refusal)
    return True


def _place(name: str) -> Path:
    return get_host().roots().resolve(name, DATA_ROOTS, what="folder or file of boxes")


NODES: tuple[type, ...] = ()
"""No node of its own; the folder's discovery asks every file."""
