"""One door for every kind of recipe text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ...core.errors import FormatError, InputError
from ...core.tensors import Header
from ..expression import Model, Node, from_json
from ..metadata import RECIPE_KEY, RECIPE_TYPE, WEBUI_MODELS_KEY, WEBUI_RECIPE_KEY
from ..plan import OutputParams
from ._spec import OpenModel, Recipe, Result
from .board import read_board
from .mecha import read_mecha
from .webui import read_webui, table_of

MECHA_KEY = "mecha_recipe"
MAX_CHARS = 4 * 2**20


def read_recipe(
    text: str,
    open_model: OpenModel,
    variables: Mapping[str, str] | None = None,
    open_vae: Callable[[Model, str], Model] | None = None,
    wired: Mapping[str, Node] | None = None,
) -> Recipe:
    """Reads lines, a ``.mecha`` text, or the metadata of a merged file.

    Args:
        text: The recipe.
        open_model: Opens a checkpoint by its name.
        variables: Values of the variables of lines.
        open_vae: Gives a model another VAE by its name, for recipes of our own.
        wired: Models or merges that stand for variables of lines.

    Raises:
        InputError: The recipe is wrong in itself; what and where is said.
        FormatError: It is of no known form.
        UnknownNameError: A model or method is not there.
    """
    if len(text) > MAX_CHARS:
        raise InputError(f"the recipe has {len(text):,} characters, allowed are {MAX_CHARS:,}")
    start = text.lstrip("\ufeff \t\r\n")
    if not start:
        raise InputError("the recipe is empty; write for example: OUT = A + B, 0.5, fp16")
    if start.startswith("{"):
        return _read_json(table_of(start, "the recipe"), open_model, open_vae)
    if start.startswith("version "):
        return read_mecha(start, open_model)
    return read_board(text, open_model, variables, wired)


def _read_json(
    data: Mapping[str, Any], open_model: OpenModel, open_vae: Callable[[Model, str], Model] | None
) -> Recipe:
    if RECIPE_KEY in data:
        data = table_of(data[RECIPE_KEY], RECIPE_KEY)
    if "nodes" in data:
        return _read_own(data, open_model, open_vae)
    if MECHA_KEY in data:
        return read_mecha(str(data[MECHA_KEY]), open_model)
    recipe = table_of(data[WEBUI_RECIPE_KEY], WEBUI_RECIPE_KEY) if WEBUI_RECIPE_KEY in data else data
    if recipe.get("type") == RECIPE_TYPE:
        return _read_own(table_of(recipe.get("recipe"), "the recipe"), open_model, open_vae)
    models = table_of(data[WEBUI_MODELS_KEY], WEBUI_MODELS_KEY) if WEBUI_MODELS_KEY in data else {}
    return read_webui(recipe, models, open_model)


def _read_own(data: Mapping[str, Any], open_model: OpenModel, open_vae: Any) -> Recipe:
    def opened(name: str, vae: str) -> Model:
        model = open_model(name)
        return open_vae(model, vae) if vae and open_vae is not None else model

    node = from_json(data, opened)
    output = OutputParams.from_json(table_of(data.get("output", {}), "the recipe's output"))
    label = getattr(node, "label", "")
    return Recipe(kind="LoRA Atelier", results=(Result(name=label, node=node, dtype=output.dtype),))


def recipe_of_file(header: Header, name: str) -> str:
    """The recipe that a merged file carries, as a text for `read_recipe`.

    Raises:
        FormatError: It carries none.
    """
    metadata = header.metadata
    if RECIPE_KEY in metadata:
        return metadata[RECIPE_KEY]
    if MECHA_KEY in metadata:
        return metadata[MECHA_KEY]
    if WEBUI_RECIPE_KEY in metadata:
        kept = {key: metadata[key] for key in (WEBUI_RECIPE_KEY, WEBUI_MODELS_KEY) if key in metadata}
        return json.dumps(kept, ensure_ascii=False)
    raise FormatError(f"{name} carries no recipe in its metadata; it was not merged, or the recipe was taken out")
