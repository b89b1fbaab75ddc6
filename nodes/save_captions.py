"""Writing captions into a person's folder, and putting the old ones back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..dataset.backups import find_backup, list_backups, restore_captions
from ..dataset.save import SaveParams, save_captions
from ..dataset.table import Dataset
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, text, widgets

BACKUPS = "caption-backups"


def backup_dir() -> Path:
    """Folder of the backups, in the pack's own folder of the user."""
    return get_host().user_dir() / BACKUPS


class SaveCaptions:
    """Writes captions beside their pictures."""

    ID = "AtelierSaveCaptions"
    TITLE = "Save Captions (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Writes the captions beside their pictures. What lay there goes into a backup first, and a caption that "
        "somebody edited after this node wrote it is never overwritten."
    )
    SEARCH_ALIASES = ["save tags", "write captions", "caption txt", "export captions"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = ("The same data set.", "How many files were written, and which were left alone and why.")
    FUNCTION = "save"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"dataset": socket("ATELIER_DATASET", "The data set."), **widgets(SaveParams)}}

    def save(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Write the captions."""
        host = get_host()
        progress = host.progress(len(dataset))
        report = save_captions(
            dataset,
            params_from(SaveParams, values),
            backup_dir=backup_dir(),
            index=index_if_usable(progress),
            allowed=host.roots().contains,
            progress=progress,
        ).text()
        return {"ui": {"text": [report]}, "result": (dataset, report)}


class RestoreCaptions:
    """Puts captions back."""

    ID = "AtelierRestoreCaptions"
    TITLE = "Restore Captions (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Puts back the captions that 'Save Captions' replaced and takes away those that it made. Captions edited since "
        "then stay as they are."
    )
    SEARCH_ALIASES = ["undo captions", "backup", "restore tags"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("How many files were put back, and which were left alone and why.",)
    FUNCTION = "restore"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "backup": text(
                    "Name of a backup as 'Save Captions' reports it; 'latest' for the newest.", default="latest"
                )
            }
        }

    @classmethod
    def IS_CHANGED(cls, backup: str | None = None) -> str:
        """A newer backup is seen."""
        return f"{backup} {' '.join(list_backups(backup_dir())[:1])}"

    def restore(self, backup: str) -> dict[str, Any]:
        """Put the captions back."""
        host = get_host()
        progress = host.progress()
        report = restore_captions(
            find_backup(backup_dir(), backup),
            index=index_if_usable(progress),
            allowed=host.roots().contains,
            progress=progress,
        ).text()
        return {"ui": {"text": [report]}, "result": (report,)}


NODES = (SaveCaptions, RestoreCaptions)
