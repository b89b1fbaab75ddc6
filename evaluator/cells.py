"""One cell of a grid: everything a picture depends on, and how an axis value changes it."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..core.errors import InputError


class LoraHandle(Protocol):
    """What a grid needs to know of a LoRA; the merger's handle has these fields and is a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def name(self) -> str:
        """Its name below the loras folder."""

    @property
    def sha256(self) -> str:
        """Hash of the file."""

    @property
    def strength_model(self) -> float:
        """Factor of the UNet's deltas."""

    @property
    def strength_clip(self) -> float:
        """Factor of the text encoder's deltas."""

    @property
    def block_weights(self) -> str:
        """Preset name or numbers."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Inputs of one picture. `loras` are applied in order on top of what the model already carries."""

    prompt: str
    negative: str = ""
    seed: int = 0
    steps: int = 20
    cfg: float = 7.0
    sampler: str = "euler"
    scheduler: str = "normal"
    width_px: int = 512
    height_px: int = 512
    denoise: float = 1.0
    loras: tuple[LoraHandle, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain values; a LoRA by name, hash, strengths and block weights, never by its path."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["loras"] = [
            {
                "name": lora.name,
                "sha256": lora.sha256,
                "strength_model": float(lora.strength_model),
                "strength_clip": float(lora.strength_clip),
                "block_weights": lora.block_weights,
            }
            for lora in self.loras
        ]
        values["cfg"], values["denoise"] = float(self.cfg), float(self.denoise)
        return values

    def key(self, identity: str) -> str:
        """Return the hash of everything the picture depends on.

        Args:
            identity: What the base model, its VAE and the sampling code are, as one text.
        """
        values = self.to_json()
        for lora in values["loras"]:
            del lora["name"]
        text = json.dumps([identity, values], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()


FIELDS = tuple(field.name for field in dataclasses.fields(Cell) if field.name != "loras")
"""Cell fields that an axis value may set outright."""

ADD_LORAS = "add_loras"
"""Change: LoRA handles put after those of the base cell; an empty tuple is the column without."""
LORA_STRENGTH = "lora_strength"
"""Change: strength of the LoRAs that axes added, or of the base cell's where no axis adds one."""
LORA_BLOCK_WEIGHTS = "lora_block_weights"
"""Change: block weights of the same LoRAs; where the own block weights of one say XYZ or ZYX, only of those."""
PROMPT_REPLACE = "prompt_replace"
"""Change: ``((search, replacement), ...)`` in prompt and negative prompt."""
SEED_SHIFT = "seed_shift"
"""Change: added to the seed, whoever set it."""
MAX_SEED = 2**64 - 1

OPERATIONS = (ADD_LORAS, LORA_STRENGTH, LORA_BLOCK_WEIGHTS, PROMPT_REPLACE, SEED_SHIFT)


def combine(changes: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Put the changes of several axes together.

    Raises:
        InputError: Two axes set the same thing, or a change is unknown.
    """
    combined: dict[str, Any] = {}
    for change in changes:
        for name, value in change.items():
            if name in (ADD_LORAS, PROMPT_REPLACE):
                combined[name] = (*combined.get(name, ()), *value)
            elif name in combined:
                raise InputError(f"Both axes set {name}, so one would hide the other; choose two different axes.")
            elif name in FIELDS or name in OPERATIONS:
                combined[name] = value
            else:
                raise InputError(
                    f"An axis changes '{name}', which is no part of a cell; allowed: {', '.join(FIELDS + OPERATIONS)}."
                )
    return combined


def changed(cell: Cell, changes: Mapping[str, Any]) -> Cell:
    """Return the cell with the changes applied: fields first, then search and replace, then LoRAs and their settings.

    Raises:
        InputError: A search word does not occur, or a strength or block-weight axis has no LoRA to act on.
    """
    result = dataclasses.replace(cell, **{name: value for name, value in changes.items() if name in FIELDS})
    if SEED_SHIFT in changes:
        result = dataclasses.replace(result, seed=(result.seed + changes[SEED_SHIFT]) & MAX_SEED)
    pairs = changes.get(PROMPT_REPLACE, ())
    if pairs:
        result = _replaced(result, pairs)
    added = tuple(changes.get(ADD_LORAS, ()))
    settings: dict[str, Any] = {}
    if LORA_STRENGTH in changes:
        settings.update(strength_model=changes[LORA_STRENGTH], strength_clip=changes[LORA_STRENGTH])
    if LORA_BLOCK_WEIGHTS in changes:
        settings["block_weights"] = changes[LORA_BLOCK_WEIGHTS]
    if settings and ADD_LORAS not in changes and not cell.loras:
        raise InputError(
            "An axis changes the strength or block weights of a LoRA, but there is none: "
            "connect a LoRA to that axis, or use a LoRA axis as the other one."
        )
    base = cell.loras
    if settings and ADD_LORAS in changes:
        added = _all_with(added, settings)
    elif settings:
        base = _all_with(base, settings)
    return dataclasses.replace(result, loras=(*base, *added))


_CELL_WORD = re.compile(r"\b(XYZ|ZYX)\b(?!\s*=)")
"""In a LoRA's block weights: this cell's vector, and one minus it (the words of the web UI's extension)."""


def _all_with(loras: tuple[LoraHandle, ...], settings: Mapping[str, Any]) -> tuple[LoraHandle, ...]:
    weights = settings.get("block_weights")
    if weights is None or not any(_CELL_WORD.search(lora.block_weights) for lora in loras):
        return tuple(dataclasses.replace(lora, **settings) for lora in loras)

    def in_cell(lora: LoraHandle) -> str:
        return _CELL_WORD.sub(lambda found: f"{found[1]}={weights}", lora.block_weights)

    return tuple(dataclasses.replace(lora, **{**settings, "block_weights": in_cell(lora)}) for lora in loras)


def _replaced(cell: Cell, pairs: Sequence[tuple[str, str]]) -> Cell:
    """Replace all search words in one pass, so that two axes on the same text do not undo each other."""
    table: dict[str, str] = {}
    for search, replacement in pairs:
        if search not in cell.prompt and search not in cell.negative:
            raise InputError(
                f"The search word '{search}' occurs neither in the prompt nor in the negative prompt; "
                "the first entry of a search and replace axis must be text that is there."
            )
        if table.get(search, replacement) != replacement:
            raise InputError(f"Both axes replace '{search}'; give each axis a search word of its own.")
        table[search] = replacement
    longest_first = sorted(table, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(search) for search in longest_first))

    def replaced(text: str) -> str:
        return pattern.sub(lambda found: table[found.group()], text)

    return dataclasses.replace(cell, prompt=replaced(cell.prompt), negative=replaced(cell.negative))


def drawing_order(cells: Sequence[Cell]) -> list[int]:
    """Return the order in which cells are drawn, as indices.

    What costs most to change varies slowest: the set of LoRA files, then their strengths and block weights, then the
    texts (encoded under those LoRAs), then the size, then the sampler's settings, then the seed. Within a level the
    order of first appearance is kept.
    """
    levels = [_levels(cell) for cell in cells]
    ranks: list[dict[Any, int]] = [{} for _ in levels[0]] if levels else []
    for level in levels:
        for rank, value in zip(ranks, level, strict=True):
            rank.setdefault(value, len(rank))
    return sorted(
        range(len(cells)),
        key=lambda index: [rank[value] for rank, value in zip(ranks, levels[index], strict=True)],
    )


def _levels(cell: Cell) -> tuple[Any, ...]:
    return (
        tuple(lora.sha256 for lora in cell.loras),
        tuple((lora.strength_model, lora.strength_clip, lora.block_weights) for lora in cell.loras),
        (cell.prompt, cell.negative),
        (cell.width_px, cell.height_px),
        (cell.sampler, cell.scheduler, cell.steps, cell.cfg, cell.denoise),
        cell.seed,
    )
