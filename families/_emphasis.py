r"""Weights of words in a caption: ``(word)``, ``(word:1.2)``, ``[word]``.

``(text)`` multiplies the weight inside by 1.1, ``[text]`` divides it by 1.1, ``(text:1.3)`` multiplies it by 1.3; they
nest. ``\(``, ``\)``, ``\[``, ``\]`` and ``\\`` are the plain characters. A bracket without its partner is a plain
character, too, and is counted, so that a person can be told.

Source: the prompt syntax of AUTOMATIC1111's web UI (``parse_prompt_attention``), which kohya's scripts share; there an
opening bracket without its partner weights all the rest instead.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

from ..core.errors import InputError

EMPHASIS = 1.1
MAX_WEIGHT = 10.0
_OPENER = {")": "(", "]": "["}
_NUMBER = re.compile(r"^\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$")
_NOT_FINITE = re.compile(r"^\s*[+-]?(?:nan|inf(?:inity)?)\s*$", re.IGNORECASE)

Segments = tuple[tuple[str, float], ...]


@dataclass(frozen=True, kw_only=True)
class Emphasis:
    """A caption taken apart.

    Attributes:
        segments: texts with their weights, in order; neighbours have different weights.
        num_unbalanced: brackets without a partner, which were taken literally.
    """

    segments: Segments
    num_unbalanced: int = 0

    @property
    def text(self) -> str:
        """What is left to be read."""
        return "".join(text for text, _ in self.segments)


def parse_emphasis(caption: str) -> Emphasis:
    """Takes a caption apart.

    Raises:
        InputError: a weight is not finite, or beyond 10.
    """
    if not any(mark in caption for mark in "()[]\\"):
        return Emphasis(segments=((caption, 1.0),) if caption else ())
    characters = _characters(caption)
    closes, num_unbalanced = _partners(characters)
    factors: dict[int, float] = {}
    tails: dict[int, int] = {}
    for opens, close in closes.items():
        factors[opens] = 1.0 / EMPHASIS if characters[opens][0] == "[" else EMPHASIS
        colon = _tail(characters, opens, close) if characters[opens][0] == "(" else None
        weight = None if colon is None else _number("".join(text for text, _ in characters[colon + 1 : close]), caption)
        if colon is not None and weight is not None:
            factors[opens], tails[colon] = weight, close
    pieces: list[tuple[str, float]] = []
    weights, place, ends = [1.0], 0, set(closes.values())
    while place < len(characters):
        if place in tails:
            place = tails[place]
            continue
        if place in factors:
            weights.append(weights[-1] * factors[place])
        elif place in ends:
            weights.pop()
        else:
            pieces.append((characters[place][0], weights[-1]))
        place += 1
    return Emphasis(segments=_joined(pieces), num_unbalanced=num_unbalanced)


def _characters(caption: str) -> list[tuple[str, bool]]:
    """The characters without the escapes, and whether each is a bracket that means something."""
    found: list[tuple[str, bool]] = []
    place = 0
    while place < len(caption):
        escaped = caption[place] == "\\" and caption[place + 1 : place + 2] in ("(", ")", "[", "]", "\\")
        place += escaped
        character = caption[place]
        found.append((character, character in "()[]" and not escaped))
        place += 1
    return found


def _partners(characters: list[tuple[str, bool]]) -> tuple[dict[int, int], int]:
    """Where each opening bracket is closed, and how many brackets have no partner."""
    opened: list[int] = []
    closes: dict[int, int] = {}
    num_marks = 0
    for place, (character, is_mark) in enumerate(characters):
        if not is_mark:
            continue
        num_marks += 1
        if character in "([":
            opened.append(place)
            continue
        wanted = _OPENER[character]
        matching = next((at for at in range(len(opened) - 1, -1, -1) if characters[opened[at]][0] == wanted), None)
        if matching is not None:
            closes[opened[matching]] = place
            del opened[matching:]
    return closes, num_marks - 2 * len(closes)


def _tail(characters: list[tuple[str, bool]], opens: int, close: int) -> int | None:
    """Where the colon of ``:1.2)`` stands; None where there is none, or nothing before it."""
    for place in range(close - 1, opens + 1, -1):
        if characters[place][1]:
            return None
        if characters[place][0] == ":":
            return place
    return None


def _number(text: str, caption: str) -> float | None:
    """The weight that stands there; None for a text that only follows a colon.

    Raises:
        InputError: it is not finite, or beyond 10.
    """
    if not (_NUMBER.match(text) or _NOT_FINITE.match(text)):
        return None
    weight = float(text)
    if not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
        raise InputError(
            f"the caption {caption[:80]!r} holds the weight {text.strip()}, allowed is -{MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g}; change it, or write \\( and \\) for plain brackets"
        )
    return weight


def _joined(pieces: list[tuple[str, float]]) -> Segments:
    """Neighbours of one weight as one text."""
    return tuple(
        ("".join(character for character, _ in group), weight)
        for weight, group in itertools.groupby(pieces, key=lambda piece: piece[1])
    )
