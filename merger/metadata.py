"""What a merged file says of itself: modelspec, and the whole recipe, so that it can be made again."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.params import Params, param
from ..core.tensors import Header
from .expression import Model, Node, to_json
from .plan import OutputParams, Plan

RECIPE_KEY = "atelier.merge_recipe"
WEBUI_RECIPE_KEY, WEBUI_MODELS_KEY = "sd_merge_recipe", "sd_merge_models"
RECIPE_TYPE = "lora-atelier"
KEPT_KEYS = ("atelier.family", "atelier.sizes", "atelier.tokenizer", "modelspec.architecture",
             "modelspec.implementation", "modelspec.resolution", "modelspec.prediction_type")  # fmt: skip
"""Metadata of the first model that is true of the merge as well."""
_ARCHITECTURES = {"sd15": "stable-diffusion-v1", "sdxl": "stable-diffusion-xl-v1-base"}
_SAMPLES, _SAMPLE_BYTES = 64, 4096


@dataclass(frozen=True, kw_only=True)
class LabelParams(Params):
    """What people read in the file."""

    title: str = param("", doc="Title in the file's metadata; empty for the file's name.", advanced=True)
    author: str = param("", doc="Author in the file's metadata.", advanced=True)
    description: str = param("", doc="Description in the file's metadata.", advanced=True, multiline=True)
    license: str = param("", doc="License in the file's metadata.", advanced=True)


def recipe_json(root: Node, output: OutputParams) -> dict[str, Any]:
    """The whole recipe: the tree and what the result is like."""
    return {**to_json(root), "output": output.to_json()}


def recipe_hash(data: Mapping[str, Any], identities: Mapping[str, str]) -> str:
    """SHA-256 of a recipe and of the models it names: two files of one hash hold the same numbers."""
    said = json.dumps({"recipe": data, "models": identities}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(said.encode("utf-8")).hexdigest()


def identity(path: Path) -> str:
    """Hash of a file's size, header and samples over its length: tells fine-tunes apart without reading gigabytes."""
    size_bytes = path.stat().st_size
    digest = hashlib.sha256(str(size_bytes).encode())
    with open(path, "rb") as file:
        start = file.read(8)
        length = min(struct.unpack("<Q", start)[0] if len(start) == 8 else 0, size_bytes)
        digest.update(file.read(length))
        last = max(0, size_bytes - _SAMPLE_BYTES)
        for number in range(_SAMPLES):
            file.seek(last * number // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def identities(models: Mapping[Model, Any]) -> dict[str, str]:
    """Identity of every model's file by its name, and of the VAE files that stand in."""
    found = {model.name: identity(model.path) for model in models}
    found.update({model.vae_name: identity(model.vae_path) for model in models if model.vae_path is not None})
    return found


def metadata_of(plan: Plan, label: LabelParams, *, name: str) -> dict[str, str]:
    """The metadata of a merged file.

    Args:
        plan: What is merged.
        label: What people read.
        name: Of the file, for the title.
    """
    first = next(iter(plan.models.values()))
    recipe = recipe_json(plan.root, plan.output)
    seen = identities(plan.models)
    data = {"format": "pt"}
    data.update({key: value for key, value in first.header.metadata.items() if key in KEPT_KEYS})
    data["modelspec.sai_model_spec"] = "1.0.1"
    data.setdefault("modelspec.architecture", _architecture(plan.family))
    data.setdefault("modelspec.implementation", "https://github.com/Stability-AI/generative-models")
    data["modelspec.title"] = label.title or name
    data["modelspec.merged_from"] = ", ".join(model.name for model in plan.models)
    for field in ("author", "description", "license"):
        if getattr(label, field):
            data[f"modelspec.{field}"] = getattr(label, field)
    data[RECIPE_KEY] = json.dumps(recipe, ensure_ascii=False, separators=(",", ":"))
    data[WEBUI_RECIPE_KEY] = json.dumps(
        {"type": RECIPE_TYPE, "custom_name": name, "recipe": recipe, "hash": recipe_hash(recipe, seen)},
        ensure_ascii=False,
    )
    data[WEBUI_MODELS_KEY] = json.dumps(
        {seen[model.name]: _model_facts(model, opened.header) for model, opened in plan.models.items()},
        ensure_ascii=False,
    )
    return data


def _architecture(family: str) -> str:
    return _ARCHITECTURES.get(family, "stable-diffusion-v2-768-v")


def _model_facts(model: Model, header: Header) -> dict[str, Any]:
    """As the web UI lists an ingredient; its own recipe comes along, so that a chain of merges stays readable."""
    facts: dict[str, Any] = {"name": model.name}
    own = header.metadata.get(WEBUI_RECIPE_KEY)
    if own is not None and len(own) < 2**16:
        try:
            facts[WEBUI_RECIPE_KEY] = json.loads(own)
        except ValueError:
            facts[WEBUI_RECIPE_KEY] = own
    return facts


def made_by(header: Header) -> str | None:
    """The hash of the recipe that a file was made by; None where it is no merge of ours."""
    try:
        said = json.loads(header.metadata.get(WEBUI_RECIPE_KEY, "null"))
    except ValueError:
        return None
    return said.get("hash") if isinstance(said, dict) and said.get("type") == RECIPE_TYPE else None
