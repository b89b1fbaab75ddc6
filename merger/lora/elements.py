"""Elemental rules: a weight for modules by block and by a part of their name, laid over the block weights.

``BLOCKS:ELEMENTS:WEIGHT``, several joined by comma or line break, or the name of a set in ``elements.txt``. Source:
the LoRA Block Weight extension (``lbwe=``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ...core.errors import FormatError, InputError, unknown_name
from ...families._spec import Family
from ...networks._blocks import expand_selection
from .presets import read_preset_text

SHIPPED_ELEMENTS = Path(__file__).with_name("elements.txt")
USER_ELEMENTS_NAME = "block_elements.txt"
"""File name of a person's own sets in the atelier user folder."""


@dataclass(frozen=True, kw_only=True)
class ElementRule:
    """One rule.

    Attributes:
        blocks: Names and ranges, "" for all.
        elements: Parts of module names, each of which is enough; empty for all.
        inverted: Whether modules without any of the elements are meant.
        weight: What the hit modules are set to.
    """

    blocks: str
    elements: tuple[str, ...]
    inverted: bool
    weight: float

    def written(self) -> str:
        """The rule as it is written."""
        return f"{self.blocks}:{'NOT ' if self.inverted else ''}{' '.join(self.elements)}:{self.weight:g}"


ElementSets = Mapping[str, tuple[ElementRule, ...]]


def parse_rule(text: str, *, origin: str = "") -> ElementRule:
    """Read one rule.

    Raises:
        InputError: It has not two colons, or no number at its end.
    """
    parts = text.split(":")
    try:
        weight = float(parts[-1])
    except ValueError:
        weight = math.nan
    if len(parts) != 3 or not math.isfinite(weight):
        raise InputError(
            f"{origin}'{text.strip()[:60]}' is no elemental rule; write BLOCKS:ELEMENTS:WEIGHT, such as "
            "IN05-OUT05:attn:0, or the name of a set."
        )
    words = parts[1].split()
    inverted = bool(words) and words[0].upper() == "NOT"
    elements = tuple(words[1:] if inverted else words)
    if inverted and not elements:
        raise InputError(f"{origin}'{text.strip()[:60]}' names no element after NOT; name one, such as NOT attn.")
    return ElementRule(blocks=" ".join(parts[0].split()), elements=elements, inverted=inverted, weight=weight)


def parse_sets(text: str, *, origin: str) -> dict[str, tuple[ElementRule, ...]]:
    """Read lines ``NAME:BLOCKS:ELEMENTS:WEIGHT`` and the nameless lines that go on with a set.

    Raises:
        FormatError: A line is not of that form.
    """
    found: dict[str, tuple[ElementRule, ...]] = {}
    name = ""
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), start=1):
        line = raw.strip()
        if not line:
            name = ""
        if not line or line.startswith("#"):
            continue
        if line.count(":") == 3:
            name, _, line = line.partition(":")
            name = name.strip()
            found[name] = ()
        if not name:
            raise FormatError(
                f"{origin} line {number} is '{raw.strip()[:60]}', which is not NAME:BLOCKS:ELEMENTS:WEIGHT; correct or "
                "remove the line."
            )
        try:
            found[name] = (*found[name], *(parse_rule(rule) for rule in line.split(",")))
        except InputError as cause:
            raise FormatError(f"{origin} line {number}: {cause}") from cause
    return found


def load_elements(user_folder: Path | None = None) -> dict[str, tuple[ElementRule, ...]]:
    """Read the shipped sets and, on top of them, a person's own.

    Raises:
        FormatError: A line is not of the form, or the file is not UTF-8 text.
        StorageError: The file cannot be read.
    """
    sets = dict(_shipped())
    user_file = None if user_folder is None else user_folder / USER_ELEMENTS_NAME
    if user_file is not None and user_file.is_file():
        sets.update(parse_sets(read_preset_text(user_file), origin=user_file.name))
    return sets


@functools.cache
def _shipped() -> ElementSets:
    text = read_preset_text(SHIPPED_ELEMENTS)
    return MappingProxyType(parse_sets(text, origin=SHIPPED_ELEMENTS.name))


def parse_elements(text: str, sets: ElementSets) -> tuple[ElementRule, ...]:
    """Rules of a ``lbwe=`` text: rules and names of sets, joined by commas or line breaks.

    Raises:
        InputError: A rule is malformed.
        UnknownNameError: No set has that name.
    """
    rules: list[ElementRule] = []
    by_case = {name.casefold(): name for name in sets}
    for item in (part.strip() for part in text.replace("\n", ",").split(",")):
        if not item:
            continue
        if item.casefold() in by_case:
            rules += sets[by_case[item.casefold()]]
        elif ":" in item:
            # NAME:BLOCKS:ELEMENTS:WEIGHT, as a line of a file, is taken without its name.
            rules.append(parse_rule(item.partition(":")[2] if item.count(":") == 3 else item))
        else:
            raise unknown_name("elemental set", item, sets)
    return tuple(rules)


def apply_elements(
    factors: dict[str, float], rules: tuple[ElementRule, ...], family: Family
) -> list[tuple[ElementRule, int]]:
    """Set the factor of every module that a rule hits; a later rule wins.

    An element is looked for in the module's name as the file has it and in its LDM name, whatever the case.

    Returns:
        The rules with the number of modules each one hit.

    Raises:
        UnknownNameError: A rule names a block that the family does not have.
    """
    counts = []
    for rule in rules:
        blocks = set(expand_selection(rule.blocks, family.blocks))
        words = [word.lower() for word in rule.elements]
        hits = 0
        for stem in factors:
            if family.block_of_stem(stem) not in blocks:
                continue
            name = f"{stem} {family.ldm_name(stem)}".lower()
            if words and any(word in name for word in words) == rule.inverted:
                continue
            factors[stem] = rule.weight
            hits += 1
        counts.append((rule, hits))
    return counts
