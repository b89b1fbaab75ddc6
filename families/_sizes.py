"""The sizes of a model's parts: the published ones, or those in the metadata of a tiny relative."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ..core.errors import FormatError
from ..core.tensors import Header

SIZES_KEY = "atelier.sizes"
_MAX_SIZE = 65536
_MAX_LAYERS = 64
_FIXED = {
    ("unet", "layers_per_block"),
    ("unet", "addition_time_embed_dim"),
    ("vae", "scaling_factor"),
    ("vae", "latent_channels"),
}
"""What the families' own code counts on: the blocks' names, the scale of the latents, the size embedding."""


def sizes_of(header: Header, published: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The published sizes, or those of the metadata `atelier.sizes`.

    Args:
        header: of the checkpoint.
        published: part -> configuration of the full-size model.

    Raises:
        FormatError: the metadata is not JSON, or a size is not one this family can have.
    """
    text = header.metadata.get(SIZES_KEY)
    if text is None:
        return {part: dict(config) for part, config in published.items()}
    try:
        given = json.loads(text)
        return {part: _merged(part, config, dict(given[part])) for part, config in published.items()}
    except (ValueError, KeyError, TypeError) as cause:
        raise FormatError(f"the metadata atelier.sizes of the base model is broken ({cause}); make it again") from cause


def _merged(part: str, published: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The published configuration with the given numbers; only numbers may differ, and only reasonable ones."""
    config = dict(published)
    if part.startswith("text_encoder") and "vocab_size" in given:
        last = given["vocab_size"] - 1  # start and end are the last two tokens of a CLIP vocabulary
        given = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last, **given}
    for key, original in published.items():
        value = given.get(key, original)
        value = tuple(value) if isinstance(original, tuple) else value
        if value != original and ((part, key) in _FIXED or not _is_size(value, original, key)):
            raise ValueError(f"{part}.{key} is {value!r}")
        config[key] = value
    return config


def _is_size(value: Any, published: Any, key: str) -> bool:
    """Whether `value` can stand in for a published size: as many numbers, whole where those are whole, in reason."""
    numbers, originals = _as_tuple(value), _as_tuple(published)
    most = _MAX_LAYERS if "layers" in key else _MAX_SIZE
    return len(numbers) == len(originals) and all(
        type(number) is type(original) and not isinstance(original, (str, bool)) and 0 < number <= most
        for number, original in zip(numbers, originals, strict=True)
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
