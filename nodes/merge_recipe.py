"""Merges written as a text, and the recipe that a merged file carries."""

from __future__ import annotations

from typing import Any

from ..core.errors import AtelierError, unknown_name
from ..core.tensors import read_header
from ..merger.handle import MergeHandle
from ..merger.plan import OutputParams
from ..merger.recipe._spec import Recipe, Result
from ..merger.recipe.board import parse_board
from ..merger.recipe.read import read_recipe, recipe_of_file
from ..merger.shares import share_report
from ._changes import named_file_state
from ._merge import MERGE, MODEL_KINDS, node_of, open_named, state_of_names, vae_of, variables_of
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, socket, text

WIRED = ("a", "b", "c", "d")
"""Sockets whose models the lines name as variables."""
DEFAULT_RECIPE = """\
# OUT = A + B, share of B      or      OUT = A + B + C, factor of (B - C)
# then, if wanted: fp16, safetensors. __O1__ or its name is an earlier line's result.
first = model_a + model_b, 0.5
OUT = __O1__ + model_c, 0.333, fp16, safetensors
"""


class MergeRecipe:
    """Reads a recipe."""

    ID = "AtelierMergeRecipe"
    TITLE = "Merge Recipe (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Merges written as lines 'OUT = A + B[ + C], M', or the recipe of a merged file (this pack's, sd-mecha's, the "
        "web UI's or SuperMerger's). Results in between are never written unless 'Save Merge' is asked for them."
    )
    SEARCH_ALIASES = ["merge board", "recipe", "mecha", "supermerger", "chain merge", "merge script"]
    RETURN_TYPES = (MERGE, "STRING")
    RETURN_NAMES = ("merge", "report")
    OUTPUT_TOOLTIPS = (
        "The recipe's last result, or the one chosen; nothing is read yet.",
        "The effective share of every model, warnings, and what the recipe asks for that is done otherwise.",
    )
    FUNCTION = "read"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "recipe": text(
                    "Lines OUT = A + B, M for (1 - M) A + M B (0 keeps A, 1 is all B), or OUT = A + B + C, M for "
                    "A + M (B - C); then fp16, safetensors. # begins a comment, __O1__ is the first line's result, "
                    "__NAME__ a variable. Or the text of a .mecha file or of 'Read Merge Recipe'.",
                    default=DEFAULT_RECIPE,
                    multiline=True,
                ),
            },
            "optional": {
                "variables": text("Values of the variables, one to a line: SD15 = v1-5-pruned.", multiline=True),
                "result": text("Name or number of the line whose result is given; empty for the last."),
                **{
                    name: socket(MODEL_KINDS, f"A checkpoint or merge that the lines call __{name.upper()}__.")
                    for name in WIRED
                },
            },
        }

    @classmethod
    def IS_CHANGED(cls, recipe: str | None = None, variables: str | None = None, **_: Any) -> str:
        """A model written anew is seen."""
        if recipe is None or recipe.lstrip().startswith(("{", "version ")):
            return "not lines"
        try:
            values = variables_of(variables or "")
            names = [name for lane in parse_board(recipe).lanes for name in lane.models]
            values |= dict.fromkeys((name.upper() for name in WIRED), "")
            return state_of_names([name for name in (values.get(name.strip("_"), name) for name in names) if name])
        except AtelierError as refusal:
            return str(refusal)  # it comes again when the node runs

    def read(self, recipe: str, variables: str = "", result: str = "", **values: Any) -> dict[str, Any]:
        """Read it and look the models up."""
        wired = {name.upper(): node_of(values[name], name) for name in WIRED if values.get(name) is not None}
        found = read_recipe(recipe, open_named, variables_of(variables), vae_of, wired)
        chosen = _chosen(found, result)
        handle = MergeHandle(
            node=chosen.node,
            name=chosen.name,
            output=OutputParams(dtype=chosen.dtype),
            results=found.results,
            notes=found.notes,
        )
        report = "\n".join([f"recipe: {found.kind}", *found.notes, *share_report(chosen.node)])
        return {"ui": {"text": [report]}, "result": (handle, report)}


def _chosen(recipe: Recipe, result: str) -> Result:
    """The result of that name or number.

    Raises:
        UnknownNameError: The recipe has none.
    """
    wanted = result.strip()
    if not wanted:
        return recipe.results[-1]
    for number, found in enumerate(recipe.results, start=1):
        if wanted in (found.name, str(number), f"__O{number}__"):
            return found
    raise unknown_name("result of the recipe", wanted, [found.name for found in recipe.results])


class ReadMergeRecipe:
    """Takes the recipe out of a merged file."""

    ID = "AtelierReadMergeRecipe"
    TITLE = "Read Merge Recipe (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Merge"
    DESCRIPTION = (
        "Takes the recipe out of a merged checkpoint's metadata, so that it can be made again or changed with 'Merge "
        "Recipe'."
    )
    SEARCH_ALIASES = ["merge metadata", "sd_merge_recipe", "mecha_recipe", "how was it merged"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("recipe",)
    OUTPUT_TOOLTIPS = ("The recipe, for 'Merge Recipe'.",)
    FUNCTION = "read"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"base_name": combo(get_host().checkpoint_names(), "A merged checkpoint.")}}

    @classmethod
    def IS_CHANGED(cls, base_name: str | None = None) -> str:
        """A file written anew is seen."""
        return named_file_state(get_host().checkpoint_path, base_name)

    def read(self, base_name: str) -> dict[str, Any]:
        """Read the metadata."""
        recipe = recipe_of_file(read_header(get_host().checkpoint_path(base_name)), base_name)
        return {"ui": {"text": [recipe]}, "result": (recipe,)}


NODES = (MergeRecipe, ReadMergeRecipe)
