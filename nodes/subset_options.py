"""Options of some folders of a data set."""

from __future__ import annotations

from typing import Any

from ..dataset.subsets import SubsetParams, with_subset_options
from ..dataset.table import Dataset
from .widgets import ROOT_CATEGORY, params_from, socket, split_widgets

LATER = ("keep_tokens_separator", "secondary_separator", "loss_weight")
"""Options that came after the first version: optional, so that saved workflows fit."""


class SubsetOptions:
    """Sets options of some folders."""

    ID = "AtelierSubsetOptions"
    TITLE = "Subset Options (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Gives some folders of a data set other options than the rest: repeats, kept tags, shuffling, dropout, prefix, "
        "mirroring. So a regularisation set keeps its own."
    )
    SEARCH_ALIASES = ["keep tokens", "shuffle caption", "regularisation options", "repeats", "per folder"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = ("The data set with these options.", "What changed, and the options of every folder.")
    FUNCTION = "change"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        first, later = split_widgets(SubsetParams, LATER)
        return {"required": {"dataset": socket("ATELIER_DATASET", "The data set."), **first}, "optional": later}

    def change(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Change the options."""
        changed, report = with_subset_options(dataset, params_from(SubsetParams, values))
        return {"ui": {"text": [report]}, "result": (changed, report)}


NODES = (SubsetOptions,)
