"""The data set: a folder of pictures and captions opened as a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import AtelierError
from ..dataset.identity import fingerprint_folder
from ..dataset.scan import DatasetParams, open_folder
from ..dataset.table import Dataset
from ..dataset.toml_config import fingerprint_config
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, split_widgets, text

DATA_ROOTS = ("input", "datasets", "output", "extra")
LATER = ("separator", "underscores", "site_tags", "site_ratings")
"""Settings that came after the first version."""

FOLDER_TOOLTIP = (
    "Folder with pictures and .txt captions, below the input, datasets or output folder (or one the owner has "
    "allowed): kohya folders such as 10_name, any folder of pictures, or a kohya .toml file. Edited files are "
    "seen at the next run when the name is typed here, not when it comes over a wire."
)


def data_folder(name: str) -> Path:
    """The folder a widget names.

    Raises:
        InputError: It is not there, or not below an allowed folder.
    """
    return get_host().roots().resolve(name, DATA_ROOTS, what="data set folder")


class OpenDataset:
    """Opens a folder as a data set."""

    ID = "AtelierOpenDataset"
    TITLE = "Open Data Set (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Opens a folder of pictures and captions for training. Only names, sizes and captions are read; the report "
        "says how the folder was understood and what was left out."
    )
    SEARCH_ALIASES = ["load images", "dataset", "folder", "captions", "kohya"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = (
        "The data set as a table, for training and tagging.",
        "How the folder was read: pictures, repeats, captions, what was left out and why.",
    )
    FUNCTION = "open"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        first, later = split_widgets(DatasetParams, LATER)
        return {
            "required": {
                "folder": text(FOLDER_TOOLTIP),
                "reg_folder": text(
                    "Folder of regularisation pictures, which keep the model's other knowledge alive; empty for none."
                ),
                **first,
            },
            "optional": later,
        }

    @classmethod
    def IS_CHANGED(
        cls,
        folder: str | None = None,
        reg_folder: str | None = None,
        caption_extension: str | None = None,
        **_: Any,
    ) -> str:
        """Pictures and captions that were edited, added or removed are seen, unless the folder's name is wired.

        ComfyUI gives no value for a wired input here; the node that names the folder has to see the edits then, as
        'Draw Pico Data Set' does.
        """
        ending = caption_extension or ""
        return f"{folder_state(folder, ending)} {folder_state(reg_folder, ending)}"

    def open(self, folder: str, reg_folder: str, **values: Any) -> tuple[Dataset, str]:
        """Open the folder, and the regularisation folder beside it."""
        host = get_host()
        progress = host.progress()
        dataset = open_folder(
            data_folder(folder),
            params_from(DatasetParams, values),
            reg_folder=data_folder(reg_folder) if reg_folder.strip() else None,
            progress=progress,
            allowed=host.roots().contains,
            index=index_if_usable(progress),
        )
        return dataset, dataset.summary()


def folder_state(name: str | None, caption_extension: str) -> str:
    """Fingerprint of a data folder by names, sizes and times; the refusal's text when it cannot be opened."""
    if name is None:
        return "wired"
    if not name.strip():
        return "none"
    try:
        place = data_folder(name)
        state = fingerprint_config if place.suffix.lower() == ".toml" and place.is_file() else fingerprint_folder
        return state(place, allowed=get_host().roots().contains, caption_extension=caption_extension)
    except AtelierError as refusal:
        return str(refusal)  # it comes again, as the error, when the node runs


NODES = (OpenDataset,)
