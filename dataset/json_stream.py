"""Large JSON files entry by entry: what is at the top is never in memory as a whole."""

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

FIRST_CHARS = 1 << 20
MAX_ENTRY_CHARS = 1 << 26
"""Longest entry that is looked for; a picture's has some hundred characters."""
_LONGEST_ESCAPE = 16
_BLANK = re.compile(r"[ \t\n\r]*")


def stream_entries(file: TextIO) -> Iterator[tuple[str | None, Any]]:
    """Entries of the object or the list in a JSON file: (key, value) of an object, (None, value) of a list.

    A top that is neither gives nothing but itself: (None, value).

    Args:
        file: The text, without byte order mark.

    Yields:
        Key and value.

    Raises:
        json.JSONDecodeError: The text is not JSON; the position is that in the whole file.
    """
    reader = _Reader(file)
    opening = reader.peek()
    if opening not in ("{", "["):
        yield None, reader.value()
        reader.end()
        return
    closing = "}" if opening == "{" else "]"
    reader.take(opening)
    if reader.peek() != closing:
        while True:
            key = None
            if opening == "{":
                if reader.peek() != '"':
                    raise reader.error("Expecting property name enclosed in double quotes")
                key = reader.value()
                reader.take(":")
            yield key, reader.value()
            if reader.peek() != ",":
                break
            reader.take(",")
    reader.take(closing)
    reader.end()


class _Reader:
    """A window on the text that moves on."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._text, self._place, self._before = "", 0, 0
        self._is_whole = False

    def peek(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            match = _BLANK.match(self._text, self._place)
            self._place = match.end() if match is not None else self._place
            if self._place < len(self._text) or self._is_whole:
                return self._text[self._place : self._place + 1]
            self._more()

    def take(self, character: str) -> None:
        if self.peek() != character:
            raise self.error(f"Expecting {character!r}")
        self._place += 1

    def value(self) -> Any:
        """The value that begins here."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text, self._place)
            except json.JSONDecodeError as cause:
                # What touches the window's end may only be cut there; what is wrong before it stays wrong.
                is_cut = cause.msg.startswith("Unterminated") or cause.pos >= len(self._text) - _LONGEST_ESCAPE
                if self._is_whole or not is_cut or len(self._text) - self._place > MAX_ENTRY_CHARS:
                    raise self.error(cause.msg, cause.pos) from cause
                self._more()
                continue
            if len(self._text) - end < _LONGEST_ESCAPE and not self._is_whole:
                self._more()  # a number may go on: 1 of 12, 1 of 1.5, 1 of 1e+5
                continue
            self._place = end
            return value

    def end(self) -> None:
        if self.peek():
            raise self.error("Extra data")

    def error(self, message: str, place: int | None = None) -> json.JSONDecodeError:
        found = self._place if place is None else place
        shown = json.JSONDecodeError(message, self._text, found)
        shown.pos += self._before
        shown.args = (f"{message} (character {self._before + found})",)
        return shown

    def _more(self) -> None:
        """Drops what was used and reads on, twice as much as is left, so that long entries cost no more than short."""
        self._before += self._place
        self._text = self._text[self._place :]
        self._place = 0
        piece = self._file.read(max(FIRST_CHARS, len(self._text)))
        self._is_whole = not piece
        self._text += piece
