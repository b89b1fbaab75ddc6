"""Rules for single elements of blocks: ``BLOCKS:ELEMENTS:WEIGHT``, the language of elemental block weights.

Source: the elemental rules of LoRA Block Weight and SuperMerger: rules are separated by commas or lines, the blocks of
one by spaces, ranges go over the order of the rows, NOT in front inverts, elements are parts of the key, and a later
rule wins over an earlier one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import InputError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        rows: Names of the rows it holds for; empty for all.
        not_rows: Whether it holds for all others instead.
        parts: Texts of which one must be in the key; empty for all keys.
        not_parts: Whether none of them may be in it instead.
        weight: What it sets.
    """

    rows: frozenset[str]
    not_rows: bool
    parts: tuple[str, ...]
    not_parts: bool
    weight: float

    def holds(self, row: str, key: str) -> bool:
        """Whether the rule is about this key of this row."""
        in_rows = not self.rows or (row in self.rows) != self.not_rows
        in_parts = not self.parts or any(part in key for part in self.parts) != self.not_parts
        return in_rows and in_parts


def parse_rules(text: str, rows: Sequence[str]) -> tuple[Rule, ...]:
    """Reads rules.

    Args:
        text: One or more rules; nothing gives none.
        rows: Every row of the architecture, in the order that ranges go by.

    Raises:
        InputError: A rule is not of the form ``BLOCKS:ELEMENTS:WEIGHT``, or its weight is no number.
        UnknownNameError: The architecture has no such row.
    """
    found = []
    for piece in re.split(r"[,\n]", text):
        if not piece.strip():
            continue
        fields = [field.strip() for field in piece.split(":")]
        if len(fields) != 3:
            raise InputError(
                f"the elemental rule {piece.strip()!r} must be BLOCKS:ELEMENTS:WEIGHT, such as OUT03-OUT05:attn2:0.5 "
                "(blocks or elements may be empty for all)"
            )
        try:
            weight = float(fields[2])
        except ValueError:
            weight = math.nan
        if not math.isfinite(weight):
            raise InputError(f"the elemental rule {piece.strip()!r} ends in {fields[2]!r}, which is no number")
        not_rows, names = _words(fields[0])
        not_parts, parts = _words(fields[1])
        chosen = frozenset(row for name in names for row in rows_named(name, rows))
        found.append(
            Rule(rows=chosen, not_rows=not_rows, parts=tuple(parts), not_parts=not_parts, weight=weight)
        )  # fmt: skip
    return tuple(found)


def _words(field: str) -> tuple[bool, list[str]]:
    words = field.split()
    return (True, words[1:]) if words and words[0].upper() == "NOT" else (False, words)


def rows_named(name: str, rows: Sequence[str]) -> list[str]:
    """The rows that a name or a range means: ``IN04``, ``IN04-IN07``, ``IN04-07``, ``ALL``, ``BASE`` for the texts.

    Raises:
        InputError: A range goes backwards.
        UnknownNameError: There is no such row.
    """
    upper = name.upper()
    if upper == "ALL":
        return list(rows)
    first, dash, last = upper.partition("-")
    if dash and last.isdigit():
        last = f"{first.rstrip('0123456789')}{last}"
    ends = [_row_name(end, rows, name) for end in ((first, last) if dash else (first,))]
    start, stop = rows.index(ends[0]), rows.index(ends[-1])
    if stop < start:
        raise InputError(f"the range of blocks {name!r} goes backwards; write {ends[-1]}-{ends[0]}")
    return list(rows[start : stop + 1])


def _row_name(text: str, rows: Sequence[str], given: str) -> str:
    name = {"BASE": "TE", "M00": "MID"}.get(text, text)
    padded = re.sub(r"^(IN|OUT)(\d)$", r"\g<1>0\2", name)
    for candidate in (name, padded):
        if candidate in rows:
            return candidate
    raise unknown_name("block", given, rows)
