"""What tags a data set has: plots, tags that bleed into each other, the document that is published with a model."""

from __future__ import annotations

import json
from typing import Any

from ..dataset.bleeding import BleedingParams, find_bleeding
from ..dataset.table import Dataset
from ..dataset.tag_document import ENDINGS, DocumentParams, tag_document
from ..dataset.tag_stats import tag_stats
from ..dataset.tokens import caption_tokens
from ..families._base import Base
from ..tagger.steps.budget import estimated_tokens
from ._images import show_once, to_image
from ._steps import token_counter
from ._written import write_output
from .widgets import ROOT_CATEGORY, number, params_from, socket, text, widgets

TAGS_CATEGORY = f"{ROOT_CATEGORY}/Tags"


class TagPlots:
    """Draws the tags of a data set."""

    ID = "AtelierTagPlots"
    TITLE = "Tag Plots (Atelier)"
    CATEGORY = TAGS_CATEGORY
    DESCRIPTION = (
        "Draws how often each tag is used, which tags come together, how many tags a picture has, and how long "
        "captions are in tokens against the 75, 150 and 225 that a text encoder reads in one, two and three parts."
    )
    SEARCH_ALIASES = ["tag frequency", "histogram", "co-occurrence", "token length", "statistics"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "IMAGE")
    RETURN_NAMES = ("dataset", "report", "plots")
    OUTPUT_TOOLTIPS = (
        "The data set as it came in.",
        "The figures as text.",
        "Frequency, co-occurrence, tags per picture, tokens per caption: a batch of four pictures.",
    )
    FUNCTION = "plot"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set whose tags are drawn."),
                "top": number("INT", 40, 1, 60, 1, "How many of the most frequent tags the bars show."),
                "matrix": number("INT", 20, 2, 30, 1, "How many of the most frequent tags the matrix compares."),
            },
            "optional": {
                "base": socket(
                    "ATELIER_BASE",
                    "Its tokenizer counts the tokens; without one ComfyUI's own CLIP tokenizer does, or they are "
                    "estimated, which the report says.",
                )
            },
        }

    def plot(self, dataset: Dataset, top: int, matrix: int, base: Base | None = None) -> dict[str, Any]:
        """Count and draw."""
        from ..dataset import plots

        count, whose = token_counter(base)
        tokens = caption_tokens(dataset, count or estimated_tokens)
        stats = tag_stats(dataset, top=matrix, tokens=tokens)
        name = dataset.root.name
        drawn = [
            plots.frequency_plot(stats, title=name, top=top),
            plots.cooccurrence_plot(stats, title=name),
            plots.per_picture_plot(stats, title=name),
            plots.tokens_plot(stats, title=name),
        ]
        note = f"Tokens counted by {whose}." if count else "Tokens are an ESTIMATE: connect a base to count them."
        said = f"{stats.text()}\n{note}"
        images = [show_once(picture, "atelier-tags") for picture in drawn]
        return {"ui": {"text": [said], "images": images}, "result": (dataset, said, to_image(drawn))}


class TagBleeding:
    """Finds tags that bleed into each other."""

    ID = "AtelierTagBleeding"
    TITLE = "Tag Bleeding (Atelier)"
    CATEGORY = TAGS_CATEGORY
    DESCRIPTION = (
        "Lists tags that share a word and therefore bleed into each other (aiming, aiming at viewer; gigantic hat, "
        "gigantic breasts; words of a trigger), and proposes names for them that 'Rename Tags' reads."
    )
    SEARCH_ALIASES = ["concept bleed", "similar tags", "rename", "shared words"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING", "STRING")
    RETURN_NAMES = ("dataset", "report", "names", "report_json")
    OUTPUT_TOOLTIPS = (
        "The data set as it came in.",
        "Groups of tags that share a word.",
        "Proposed names, one 'old,new' per line, for the node 'Rename Tags'.",
        "The groups and names as JSON.",
    )
    FUNCTION = "find"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        dataset = socket("ATELIER_DATASET", "The data set whose tags are compared.")
        return {"required": {"dataset": dataset, **widgets(BleedingParams)}}

    def find(self, dataset: Dataset, **values: Any) -> dict[str, Any]:
        """Compare."""
        found = find_bleeding(dataset, params_from(BleedingParams, values))
        said = found.text()
        data = json.dumps(found.to_json(), ensure_ascii=False, indent=1)
        return {"ui": {"text": [said]}, "result": (dataset, said, found.rename_list(), data)}


class TagDocumentNode:
    """Writes the tag document."""

    ID = "AtelierTagDocument"
    TITLE = "Tag Document (Atelier)"
    CATEGORY = TAGS_CATEGORY
    DESCRIPTION = (
        "Makes the document of tags that is published with a model: every tag with its count, category, aliases and "
        "notes, as CSV, Markdown or JSON."
    )
    SEARCH_ALIASES = ["tag list", "export tags", "documentation", "trigger words", "wildcard"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING")
    RETURN_NAMES = ("dataset", "report", "document")
    OUTPUT_TOOLTIPS = (
        "The data set as it came in.",
        "How many tags it holds, and entries of the aliases and notes that matched nothing.",
        "The document.",
    )
    FUNCTION = "export"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set whose tags are listed."),
                **widgets(DocumentParams),
                "file_name": text("Name of a file below the output folder to write it to; empty writes none."),
            }
        }

    def export(self, dataset: Dataset, file_name: str, **values: Any) -> dict[str, Any]:
        """Make the document, and write it where a name is given."""
        params = params_from(DocumentParams, values)
        made = tag_document(dataset, params)
        document, said = made.text(params.form), made.report()
        if file_name.strip():
            said += f"\nWrote {write_output(file_name, document, ending=ENDINGS[params.form])}"
        return {"ui": {"text": [said]}, "result": (dataset, said, document)}


NODES = (TagPlots, TagBleeding, TagDocumentNode)
