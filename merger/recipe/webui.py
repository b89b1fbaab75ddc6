"""Recipes in the metadata of files merged by the web UI and by SuperMerger.

Source: ``sd_merge_recipe`` (``type`` webui or sd-webui-supermerger) and ``sd_merge_models`` (names by SHA-256), as
A1111's extras and SuperMerger write them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...core.errors import FormatError, InputError, unknown_name
from ..block_weights import BlockWeights
from ..expression import Merge, Model
from ..methods._spec import get_method
from ..plan import AS_A
from ._spec import OpenModel, Recipe, Result

WEBUI, SUPERMERGER = "webui", "sd-webui-supermerger"
_INTERPOLATIONS = {"Weighted sum": "weighted_sum", "Add difference": "add_difference"}
_MODES = {"weight": "weighted_sum", "add": "add_difference", "triple": "triple_sum", "sum twice": "sum_twice"}
_CALCULATIONS = {
    "trainDifference": "train_difference",
    "smoothAdd": "smooth_add",
    "smoothAdd MT": "smooth_add",
    "cosineA": "cosine_a",
    "cosineB": "cosine_b",
    "tensor": "tensor_slice",
    "tensor2": "tensor_slice",
}
COUNTS = {"triple_sum": 3, "sum_twice": 3, "add_difference": 3, "train_difference": 3, "smooth_add": 3}


def read_webui(recipe: Mapping[str, Any], models: Mapping[str, Any], open_model: OpenModel) -> Recipe:
    """Reads the metadata and looks its models up.

    Args:
        recipe: Content of ``sd_merge_recipe``.
        models: Content of ``sd_merge_models``.
        open_model: Opens a checkpoint by its name.

    Raises:
        FormatError: Something is missing or of another kind.
        InputError: Something is used that has no counterpart here.
    """
    kind = recipe.get("type")
    names = {str(sha): str(facts["name"]) for sha, facts in models.items() if isinstance(facts, Mapping)
             and "name" in facts}  # fmt: skip

    def model(key: str) -> Model:
        value = recipe.get(key)
        if not value:
            raise FormatError(f"the recipe in the metadata names no {key}")
        return open_model(names.get(str(value), str(value)))

    try:
        if kind == WEBUI:
            return _read_webui(recipe, model)
        if kind == SUPERMERGER:
            return _read_supermerger(recipe, model)
    except (KeyError, TypeError, ValueError) as cause:
        if isinstance(cause, (FormatError, InputError)):
            raise
        raise FormatError(f"the recipe in the metadata is malformed ({cause}); it cannot be read") from cause
    raise unknown_name("kind of recipe in a file's metadata", str(kind), (WEBUI, SUPERMERGER, "lora-atelier"))


def _read_webui(recipe: Mapping[str, Any], model: Any) -> Recipe:
    method = _INTERPOLATIONS.get(str(recipe.get("interp_method")))
    if method is None:
        raise InputError(
            f"the recipe's method {recipe.get('interp_method')!r} mixes nothing; "
            f"only {', '.join(_INTERPOLATIONS)} are read"
        )
    keys = ("primary_model_hash", "secondary_model_hash", "tertiary_model_hash")[: COUNTS.get(method, 2)]
    node = Merge(
        method=method,
        inputs=tuple(model(key) for key in keys),
        params=get_method(method).params.from_json({"alpha": float(recipe["multiplier"])}),
    )
    notes = []
    if recipe.get("bake_in_vae") not in (None, "", "None"):
        notes.append(f"the recipe baked in the VAE {recipe['bake_in_vae']}; choose it in 'Repair Merge'")
    if recipe.get("discard_weights"):
        notes.append(f"the recipe discarded weights by {recipe['discard_weights']!r}, which is not done here")
    return _recipe("web UI", node, recipe, "fp16" if recipe.get("save_as_half") else AS_A, notes)


def _read_supermerger(recipe: Mapping[str, Any], model: Any) -> Recipe:
    mode, calculation = str(recipe.get("mode", "")).lower(), str(recipe.get("calcmode", "normal"))
    method = next((name for start, name in _MODES.items() if mode.startswith(start)), None)
    if method is None or (calculation != "normal" and calculation not in _CALCULATIONS):
        raise InputError(f"the recipe's mode {recipe.get('mode')!r} with the calculation {calculation!r} is not known")
    method = _CALCULATIONS.get(calculation, method)
    spec = get_method(method)
    values: dict[str, Any] = {}
    weights = []
    for name, base, vector in (("alpha", "base_alpha", "weights_alpha"), ("beta", "base_beta", "weights_beta")):
        if name not in spec.blocks:
            continue
        values[name] = float(recipe[base])
        if recipe.get("mbw") and recipe.get(vector):
            text = f"{_vector(recipe[vector])} BASE={values[name]:g}"
            elements = str(recipe.get("elemental_merge") or "") if name == "alpha" else ""
            weights.append((name, BlockWeights(text=text, elements=elements)))
    if calculation == "tensor2":
        values["along"] = "columns where there are more than 100"
    keys = ("model_a", "model_b", "model_c")[: COUNTS.get(method, 2)]
    node = Merge(
        method=method, inputs=tuple(model(key) for key in keys), params=spec.params(**values), weights=tuple(weights)
    )
    notes = [f"{key} of the recipe is not read here" for key in ("include", "exclude") if recipe.get(key)]
    return _recipe("SuperMerger", node, recipe, AS_A, notes)


def _vector(value: Any) -> str:
    """The numbers of the blocks, without the base in front where there is one."""
    numbers = [part.strip() for part in value.split(",")] if isinstance(value, str) else [str(part) for part in value]
    return " ".join(numbers[1:] if len(numbers) in (20, 26) else numbers[:19] if len(numbers) == 21 else numbers)


def _recipe(kind: str, node: Merge, recipe: Mapping[str, Any], dtype: str, notes: list[str]) -> Recipe:
    name = str(recipe.get("custom_name") or "")
    return Recipe(kind=kind, results=(Result(name=name, node=node, dtype=dtype),), notes=tuple(notes))


def table_of(value: Any, what: str) -> dict[str, Any]:
    """A table that may be written as a JSON text.

    Raises:
        FormatError: It is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as cause:
            raise FormatError(f"{what} is not valid JSON; take it from a merged file unchanged") from cause
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a table; take it from a merged file unchanged")
    return value
