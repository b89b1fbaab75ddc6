"""Regular expressions that a person types, kept from running for ever.

Python's engine tries alternatives one after the other and cannot be stopped from outside. So a pattern is looked at
first: no repetition inside a repetition, no look-around, no back-reference, few open ends; and it is run on the
vocabulary only, on tags of at most 100 characters, under a time limit that is checked between tags.
"""

import re
import time
from collections.abc import Sequence

from ...core.errors import FormatError, InputError

MAX_PATTERN_CHARS = 200
MAX_TAG_CHARS = 100
MAX_WAYS = 2_000_000
"""Ways in which a pattern may be tried on one tag, at most."""
MAX_SECONDS = 5.0


def safe_pattern(text: str, where: str) -> re.Pattern[str]:
    """Compiles a pattern after checking that it ends in time.

    Raises:
        FormatError: It is no regular expression.
        InputError: It is too long, or might run too long; what to change is said.
    """
    if len(text) > MAX_PATTERN_CHARS:
        raise InputError(
            f"{where}: the pattern has {len(text)} characters, allowed are {MAX_PATTERN_CHARS}; split it into several"
        )
    try:
        pattern = re.compile(text)
    except (re.error, OverflowError, RecursionError) as cause:
        raise FormatError(f"{where}: {text[:60]!r} is no regular expression ({cause}); correct it") from cause
    reason = _Reader(text).danger()
    if reason:
        raise InputError(f"{where}: the pattern {text[:60]!r} {reason}")
    return pattern


def matching(patterns: Sequence[re.Pattern[str]], names: Sequence[str], where: str) -> list[int]:
    """Places of the names that one of the patterns matches as a whole.

    Raises:
        InputError: It takes longer than five seconds.
    """
    deadline = time.monotonic() + MAX_SECONDS
    found: list[int] = []
    for place, name in enumerate(names):
        if len(name) <= MAX_TAG_CHARS and any(pattern.fullmatch(name) for pattern in patterns):
            found.append(place)
        if time.monotonic() > deadline:
            raise InputError(
                f"{where}: the pattern takes more than {MAX_SECONDS:g} s on {len(names)} tags; make it simpler"
            )
    return found


class _Reader:
    """Walks through a pattern that compiles, counting in how many ways it can be tried."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self.open_ends = 0
        self.ways = 1
        self.reason = ""

    def danger(self) -> str:
        """Why the pattern may not be used; empty when it may."""
        while self.place < len(self.text) and not self.reason:
            self._sequence()
            self.place += 1  # past a ')' that closes nothing: the compiler has refused those
        if self.reason:
            return self.reason
        if MAX_TAG_CHARS**self.open_ends * self.ways > MAX_WAYS:
            return (
                f"has {self.open_ends} open repetitions and {self.ways} further ways to be tried, which can take very "
                "long; use fewer of * + ? {} and |, or several entries"
            )
        return ""

    def _sequence(self) -> bool:
        """Reads up to the closing parenthesis; True when it holds a repetition or alternatives."""
        variable = False
        branches = 1
        while self.place < len(self.text) and not self.reason:
            char = self.text[self.place]
            if char == ")":
                break
            if char == "|":
                branches += 1
                self.place += 1
                continue
            inner = self._atom()
            repeated = self._repetition(inner)
            variable = variable or inner or repeated
        self.ways = min(self.ways * branches, MAX_WAYS * 2)
        return variable or branches > 1

    def _atom(self) -> bool:
        char = self.text[self.place]
        if char == "(":
            return self._group()
        if char == "[":
            self._character_class()
        elif char == "\\":
            if self.text[self.place + 1 : self.place + 2].isdigit() and self.text[self.place + 1] != "0":
                self.reason = "refers back to a group, which is not allowed; write the text out"
            self.place += 2
        else:
            self.place += 1
        return False

    def _group(self) -> bool:
        self.place += 1
        if self.text.startswith("?", self.place):
            if not self.text.startswith("?:", self.place):
                self.reason = "uses (?...), of which only (?:...) is allowed; entries are compared without case anyway"
                return True
            self.place += 2
        variable = self._sequence()
        self.place += 1
        return variable

    def _character_class(self) -> None:
        self.place += 1
        if self.text.startswith("^", self.place):
            self.place += 1
        first = True
        while self.place < len(self.text) and (first or self.text[self.place] != "]"):
            self.place += 2 if self.text[self.place] == "\\" else 1
            first = False
        self.place += 1

    def _repetition(self, inner: bool) -> bool:
        found = re.compile(r"[*+?]|\{\d*(,\d*)?\}").match(self.text, self.place)
        if not found or found.group() == "{}":
            return False
        self.place = found.end()
        if self.text[self.place : self.place + 1] in ("?", "+"):  # lazy or possessive
            self.place += 1
        sign = found.group()
        if sign in ("?", "{0,1}"):
            self.ways = min(self.ways * 2, MAX_WAYS * 2)
            return True
        if inner:
            self.reason = "repeats a group that holds a repetition or '|', which can take very long; write it out"
        if sign in ("*", "+") or "," in sign:
            self.open_ends += 1
        return True
