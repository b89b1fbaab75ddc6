"""Filtering a data set by a query, and splitting it into two stages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..dataset.duplicates import duplicate_groups
from ..dataset.filter import FilterParams, SplitParams, filter_dataset, split_stages
from ..dataset.pixels import examine_pixels
from ..dataset.table import Dataset
from ._index import index_if_usable
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class FilterDataset:
    """Keeps some pictures."""

    ID = "AtelierFilterDataset"
    TITLE = "Filter Data Set (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Keeps the pictures of which a query is true: tags joined by and, or, not and parentheses, with conditions on "
        "size, tier, score, duplicates, folder and name. Entries that match nothing are named with the nearest tag."
    )
    SEARCH_ALIASES = ["select", "query", "where", "remove images", "by tag", "duplicates", "resolution"]
    RETURN_TYPES = ("ATELIER_DATASET", "ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("kept", "rejected", "report")
    OUTPUT_TOOLTIPS = (
        "The pictures of which the query is true.",
        "All others; may be empty.",
        "How many pictures each part of the query is true of, and examples.",
    )
    FUNCTION = "keep"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set to choose from; its files are left alone."),
                **widgets(FilterParams),
            }
        }

    def keep(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Evaluate the query; pictures are decoded only where it asks for duplicates."""
        params = params_from(FilterParams, values)

        def groups() -> Iterable[tuple[int, ...]]:
            return _groups(dataset, params.duplicate_distance)

        parts = filter_dataset(dataset, params, params.facts(groups))
        return {"ui": {"text": [parts.report]}, "result": (parts.first, parts.second, parts.report)}


class SplitStages:
    """Splits a data set in two."""

    ID = "AtelierSplitStages"
    TITLE = "Split Stages (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Splits a data set for training in two stages, such as simple backgrounds first and complex ones after at a "
        "lower learning rate. Pictures that teach neither can be left out."
    )
    SEARCH_ALIASES = ["two stages", "curriculum", "simple background first", "divide"]
    RETURN_TYPES = ("ATELIER_DATASET", "ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("first", "second", "report")
    OUTPUT_TOOLTIPS = (
        "The pictures of the first stage.",
        "The pictures of the second stage.",
        "How many pictures went where, and examples.",
    )
    FUNCTION = "split"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set to split; its files are left alone."),
                **widgets(SplitParams),
            }
        }

    def split(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Split it."""
        parts = split_stages(dataset, params_from(SplitParams, values))
        return {"ui": {"text": [parts.report]}, "result": (parts.first, parts.second, parts.report)}


def _groups(dataset: Dataset, bits: int) -> list[tuple[int, ...]]:
    """Pictures that look alike, in groups; damaged ones look like nothing."""
    progress = get_host().progress()
    facts = examine_pixels(dataset, index=index_if_usable(progress), progress=progress)
    whole = np.array([row for row in range(len(dataset)) if row not in facts.damaged], dtype=np.int64)
    found = duplicate_groups(facts.hashes[whole], bits, colours=facts.colours[whole], progress=progress)
    return [tuple(whole[list(group.rows)].tolist()) for group in found]


NODES = (FilterDataset, SplitStages)
