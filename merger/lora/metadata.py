"""The metadata of a LoRA file that an operation writes: sizes, ancestors, and the recipe to make it again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...core.errors import InputError
from ...families._spec import Family, Variant
from .drafts import Made
from .handle import Lora

RECIPE = "atelier.lora_recipe"
"""Metadata that holds the operation, its settings and its inputs as JSON."""

_NETWORK_KEYS = ("ss_network_module", "ss_network_dim", "ss_network_alpha", "ss_network_args")
_HASH_KEYS = ("sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
_SHARED_KEYS = ("ss_base_model_version", "ss_v2", "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash",
                "ss_clip_skip", "modelspec.architecture", "modelspec.implementation", "modelspec.prediction_type",
                "modelspec.resolution", "modelspec.encoder_layer", "modelspec.license")  # fmt: skip
"""What a LoRA made of several says where all of them that say it agree."""


def recipe(operation: str, settings: Mapping[str, Any], inputs: Sequence[Any]) -> dict[str, Any]:
    """What a file was made by: the same recipe gives the same file.

    Args:
        operation: such as "resize".
        settings: as JSON values.
        inputs: handles of LoRAs, or JSON values for others.
    """
    return {"operation": operation, "settings": dict(settings), "inputs": [_input(one) for one in inputs]}


def _input(one: Any) -> Any:
    if not isinstance(one, Lora):
        return one
    return {
        "name": one.name,
        "sha256": one.sha256,
        "strength_model": one.strength_model,
        "strength_clip": one.strength_clip,
        "block_weights": one.block_weights,
    }


def recipe_of(metadata: Mapping[str, str]) -> Any:
    """The recipe of a file, None where it has none that can be read."""
    try:
        return json.loads(metadata.get(RECIPE, "null"))
    except ValueError:
        return None


def network_values(modules: Iterable[Made]) -> dict[str, str]:
    """`ss_network_*` of plain LoRA modules; kohya's word for sizes that differ is Dynamic."""
    made = [module for module in modules if module.rank]
    linear = [module for module in made if not module.is_spatial]
    spatial = [module for module in made if module.is_spatial]
    arguments = {}
    if spatial and linear:
        arguments = {"conv_dim": _common_rank(spatial), "conv_alpha": _common_alpha(spatial)}
    values = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": _common_rank(linear or spatial),
        "ss_network_alpha": _common_alpha(linear or spatial),
    }
    return {**values, "ss_network_args": json.dumps(arguments)} if arguments else values


def _common_rank(modules: Sequence[Made]) -> str:
    return _common([str(module.rank) for module in modules])


def _common_alpha(modules: Sequence[Made]) -> str:
    return _common([f"{module.scale * (module.rank or 1):g}" for module in modules])


def _common(values: Sequence[str]) -> str:
    return values[0] if len(set(values)) == 1 else "Dynamic" if values else "None"


def resized_metadata(metadata: Mapping[str, str], modules: Sequence[Made]) -> dict[str, str]:
    """The source's metadata with the new sizes."""
    kept = {key: value for key, value in metadata.items() if key not in (*_NETWORK_KEYS, *_HASH_KEYS, RECIPE)}
    return {**kept, **network_values(modules)}


def merged_metadata(
    sources: Sequence[tuple[str, Mapping[str, str]]], modules: Sequence[Made], family: Family
) -> dict[str, str]:
    """What a LoRA made of several says: what they agree on, their tags added up, and who they were.

    Args:
        sources: name and metadata of each.
        modules: of the result.
        family: of all.
    """
    told: dict[str, str] = {}
    for key in _SHARED_KEYS:
        values = {metadata[key] for _, metadata in sources if key in metadata}
        if len(values) == 1:
            told[key] = values.pop()
    tags = merged_tags([metadata.get("ss_tag_frequency", "") for _, metadata in sources])
    if tags:
        told["ss_tag_frequency"] = json.dumps(tags, ensure_ascii=False)
    phrases = [
        metadata["modelspec.trigger_phrase"] for _, metadata in sources if "modelspec.trigger_phrase" in metadata
    ]
    if phrases:
        told["modelspec.trigger_phrase"] = ", ".join(dict.fromkeys(phrases))
    told["modelspec.merged_from"] = ", ".join(name for name, _ in sources)
    return {**family_metadata(family), **told, **network_values(modules)}


def family_metadata(family: Family, variant: Variant | None = None) -> dict[str, str]:
    """What every LoRA of a family says of its base, as texts."""
    facts = family.file_facts(variant or Variant())
    return {"modelspec.sai_model_spec": "1.0.1", **{key: str(value) for key, value in facts.items()}}


def tag_counts(text: str) -> dict[str, dict[str, int]]:
    """`ss_tag_frequency`: folder -> tag -> pictures; empty where it is missing or not of that form."""
    try:
        data = json.loads(text or "{}")
    except ValueError:
        return {}
    if not isinstance(data, dict):
        return {}
    counts: dict[str, dict[str, int]] = {}
    for folder, tags in data.items():
        if isinstance(tags, dict):
            counts[str(folder)] = {str(tag): int(n) for tag, n in tags.items() if isinstance(n, (int, float))}
    return counts


def merged_tags(texts: Iterable[str]) -> dict[str, dict[str, int]]:
    """The tag counts of several files added up by folder."""
    total: dict[str, dict[str, int]] = {}
    for text in texts:
        for folder, tags in tag_counts(text).items():
            known = total.setdefault(folder, {})
            for tag, count in tags.items():
                known[tag] = known.get(tag, 0) + count
    return total


def stamped(metadata: Mapping[str, str], *, title: str, made_by: Mapping[str, Any]) -> dict[str, str]:
    """Metadata with title, date and recipe; hashes of an older file are taken out.

    Raises:
        InputError: a text cannot be written.
    """
    kept = {key: value for key, value in metadata.items() if key not in _HASH_KEYS}
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())
    try:
        told = json.dumps(made_by, ensure_ascii=False, sort_keys=True, allow_nan=False)
        told.encode("utf-8")
    except (ValueError, UnicodeEncodeError) as cause:
        raise InputError(f"the settings cannot be written into the file ({cause}); type them anew.") from cause
    return {**kept, "modelspec.title": title, "modelspec.date": date, RECIPE: told}
