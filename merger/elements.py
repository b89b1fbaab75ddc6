"""Elemental rules of a merge: the language of elemental block weights, over the tensors of a checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..networks._blocks import expand_selection
from .block_rows import FIRST_TEXT, SECOND_TEXT, TEXT, VAE
from .lora.elements import ElementSets, load_elements, parse_elements

_TEXT_ROWS = (TEXT, FIRST_TEXT, SECOND_TEXT)


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        rows: The rows it holds for.
        parts: Texts, in lower case, of which one must be in the key; empty for all keys.
        inverted: Whether none of them may be in it instead.
        weight: What it sets.
        written: The rule as it was written.
    """

    rows: frozenset[str]
    parts: tuple[str, ...]
    inverted: bool
    weight: float
    written: str

    def holds(self, row: str, key: str) -> bool:
        """Whether the rule is about this key of this row."""
        if row not in self.rows:
            return False
        lower = key.lower()
        return not self.parts or any(part in lower for part in self.parts) != self.inverted


def parse_rules(text: str, rows: Sequence[str], sets: ElementSets | None = None) -> tuple[Rule, ...]:
    """Reads rules ``BLOCKS:ELEMENTS:WEIGHT`` and names of sets, separated by commas or lines; a later rule wins.

    Args:
        text: The rules; nothing gives none.
        rows: Every row of the architecture, in the order that ranges go by. The VAE is meant only where it is named.
        sets: Named sets of rules; the shipped ones by default.

    Raises:
        InputError: A rule is not of that form, or a range goes backwards.
        UnknownNameError: The architecture has no such row, or there is no such set.
    """
    if not text.strip():
        return ()
    found = []
    for rule in parse_elements(text, load_elements() if sets is None else sets):
        chosen = set(expand_selection(rule.blocks, rows))
        if VAE not in rule.blocks.upper().split():
            chosen.discard(VAE)
        if TEXT in chosen:
            chosen.update(_TEXT_ROWS)
        found.append(
            Rule(
                rows=frozenset(chosen),
                parts=tuple(part.lower() for part in rule.elements),
                inverted=rule.inverted,
                weight=rule.weight,
                written=rule.written(),
            )
        )
    return tuple(found)
