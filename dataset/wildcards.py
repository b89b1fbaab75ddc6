"""Wildcards in captions: of ``{red|blue}`` one word is drawn.

Source: ``enable_wildcard`` of kohya-ss/sd-scripts, where a brace or bar after a backslash is text. Departure: braces
may be nested, and a pair without a bar stays as it is. Files of words (``__name__``) are not read.
"""

import re
from collections.abc import Callable

_INNERMOST = re.compile(r"(?<!\\)\{([^{}]*\|[^{}]*)\}")
_ESCAPED = re.compile(r"\\([{}|])")
_HIDDEN = {"{": "\ue000", "}": "\ue001", "|": "\ue002"}
_SHOWN = {mark: char for char, mark in _HIDDEN.items()}
_MAX_ROUNDS = 1000


def has_wildcards(text: str) -> bool:
    """Whether a text has anything to draw."""
    return _INNERMOST.search(_hidden(text)) is not None


def drawn(text: str, draw: Callable[[], float]) -> str:
    """A text with one word drawn for every pair of braces, the innermost first.

    Args:
        text: Such as ``a {red|{dark|light} blue} ball``.
        draw: Gives numbers from 0 up to 1.
    """
    text = _hidden(text)
    for _ in range(_MAX_ROUNDS):
        found = _INNERMOST.search(text)
        if found is None:
            break
        words = found[1].split("|")
        text = text[: found.start()] + words[min(int(draw() * len(words)), len(words) - 1)] + text[found.end() :]
    return "".join(_SHOWN.get(char, char) for char in text)


def _hidden(text: str) -> str:
    """Escaped braces and bars as characters that mean nothing; they come back without the backslash."""
    return _ESCAPED.sub(lambda found: _HIDDEN[found[1]], text)
