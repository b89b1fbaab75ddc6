"""Which block-weight row every key of a checkpoint belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache

from ..core.errors import unknown_name
from ..families._spec import families, get_family

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIXES = ("cond_stage_model.", "conditioner.")

TEXT, FIRST_TEXT, SECOND_TEXT = "TE", "TE1", "TE2"
VAE, TIME, LABEL, END, MID = "VAE", "TIME", "LABEL", "END", "MID"
_BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.")
_TEXT_ROWS = (("conditioner.embedders.0.", FIRST_TEXT), ("conditioner.embedders.1.", SECOND_TEXT))


@lru_cache(maxsize=8)
def block_names(family: str) -> tuple[str, ...]:
    """The rows that a vector's numbers stand for, in order: IN00 ... MID ... OUT11 (or OUT08).

    Raises:
        UnknownNameError: There is no such family.
    """
    if family not in families():
        raise unknown_name("model family", family, families())
    return tuple(get_family(family).blocks)


def extra_rows(family: str) -> tuple[str, ...]:
    """The rows beside a vector's: text encoders, VAE, time and label embedding, output layers."""
    two = len(get_family(family).text_encoders) > 1
    return (TEXT, *((FIRST_TEXT, SECOND_TEXT) if two else ()), VAE, TIME, *((LABEL,) if two else ()), END)


def row_of_key(key: str) -> str | None:
    """The row of a key of a checkpoint, None for what belongs to no part (schedules, EMA)."""
    if key.startswith(VAE_PREFIX):
        return VAE
    for prefix, row in _TEXT_ROWS:
        if key.startswith(prefix):
            return row
    if key.startswith(TEXT_PREFIXES):
        return TEXT
    if not key.startswith(UNET_PREFIX):
        return None
    inner = key[len(UNET_PREFIX) :]
    if found := _BLOCK.match(inner):
        return f"{'IN' if found[1] == 'input' else 'OUT'}{int(found[2]):02d}"
    for prefix, row in (("middle_block.", MID), ("time_embed.", TIME), ("label_emb.", LABEL), ("out.", END)):
        if inner.startswith(prefix):
            return row
    return None


def defaults(blocks: tuple[str, ...], values: Mapping[str, float], base: float) -> dict[str, float]:
    """The values of the rows beside the blocks where nothing else is said.

    The text encoders have the base's number, the VAE stays A's, the time and label embedding go with the first block
    (as in SuperMerger and meh; sd-mecha counts them to the base) and the output layers with the last.
    """
    return {
        TEXT: base,
        VAE: 0.0,
        TIME: values.get(blocks[0], base),
        LABEL: values.get(blocks[0], base),
        END: values.get(blocks[-1], base),
    }
