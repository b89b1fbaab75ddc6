"""Many tag steps as one text, and the concept presets, which write such a text."""

from __future__ import annotations

from typing import Any

from ..dataset.diff import compare
from ..dataset.table import Dataset
from ..tagger.proposal import PresetParams, propose
from ..tagger.recipe import parse_recipe, recipe_text, run_recipe, run_steps
from ..tagger.steps._spec import steps
from ._steps import BASE_TOOLTIP, recipe_files_state, step_context
from .widgets import ROOT_CATEGORY, params_from, socket, text, widgets

DEFAULT_RECIPE = """\
# One step to a line: name, parameters as name=value, then after a colon its text.
normalise
deduplicate
implication
blacklist: highres, absurdres, commentary request
order
"""
DATASET_TOOLTIP = "The data set whose captions are changed; its files are left alone."


class TagRecipe:
    """Runs a recipe of tag steps."""

    ID = "AtelierTagRecipe"
    TITLE = "Tag Recipe (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Runs many tag steps from one text, one step to a line. The report shows what each step and rule did and "
        "which entries matched nothing."
    )
    SEARCH_ALIASES = ["tag script", "caption recipe", "tag processing", "batch edit captions"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING")
    RETURN_NAMES = ("dataset", "report", "recipe")
    OUTPUT_TOOLTIPS = (
        "The data set with the changed captions.",
        "Captions touched per step and rule, entries that matched nothing, examples before and after.",
        "The recipe as it was understood, without comments and defaults.",
    )
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        names = ", ".join(steps())
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", DATASET_TOOLTIP),
                "recipe": text(f"The steps: {names}. # begins a comment.", default=DEFAULT_RECIPE, multiline=True),
            },
            "optional": {"base": socket("ATELIER_BASE", BASE_TOOLTIP)},
        }

    @classmethod
    def IS_CHANGED(cls, recipe: str | None = None, **_: Any) -> str:
        """Edits of list files that the recipe names are seen."""
        return recipe_files_state(recipe)

    def run(self, dataset: Dataset, recipe: str, base: Any = None) -> dict[str, Any]:
        """Run the recipe."""
        parts = parse_recipe(recipe)
        needs_tokens = any(part.step.needs_tokens for part in parts)
        changed, diff = run_recipe(dataset, recipe, step_context(base, needs_tokens=needs_tokens))
        report = diff.text()
        return {"ui": {"text": [report]}, "result": (changed, report, recipe_text(parts))}


class ConceptPreset:
    """Proposes what a LoRA of a kind wants taken out of its captions."""

    ID = "AtelierConceptPreset"
    TITLE = "Concept Preset (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Proposes which tags to take out for a character, composition, style, object or background, tag by tag with "
        "the reason. Nothing changes until 'dry run' is off; flip single tags with 'keep' and 'remove'."
    )
    SEARCH_ALIASES = ["prune tags", "character preset", "core tags", "caption pruning"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING", "STRING")
    RETURN_NAMES = ("dataset", "report", "recipe")
    OUTPUT_TOOLTIPS = (
        "The data set; the same as came in while it is a dry run.",
        "The proposal as a table, and what was done where it is no dry run.",
        "The same as a text for the node 'Tag Recipe'.",
    )
    FUNCTION = "run"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        dry_run = {"default": True, "tooltip": "Only show the proposal; switch off to change the captions."}
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", DATASET_TOOLTIP),
                **widgets(PresetParams),
                "dry_run": ("BOOLEAN", dry_run),
            }
        }

    def run(self, dataset: Dataset, dry_run: bool = True, **values: Any) -> dict[str, Any]:
        """Show the proposal, and follow it when it is no dry run."""
        proposal = propose(dataset, params_from(PresetParams, values))
        changed = dataset
        if dry_run:
            done = "DRY RUN: nothing was changed; switch 'dry run' off to follow the proposal"
        else:
            changed, diff = run_steps(dataset, proposal.recipe, step_context())
            title = f"preset {proposal.preset.name}"
            done = compare(dataset, changed, title=title, rules=diff.rules, unmatched=diff.unmatched).text()
        report = f"{done}\n{proposal.text()}"
        return {"ui": {"text": [report]}, "result": (changed, report, proposal.recipe_text())}


NODES = (TagRecipe, ConceptPreset)
