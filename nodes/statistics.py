"""Tags of each class: how often each is there, what is core, what to prompt."""

from __future__ import annotations

from typing import Any

from ..dataset.table import Dataset
from ..tagger.statistics import StatisticsParams, statistics
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class TagStatistics:
    """Counts tags per class."""

    ID = "AtelierTagStatistics"
    TITLE = "Tag Statistics (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Counts the tags of each class of pictures: count, share and a verdict (core trait, worn, clothes), with a "
        "wildcard list and a document of what to prompt."
    )
    SEARCH_ALIASES = ["core tags", "tag frequency", "wildcard", "trigger document"]
    RETURN_TYPES = ("STRING", "STRING", "STRING")
    RETURN_NAMES = ("report", "wildcards", "document")
    OUTPUT_TOOLTIPS = (
        "Tag, count, share and verdict for each class.",
        "One line per class with its trigger and core tags, for a wildcard file or the prompts of a grid.",
        "What to prompt: what is always there, clothes, poses, backgrounds, renamed tags (Markdown).",
    )
    FUNCTION = "count"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        dataset = socket("ATELIER_DATASET", "The data set whose tags are counted.")
        return {"required": {"dataset": dataset, **widgets(StatisticsParams)}}

    def count(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Count."""
        found = statistics(dataset, params_from(StatisticsParams, values))
        return {"ui": {"text": [found.report]}, "result": (found.report, found.wildcards, found.document)}


NODES = (TagStatistics,)
