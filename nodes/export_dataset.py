"""A data set as a kohya folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..dataset.export import MARK, ExportParams, export_dataset
from ..dataset.table import Dataset
from ._changes import named_file_state
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, text, widgets

TARGET_ROOTS = ("output", "datasets", "input", "extra")


def target_of(name: str) -> Path:
    """The folder that a widget names.

    Raises:
        InputError: It cannot be a name.
        StorageError: It lies outside the allowed folders.
    """
    return get_host().roots().resolve(name, TARGET_ROOTS, must_exist=False, what="export folder")


class ExportDataset:
    """Writes a data set as a folder."""

    ID = "AtelierExportDataset"
    TITLE = "Export Data Set (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Writes the data set as a folder that kohya's scripts read: img/N_name and reg/N_name with captions, and a "
        "TOML file. Pictures are hard links where the disk allows it; crops are applied. The original folder "
        "is not touched."
    )
    SEARCH_ALIASES = ["kohya folder", "export", "toml", "metadata json", "save dataset"]
    RETURN_TYPES = ("STRING", "STRING")
    RETURN_NAMES = ("folder", "report")
    OUTPUT_TOOLTIPS = ("Where it lies, for 'Open Data Set'.", "What was written.")
    FUNCTION = "export"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set."),
                "folder": text(
                    "Name of the new folder below the output folder, or a whole path in an allowed folder. Something "
                    "else that lies there is left alone: a number is put behind the name.",
                    default="atelier/datasets/export",
                ),
                **widgets(ExportParams),
            }
        }

    @classmethod
    def IS_CHANGED(cls, folder: str | None = None, **_: Any) -> str:
        """An export that was deleted or edited is seen."""
        return named_file_state(lambda name: target_of(name) / MARK, folder)

    def export(self, dataset: Dataset, folder: str, **values: Any) -> dict[str, Any]:
        """Write the folder."""
        host = get_host()
        progress = host.progress(len(dataset))
        exported = export_dataset(
            dataset,
            target_of(folder),
            params_from(ExportParams, values),
            index=index_if_usable(progress),
            progress=progress,
        )
        report = exported.report.text()
        return {"ui": {"text": [report]}, "result": (str(exported.folder), report)}


NODES = (ExportDataset,)
