"""Named block-weight vectors in the text format that LoRA Block Weight users share: ``NAME:numbers``."""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ...core.errors import FormatError, StorageError

USER_PRESETS_NAME = "block_presets.txt"
"""File name of a person's own presets in the atelier user folder."""

LETTERS = ("R", "U", "A", "B", "X")
"""Slots that are filled in where a preset is used: R and U at random, A, B and X by the person."""

SHIPPED_PRESETS = Path(__file__).with_name("presets.txt")

Slot = float | str


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One name with its vectors.

    Attributes:
        name: The name as written, case kept.
        vectors: Vectors by length, so that SD 1.x, LoCon and SDXL forms share a name. A slot is a number or a letter.
        origins: Where each vector stands, by length (file name and line), for messages.
    """

    name: str
    vectors: Mapping[int, tuple[Slot, ...]]
    origins: Mapping[int, str]


Presets = Mapping[str, Preset]


def parse_slot(text: str) -> Slot | None:
    """Return the number or letter a slot holds, or None when it is neither."""
    word = text.strip()
    if word.upper() in LETTERS:
        return word.upper()
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def parse_presets(text: str, *, origin: str) -> dict[str, Preset]:
    """Read preset lines.

    Args:
        text: Lines ``NAME:number,number,...``; ``#`` starts a comment line, blank lines are passed over.
        origin: The file's name, for messages.

    Returns:
        Presets by name; a later line replaces an earlier one of the same name and length. A length that no model
        takes is kept here and refused where the preset is used, with the lengths that are right for that file.

    Raises:
        FormatError: A line is not of that form.
    """
    found: dict[str, Preset] = {}
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        name, colon, numbers = line.partition(":")
        name = name.strip()
        slots = [parse_slot(item) for item in numbers.split(",")]
        if not colon or not name or None in slots:
            raise FormatError(
                f"{origin} line {number} is '{line[:60]}', which is not 'NAME:number,number,...' "
                f"(numbers or the letters {' '.join(LETTERS)}); correct or remove the line."
            )
        vector = tuple(slot for slot in slots if slot is not None)
        old = found.get(name)
        found[name] = _with_vector(old, name, vector, f"{origin} line {number}")
    return found


def _with_vector(old: Preset | None, name: str, vector: tuple[Slot, ...], origin: str) -> Preset:
    vectors = dict(old.vectors) if old else {}
    origins = dict(old.origins) if old else {}
    vectors[len(vector)] = vector
    origins[len(vector)] = origin
    return Preset(name=name, vectors=MappingProxyType(vectors), origins=MappingProxyType(origins))


def merge_presets(below: Presets, above: Presets) -> dict[str, Preset]:
    """Lay presets over others: same name and length is replaced, everything else of both is kept."""
    merged = dict(below)
    for name, preset in above.items():
        for length, vector in preset.vectors.items():
            merged[name] = _with_vector(merged.get(name), name, vector, preset.origins[length])
    return merged


def load_presets(user_folder: Path | None = None) -> dict[str, Preset]:
    """Read the shipped presets and, on top of them, a person's own.

    Args:
        user_folder: The atelier user folder; its ``block_presets.txt`` is read if it is there.

    Raises:
        FormatError: A line is not of the form ``NAME:numbers``, or the file is not UTF-8 text.
        StorageError: The file cannot be read.
    """
    presets = dict(_shipped())
    if user_folder is None:
        return presets
    user_file = user_folder / USER_PRESETS_NAME
    if not user_file.is_file():
        return presets
    return merge_presets(presets, parse_presets(_read(user_file), origin=user_file.name))


@functools.cache
def _shipped() -> Presets:
    """The pack's own presets, read once: every node list a page asks for shows some of their names."""
    return MappingProxyType(parse_presets(_read(SHIPPED_PRESETS), origin=SHIPPED_PRESETS.name))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path.name} is not UTF-8 text; save it as UTF-8 in your editor.") from cause
    except OSError as cause:
        raise StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions.") from cause
