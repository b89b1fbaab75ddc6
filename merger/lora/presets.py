"""Named block-weight vectors in the text format that LoRA Block Weight users share: ``NAME:numbers``."""

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from ...core.errors import FormatError, StorageError

USER_PRESETS_NAME = "block_presets.txt"
"""File name of a person's own presets in the atelier user folder."""

LETTERS = ("R", "U", "A", "B", "X")
"""Slots that are filled in where a preset is used: R and U at random, A, B and X by the person."""

SHIPPED_PRESETS = Path(__file__).with_name("presets.txt")

Slot = float | str
"""A number, or a letter: R U X A B, a and b for half of A and B, X+0.2 and X-0.2 for an offset."""

DEFECTIVE: Mapping[tuple[float, ...], str] = MappingProxyType(
    {
        (*(1.0,) * 9, 0.2, 0.2, 0.5, 1.0, 1.0, 0.0, 0.0, 0.0, 0.2, 0.0, 0.0, 0.8, 1.0, 1.0, 1.0, 1.0): (
            "BODY0.5 for LoCon files is shared with 25 numbers where 26 are meant, and nobody can tell which is missing"
        )
    }
)
"""Vectors that are shared with a fault, which would be read as something else."""

_NONE: Mapping[int, str] = MappingProxyType({})
_OFFSET = re.compile(r"^[Xx]([+-]\d*\.?\d+)$")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One name with its vectors.

    Attributes:
        name: The name as written, case kept.
        vectors: Vectors by length, so that SD 1.x, LoCon and SDXL forms share a name. A slot is a number or a letter.
        origins: Where each vector stands, by length (file name and line), for messages.
        replaced: Where another vector of the same length stands that this one takes the place of.
    """

    name: str
    vectors: Mapping[int, tuple[Slot, ...]]
    origins: Mapping[int, str]
    replaced: Mapping[int, str] = field(default_factory=lambda: _NONE)


Presets = Mapping[str, Preset]


def parse_slot(text: str) -> Slot | None:
    """Return the number or letter a slot holds, or None when it is neither."""
    word = text.strip()
    if word in ("a", "b"):
        return word
    if word.upper() in LETTERS:
        return word.upper()
    offset = _OFFSET.match(word)
    if offset:
        return f"X{float(offset[1]):+g}"
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
                f"(numbers or the letters {' '.join(LETTERS)} a b); correct or remove the line."
            )
        vector = tuple(slot for slot in slots if slot is not None)
        old = found.get(name)
        found[name] = _with_vector(old, name, vector, f"{origin} line {number}")
    return found


def _with_vector(old: Preset | None, name: str, vector: tuple[Slot, ...], origin: str) -> Preset:
    vectors = dict(old.vectors) if old else {}
    origins = dict(old.origins) if old else {}
    replaced = dict(old.replaced) if old else {}
    length = len(vector)
    if length in vectors and vectors[length] != vector:
        replaced[length] = origins[length]
    vectors[length], origins[length] = vector, origin
    tables = (MappingProxyType(vectors), MappingProxyType(origins), MappingProxyType(replaced))
    return Preset(name=name, vectors=tables[0], origins=tables[1], replaced=tables[2])


def merge_presets(below: Presets, above: Presets) -> dict[str, Preset]:
    """Lay presets over others: same name and length is replaced, everything else of both is kept."""
    merged = dict(below)
    for name, preset in above.items():
        for length, vector in preset.vectors.items():
            laid = _with_vector(merged.get(name), name, vector, preset.origins[length])
            if length in preset.replaced and length not in laid.replaced:
                laid = replace(laid, replaced=MappingProxyType({**laid.replaced, length: preset.replaced[length]}))
            merged[name] = laid
    return merged


def clashes(presets: Presets) -> list[str]:
    """One sentence per vector that takes the place of another one of the same name and length."""
    return [
        f"Preset {preset.name} with {length} numbers of {preset.origins[length]} takes the place of the one of {place}."
        for preset in presets.values()
        for length, place in sorted(preset.replaced.items())
    ]


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
    return merge_presets(presets, parse_presets(read_preset_text(user_file), origin=user_file.name))


@functools.cache
def _shipped() -> Presets:
    """The pack's own presets, read once: every node list a page asks for shows some of their names."""
    return MappingProxyType(parse_presets(read_preset_text(SHIPPED_PRESETS), origin=SHIPPED_PRESETS.name))


def read_preset_text(path: Path) -> str:
    """The text of a file of presets.

    Raises:
        FormatError: It is not UTF-8.
        StorageError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path.name} is not UTF-8 text; save it as UTF-8 in your editor.") from cause
    except OSError as cause:
        raise StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions.") from cause
