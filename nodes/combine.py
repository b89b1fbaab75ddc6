"""Putting data sets together, and marking pictures for regularisation."""

from __future__ import annotations

from typing import Any

from ..dataset.combine import MarkParams, combine, mark_regularisation
from ..dataset.table import Dataset
from .widgets import ROOT_CATEGORY, params_from, socket, widgets

NUM_SETS = 8
NUM_REG_SETS = 4


class CombineDatasets:
    """Puts data sets together."""

    ID = "AtelierCombineDatasets"
    TITLE = "Combine Data Sets (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Puts several data sets into one: concepts that are trained together, and sets for regularisation. Each keeps "
        "its own repeats, captions, crops and options."
    )
    SEARCH_ALIASES = ["merge datasets", "join", "several concepts", "regularization", "reg images", "append"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = (
        "All pictures in one data set.",
        "The folders with their pictures per epoch, and pictures that occur twice.",
    )
    FUNCTION = "combine"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        sets = {
            f"dataset_{number}": socket("ATELIER_DATASET", "A further data set; it stays what it is.")
            for number in range(2, NUM_SETS + 1)
        }
        reg = {
            f"reg_{number}": socket("ATELIER_DATASET", "A data set of which every picture is for regularisation.")
            for number in range(1, NUM_REG_SETS + 1)
        }
        return {
            "required": {"dataset_1": socket("ATELIER_DATASET", "The first data set; its name is that of the whole.")},
            "optional": {**sets, **reg},
        }

    def combine(self, dataset_1: Dataset, **others: Dataset | None) -> dict[str, Any]:
        """Put together what is connected, in the order of the sockets."""
        sets = [others.get(f"dataset_{number}") for number in range(2, NUM_SETS + 1)]
        reg = [others.get(f"reg_{number}") for number in range(1, NUM_REG_SETS + 1)]
        result = combine(
            [dataset_1, *(part for part in sets if part is not None)], [part for part in reg if part is not None]
        )
        return {"ui": {"text": [result.report]}, "result": (result.dataset, result.report)}


class MarkRegularisation:
    """Marks pictures for regularisation."""

    ID = "AtelierMarkRegularisation"
    TITLE = "Mark Regularisation (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Says which pictures are for regularisation (they keep the model's other knowledge alive) and how much they "
        "count: all of a data set, or those of which a query is true."
    )
    SEARCH_ALIASES = ["prior loss weight", "prior preservation", "regularization", "reg images", "is_reg"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = ("The data set with the marks.", "What is for training and what for regularisation.")
    FUNCTION = "mark"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set to mark; its files are left alone."),
                **widgets(MarkParams),
            }
        }

    def mark(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Mark them."""
        result = mark_regularisation(dataset, params_from(MarkParams, values))
        return {"ui": {"text": [result.report]}, "result": (result.dataset, result.report)}


NODES = (CombineDatasets, MarkRegularisation)
