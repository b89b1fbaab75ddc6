"""The text that says how strong each block is: read into its parts, before anything is known of the file.

One text holds what stands behind a LoRA's strength in a prompt, with ``:`` between the items::

    NIN                          a preset, or the numbers of a vector
    lbw=NIN:lbwe=ATTNDEEPOFF     the web UI extension's items: lbw (or w), lbwe, start, stop, step, x
    in=0:mid=1:out=0             SD.Next's items
    ALL IN04-07=0.5 NOT MID=0    numbers for blocks by name, on top of a preset
    %default=1, in1-4=0.5        the Inspire pack's form, which counts the blocks that the file has
    XYZ, ZYX                     the vector of a grid's cell, and one minus it
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from ...core.errors import InputError
from .presets import Slot, parse_slot

FORM_NAMES = ("lbw", "mbw", "supermerger", "inspire", "kohya")
CELL_WORDS = ("XYZ", "ZYX")
"""Stand for the vector of a grid's cell, and for one minus it."""

_ITEM = re.compile(r"^(lbwe|lbw|w|start|stop|step|x|in|mid|out|base|te)\s*=(.*)$", re.IGNORECASE | re.DOTALL)
_ASSIGNMENT = re.compile(r"^(\w[\w.-]*)=(\S*)$")
_FLUX_WORDS = ("double_blocks", "single_blocks")
_GIVEN_LETTERS = ("A", "B", "X")
_NO_LETTERS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class BlockNumbers:
    """One assignment: blocks by name, and their number."""

    blocks: str
    value: float


@dataclass(frozen=True, kw_only=True)
class WeightsText:
    """A block-weight text in parts.

    Attributes:
        slots: The numbers of a vector; empty when a preset or nothing is named.
        preset: Name of a preset; "" for none.
        assignments: Numbers for blocks by name, laid on top in this order.
        elements: Elemental rules or names of sets (``lbwe=``).
        letters: Values of A, B and X.
        seed: Of the letters R and U; None where the text gives none.
        form: Whose form the vector has, where its length could be of two; "" for not said.
        inverted: One minus every number of the vector (``ZYX``).
        cell: ``XYZ`` or ``ZYX`` where the vector is to come from a grid's cell.
        percent: The Inspire pack's items after ``%``, None for another dialect.
        start: Sampler step, counted from 1, at which the LoRA begins; None for the first.
        stop: Sampler step at which it ends; None for never.
    """

    slots: tuple[Slot, ...] = ()
    preset: str = ""
    assignments: tuple[BlockNumbers, ...] = ()
    elements: str = ""
    letters: Mapping[str, float] = field(default_factory=lambda: _NO_LETTERS)
    seed: int | None = None
    form: str = ""
    inverted: bool = False
    cell: str = ""
    percent: tuple[tuple[str, float], ...] | None = None
    start: int | None = None
    stop: int | None = None

    @property
    def scheduled(self) -> bool:
        """Whether the LoRA is off at some sampler steps."""
        return self.start is not None or self.stop is not None


def split_items(text: str) -> list[str]:
    """Cut at ``:``, but keep the colons inside elemental rules (``lbwe=IN05-OUT05:attn:0``) together."""
    items: list[str] = []
    in_rules = False
    for item in (part.strip() for part in text.split(":")):
        if in_rules and not _ITEM.match(item):
            items[-1] = f"{items[-1]}:{item}"
            continue
        in_rules = item.lower().startswith("lbwe=")
        items.append(item)
    return items


def parse_weights(text: str) -> WeightsText:
    """Read a block-weight text.

    Raises:
        InputError: An item, a word or a number makes no sense; it is named.
    """
    text = text.strip()
    if text.lower().startswith("lbw=%"):
        text = text[4:]
    if text.startswith("%"):
        vector, _, rest = text.partition(":")
        found = WeightsText(percent=_percent_items(vector[1:]))
    else:
        found, rest = WeightsText(), text
    vector_seen = found.percent is not None
    for item in split_items(rest) if rest else ():
        match = _ITEM.match(item)
        key, value = (match[1].lower(), match[2].strip()) if match else ("", item)
        # "in=0" is SD.Next's item; "in=0 mid=1" or "te=0.5 NIN" are words of a vector.
        if key in ("in", "mid", "out", "base", "te") and len(value.split()) > 1:
            key, value = "", item
        if key in ("", "lbw", "w"):
            if key == "" and not value:
                continue
            if vector_seen:
                raise InputError(
                    f"'{item}' in the block weights '{_short(text)}' is a second vector; give one preset or one row of "
                    "numbers."
                )
            vector_seen = True
            found = _with_vector(found, value, text)
        else:
            found = _with_item(found, key, value, text)
    return _checked_steps(found, text)


def _with_item(found: WeightsText, key: str, value: str, text: str) -> WeightsText:
    if key == "lbwe":
        return replace(found, elements=value)
    if key in ("start", "stop"):
        step = _step(value, key, text)
        return replace(found, start=step) if key == "start" else replace(found, stop=step)
    if key == "step":
        first, dash, last = value.partition("-")
        if not dash:
            raise InputError(
                f"step={value} in '{_short(text)}' names no range; write step=5-10, or start=5 or stop=10."
            )
        return replace(found, start=_step(first, "step", text), stop=_step(last, "step", text))
    number = _number(f"{key}={value}", value, text)
    if key == "x":
        return replace(found, letters={**found.letters, "X": number})
    return replace(found, assignments=(*found.assignments, BlockNumbers(blocks=key.upper(), value=number)))


def _with_vector(found: WeightsText, vector: str, text: str) -> WeightsText:
    for word in CELL_WORDS:
        if vector == word:
            return replace(found, cell=word)
        if vector.startswith(f"{word}="):
            found, vector = replace(found, inverted=word == "ZYX"), vector[len(word) + 1 :].strip()
    if any(word in vector for word in _FLUX_WORDS):
        raise InputError(f"the block weights '{_short(vector)}' name Flux blocks; the model families here have none.")
    words = [word for word in re.split(r"[\s,]+", re.sub(r"\s*=\s*", "=", vector)) if word]
    plain: list[str] = []
    assignments = list(found.assignments)
    for word in words:
        match = _ASSIGNMENT.match(word)
        if match is None:
            plain.append(word)
            continue
        name, value = match[1], match[2]
        if name.upper() in _GIVEN_LETTERS:
            found = replace(found, letters={**found.letters, name.upper(): _number(word, value, text)})
        elif name.lower() == "seed":
            found = replace(found, seed=int(_number(word, value, text)))
        elif name.lower() == "form":
            found = replace(found, form=_form(value))
        else:
            taken = _words_of_not(plain)
            blocks = " ".join([*taken, name])
            assignments.append(BlockNumbers(blocks=blocks, value=_number(word, value, text)))
    slots, preset = _base_of(plain, vector)
    return replace(found, assignments=tuple(assignments), slots=slots, preset=preset)


def _words_of_not(plain: list[str]) -> list[str]:
    """Take ``NOT`` and what follows it off the end: only NOT joins several words to one choice of blocks."""
    upper = [word.upper() for word in plain]
    if "NOT" not in upper:
        return []
    at = upper.index("NOT")
    taken = plain[at:]
    del plain[at:]
    return taken


def _base_of(words: list[str], vector: str) -> tuple[tuple[Slot, ...], str]:
    """The vector that the remaining words are: a row of numbers or the name of a preset."""
    slots = [parse_slot(word) for word in words]
    numbers = [slot for slot in slots if slot is not None]
    if len(numbers) == len(words) and (len(words) > 1 or any(isinstance(slot, float) for slot in numbers)):
        return tuple(numbers), ""
    name = " ".join(words)
    if words and ("," in vector or len(words) > 3) and "=" not in vector:
        wrong = next(word for word, slot in zip(words, slots, strict=True) if slot is None)
        raise InputError(
            f"'{wrong}' in the block weights is not a number; give numbers separated by commas, or one preset name."
        )
    return (), name


def _percent_items(text: str) -> tuple[tuple[str, float], ...]:
    items = []
    for item in (part.strip() for part in text.split(",")):
        if not item:
            continue
        name, _, value = item.partition("=")
        known = re.fullmatch(r"(default|base|(?:in|mid|out)(?:\d+(?:-\d+)?)?)", name.strip())
        if name.strip().startswith(("double", "single")):
            raise InputError(f"'{item}' in the block weights names Flux blocks; the model families here have none.")
        if known is None:
            raise InputError(
                f"'{item}' in the block weights '%{_short(text)}' is not known; after % come default=, base=, in=, mid="
                " and out= with numbers such as in1-4=0.5, separated by commas."
            )
        items.append((name.strip(), _number(item, value, text)))
    if not items:
        raise InputError("the block weights '%' name nothing; write %default=1, in1-4=0.5, for example.")
    return tuple(items)


def _checked_steps(found: WeightsText, text: str) -> WeightsText:
    start = 1 if found.start is None else found.start
    if found.stop is not None and found.stop <= start:
        raise InputError(
            f"'{_short(text)}' stops at sampler step {found.stop}, at or before its start {start}; the LoRA would be "
            "never on: give a later stop, or leave the LoRA out."
        )
    return found


def _step(value: str, key: str, text: str) -> int:
    if not value.strip().isdigit() or not 0 <= int(value) <= 100_000:
        raise InputError(
            f"{key}={value} in '{_short(text)}' is not a sampler step; give a whole number, 1 for the first step."
        )
    return max(1, int(value))


def _form(value: str) -> str:
    if value.lower() not in FORM_NAMES:
        raise InputError(f"form={value} is unknown; allowed are {', '.join(FORM_NAMES)}.")
    return value.lower()


def _number(item: str, value: str, text: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(
            f"'{item}' in the block weights '{_short(text)}' gives no number; write {item.partition('=')[0]}=0.5, for "
            "example."
        )
    return number


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else f"{line[:77]}..."
