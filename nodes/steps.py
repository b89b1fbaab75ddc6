"""One node per tag step, made from its file: data set in, data set and report out."""

from __future__ import annotations

import logging
from typing import Any

from ..core.discovery import discover_tolerant
from ..dataset.table import Dataset
from ..tagger.recipe import run_step
from ..tagger.steps._spec import Step
from ._options import ROOT, camel
from ._steps import BASE_TOOLTIP, list_file_state, step_context
from .widgets import ROOT_CATEGORY, params_from, socket, widgets

log = logging.getLogger("lora_atelier")

ALIASES = {
    "alias": ["synonyms", "merge tags"],
    "blacklist": ["exclude", "remove tags", "delete tags", "filter tags"],
    "budget": ["token limit", "max tags", "75 tokens"],
    "exclusive": ["exclusive groups", "size tags", "one of"],
    "implication": ["overlap", "redundant tags"],
    "prune_traits": ["core tags", "character pruning"],
    "quality": ["masterpiece", "best quality", "score"],
    "rename": ["replace tags"],
    "trigger": ["prefix", "activation", "add tags"],
}
"""Further words by which a step's node is found."""


def step_node(step: Step) -> type:
    """The node class of a step."""

    def input_types(cls: type) -> dict[str, Any]:
        dataset = socket("ATELIER_DATASET", "The data set whose captions are changed; its files are left alone.")
        types: dict[str, Any] = {"required": {"dataset": dataset, **widgets(step.params)}}
        if step.needs_tokens:
            types["optional"] = {"base": socket("ATELIER_BASE", BASE_TOOLTIP)}
        return types

    def apply(self: Any, dataset: Dataset, base: Any = None, **values: Any) -> dict[str, Any]:
        context = step_context(base, needs_tokens=step.needs_tokens)
        changed, diff = run_step(dataset, step, params_from(step.params, values), context)
        report = diff.text()
        return {"ui": {"text": [report]}, "result": (changed, report)}

    def is_changed(cls: type, file: str | None = None, **_: Any) -> str:
        return list_file_state(file)

    attributes: dict[str, Any] = {
        "__doc__": step.summary,
        "ID": f"AtelierStep{camel(step.name)}",
        "TITLE": f"{step.title} (Atelier)",
        "CATEGORY": f"{ROOT_CATEGORY}/Tags",
        "DESCRIPTION": f"{step.summary}. The report counts captions per rule and names entries that matched nothing.",
        "SEARCH_ALIASES": ["tags", "captions", step.name.replace("_", " "), *ALIASES.get(step.name, [])],
        "INPUT_TYPES": classmethod(input_types),
        "RETURN_TYPES": ("ATELIER_DATASET", "STRING"),
        "RETURN_NAMES": ("dataset", "report"),
        "OUTPUT_TOOLTIPS": (
            "The data set with the changed captions.",
            "Captions touched per rule, entries that matched nothing, examples before and after.",
        ),
        "FUNCTION": "apply",
        "OUTPUT_NODE": True,
        "apply": apply,
    }
    if any(parameter.name == "file" for parameter in step.params.parameters()):
        attributes["IS_CHANGED"] = classmethod(is_changed)
    return type(f"Step{camel(step.name)}", (), attributes)


NODES = tuple(step_node(step) for step in discover_tolerant(f"{ROOT}.tagger.steps", "STEP", log).values())
