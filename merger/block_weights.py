"""Block weights of a merge: a text with a vector or a curve and single rows, resolved for the models' architecture."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError, unknown_name
from ..networks._blocks import expand_selection
from .block_curves import CURVES, curve_values
from .block_rows import END, FIRST_TEXT, SECOND_TEXT, TEXT, VAE, block_names, defaults, extra_rows, row_of_key
from .elements import Rule, parse_rules
from .lora.presets import Preset, parse_slot

_ASSIGNMENT = re.compile(r"([A-Za-z][\w*/-]*)\s*=\s*([^\s,;]+)")
_SEPARATORS = re.compile(r"[\s,;]+")
LEAST, MOST = -4.0, 4.0


@dataclass(frozen=True, kw_only=True)
class BlockWeights:
    """Block weights as a person wrote them.

    Attributes:
        text: A curve's or preset's name or the numbers, and single rows as ``ROW=number``; empty for one value.
        elements: Rules for elements, which win over the rows.
        vectors: The owner's own presets that the text may name, as (name, numbers); carried along so that a recipe
            means the same elsewhere.
    """

    text: str = ""
    elements: str = ""
    vectors: tuple[tuple[str, tuple[float, ...]], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        data: dict[str, Any] = {"text": self.text, "elements": self.elements}
        if self.vectors:
            data["vectors"] = {name: list(numbers) for name, numbers in self.vectors}
        return data

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> BlockWeights:
        """From :meth:`to_json`."""
        vectors = data.get("vectors", {})
        return cls(
            text=str(data.get("text", "")),
            elements=str(data.get("elements", "")),
            vectors=tuple((str(name), tuple(float(value) for value in row)) for name, row in vectors.items()),
        )

    def resolve(self, family: str, base: float) -> ResolvedRows:
        """The weight of every row of an architecture.

        Args:
            family: Of the models.
            base: The value where the text says nothing: the method's own parameter.

        Raises:
            InputError: A vector of the wrong length (the right ones are named), a value that is no number or too large.
            UnknownNameError: A preset or a row that is not known.
        """
        blocks, extras = block_names(family), extra_rows(family)
        rows = (*extras[:1], *blocks, *extras[1:])
        given = [(name, number) for name, number in _ASSIGNMENT.findall(self.text)]
        bare = [word for word in _SEPARATORS.split(_ASSIGNMENT.sub(" ", self.text)) if word]
        own_base, values = self._vector(bare, blocks, base)
        for name, number in given:
            if name.upper() == "BASE":
                own_base = _number(name, number)
        rows_set = {**defaults(blocks, values, own_base), **values}
        for name, number in given:
            if name.upper() != "BASE":
                word = END if name.upper() == "OUT" else name  # the output layers; a vector's rows are OUT00 ...
                rows_set.update(dict.fromkeys(expand_selection(word, rows), _number(name, number)))
        for row in (FIRST_TEXT, SECOND_TEXT):
            rows_set.setdefault(row, rows_set[TEXT])
        weights = {row: rows_set[row] for row in rows}
        return ResolvedRows(weights=weights, rules=parse_rules(self.elements, rows))

    def _vector(self, words: list[str], blocks: tuple[str, ...], base: float) -> tuple[float, dict[str, float]]:
        """The base's number and one per block."""
        if not words:
            return base, dict.fromkeys(blocks, base)
        slots = [parse_slot(word) for word in words]
        if len(words) == 1 and not isinstance(slots[0], float):
            return self._named(words[0], blocks, base)
        wrong = next((word for word, slot in zip(words, slots, strict=True) if not isinstance(slot, float)), None)
        if wrong is not None:
            raise InputError(
                f"{wrong!r} in the block weights is not a number; give numbers, or one curve such as GRAD_V, and rows "
                "as VAE=0"
            )
        numbers = tuple(slot for slot in slots if isinstance(slot, float))
        for number in numbers:
            _checked("block weights", number)
        return fitted(numbers, blocks, base)

    def _named(self, word: str, blocks: tuple[str, ...], base: float) -> tuple[float, dict[str, float]]:
        own = {name.upper(): row for name, row in self.vectors}
        if word.upper() in own:
            return fitted(own[word.upper()], blocks, base)
        name = word.upper().replace("REVERSE-", "REVERSE_")
        if name not in CURVES:
            raise unknown_name("curve of block weights", word, [*own, *CURVES])
        values = dict(zip(blocks, curve_values(name, len(blocks)), strict=True))
        return {"ALL_A": 0.0, "ALL_B": 1.0}.get(name, base), values


def fitted(numbers: tuple[float, ...], blocks: tuple[str, ...], base: float) -> tuple[float, dict[str, float]]:
    """The base's number and one per block out of a vector with or without the base in front.

    Raises:
        InputError: It has another length; the right ones are named.
    """
    count = len(blocks)
    if len(numbers) == count:
        return base, dict(zip(blocks, numbers, strict=True))
    if len(numbers) == count + 1:
        return numbers[0], dict(zip(blocks, numbers[1:], strict=True))
    order = f"{blocks[0]}-{blocks[count // 2 - 1]} MID OUT00-{blocks[-1]}"
    raise InputError(
        f"the block weights have {len(numbers)} numbers; a merge of these models takes {count} ({order}) or "
        f"{count + 1} (BASE in front, for the text encoders)"
    )


def _number(name: str, text: str) -> float:
    value = parse_slot(text)
    if not isinstance(value, float):
        raise InputError(f"{name}={text} in the block weights is not a number; write {name}=0.5, for example")
    return _checked(name, value)


def _checked(name: str, value: float) -> float:
    if not LEAST <= value <= MOST:
        raise InputError(f"{name} has the weight {value:g}, allowed is {LEAST:g} to {MOST:g} (0 keeps A, 1 is all B)")
    return value


@dataclass(frozen=True, kw_only=True)
class ResolvedRows:
    """The weight of every row, and the rules that win over it.

    Attributes:
        weights: By row.
        rules: In order; a later one wins.
    """

    weights: Mapping[str, float]
    rules: tuple[Rule, ...]

    def of(self, key: str) -> float:
        """The weight of a key; what belongs to no row has the VAE's, which keeps A unless said otherwise."""
        row = row_of_key(key)
        weight = self.weights.get(row or VAE, 0.0)
        for rule in self.rules:
            if row is not None and rule.holds(row, key):
                weight = rule.weight
        return weight

    def changed_by_rules(self, keys: list[str]) -> list[str]:
        """What each rule hits, in words, so that a rule that hits nothing is seen."""
        said = []
        for rule in self.rules:
            hits = sum(1 for key in keys if (row := row_of_key(key)) is not None and rule.holds(row, key))
            said.append(f"rule {rule.written} hits {hits} tensors" + ("" if hits else "; look at its elements"))
        return said


def own_vectors(presets: Mapping[str, Preset]) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """An owner's presets as `BlockWeights.vectors`; those with letters are left out."""
    return tuple(
        (preset.name, tuple(value for value in row if isinstance(value, float)))
        for preset in presets.values()
        for row in preset.vectors.values()
        if all(isinstance(value, float) for value in row)
    )
