"""Looking at a data set: its pictures with captions, and what of them is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..dataset.contact import ContactParams, bucket_sheet, contact_sheet
from ..dataset.table import Dataset
from ..dataset.tiers import BucketParams, BucketRow, bucket_rows, bucket_table, bucket_text, measure
from ._images import show_once, to_image
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class ContactSheet:
    """Shows pictures with their captions."""

    ID = "AtelierContactSheet"
    TITLE = "Contact Sheet (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = "Shows the pictures of a data set in a grid, each with its name and caption. Of many, some are taken."
    SEARCH_ALIASES = ["preview", "gallery", "thumbnails", "view dataset", "captions"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "IMAGE")
    RETURN_NAMES = ("dataset", "report", "sheet")
    OUTPUT_TOOLTIPS = ("The data set as it came in.", "Which pictures are shown.", "The contact sheet.")
    FUNCTION = "show"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"dataset": socket("ATELIER_DATASET", "The data set to show."), **widgets(ContactParams)}}

    def show(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Draw the sheet."""
        sheet = contact_sheet(dataset, params_from(ContactParams, values), progress=get_host().progress())
        said = f"{dataset.root.name}: {sheet.note}"
        ui = {"text": [said], "images": [show_once(sheet.image, "atelier-contact")]}
        return {"ui": ui, "result": (dataset, said, to_image([sheet.image]))}


class BucketPreview:
    """Shows what of each picture is trained."""

    ID = "AtelierBucketPreview"
    TITLE = "Bucket Preview (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Sorts a data set into aspect-ratio buckets as training will, and shows for each bucket how much of the "
        "pictures is cut off, which are enlarged, how many batches there are and which are not full."
    )
    SEARCH_ALIASES = ["aspect ratio buckets", "crop preview", "resolution", "bucketing"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "IMAGE", "IMAGE")
    RETURN_NAMES = ("dataset", "report", "preview", "table")
    OUTPUT_TOOLTIPS = (
        "The data set as it came in.",
        "The table of buckets as text.",
        "Pictures by bucket; the frame is what is trained, the rest is dimmed.",
        "The table of buckets as a picture.",
    )
    FUNCTION = "preview"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        shown = widgets(ContactParams)
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set to sort into buckets."),
                **widgets(BucketParams),
                **{name: shown[name] for name in ("pictures", "columns", "cell_px")},
            }
        }

    def preview(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Sort and draw."""
        from ..core.table_picture import draw_table

        params = params_from(BucketParams, values)
        fits = measure(dataset, params.rule())
        rows: Sequence[BucketRow] = bucket_rows(dataset, fits, params.batch_size)
        sheet = bucket_sheet(dataset, fits, rows, params_from(ContactParams, values), progress=get_host().progress())
        table = draw_table(bucket_table(rows), title=f"{dataset.root.name}: buckets at {params.resolution_px} px")
        said = bucket_text(dataset, fits, rows, params) + f"\nShown: {sheet.note}."
        images = [show_once(sheet.image, "atelier-buckets"), show_once(table, "atelier-bucket-table")]
        result = (dataset, said, to_image([sheet.image]), to_image([table]))
        return {"ui": {"text": [said], "images": images}, "result": result}


NODES = (ContactSheet, BucketPreview)
