"""Caption files beside pictures: finding the one that belongs to a picture, and reading it."""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import FormatError

CAPTION_EXTENSIONS = (".txt", ".caption")
"""Endings of caption files, first choice first; kohya's library default is .caption, its users write .txt."""

MAX_CAPTION_BYTES = 256 * 1024
"""A caption is a line of tags; a larger file is something else."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"


class BadCaption(FormatError):
    """A caption file that cannot be used.

    Attributes:
        reason: The cause with the caption's file name, as listed in ``Dataset.skipped`` for its picture.
    """

    def __init__(self, path: Path | str, cause: str) -> None:
        name = os.path.basename(os.fspath(path))
        super().__init__(f"the caption file {str(path)!r} {cause}")
        self.reason = f"its caption file {name!r} {cause}"


@dataclass(frozen=True, kw_only=True)
class Caption:
    """A caption as read: its first line that is not blank, and how many such lines the file has."""

    text: str
    num_lines: int


class CaptionIndex:
    """Caption files of one folder by the stem of the picture they belong to.

    Names are compared exactly first, then as Unicode NFC with the ending in any case, so that ``e\u0301.png`` finds
    ``\u00e9.TXT`` after a trip through another system.
    """

    def __init__(self, names: Sequence[str], extensions: Sequence[str]) -> None:
        self._extensions = extensions
        self._names = frozenset(name for name in names if os.path.splitext(name)[1].lower() in extensions)
        self._folded: Mapping[tuple[str, str], str] | None = None

    def find(self, picture_name: str) -> str | None:
        """Name of the caption file for a picture's file name, or None."""
        if not self._names:
            return None
        stem = os.path.splitext(picture_name)[0]
        for extension in self._extensions:
            if stem + extension in self._names:
                return stem + extension
        if self._folded is None:
            self._folded = {_folded(name): name for name in sorted(self._names, reverse=True)}
        normal = unicodedata.normalize("NFC", stem)
        for extension in self._extensions:
            if (normal, extension) in self._folded:
                return self._folded[normal, extension]
        return None


def read_caption(path: Path | str) -> Caption:
    """Reads a caption: UTF-8 with or without byte order mark, or UTF-16 with one; any line ends.

    Only the first line that is not blank counts, as in kohya's scripts.

    Raises:
        BadCaption: A folder, not readable, too large, or not text.
    """
    try:
        if os.path.isdir(path):
            raise BadCaption(path, "is a folder; rename it")
        with open(path, "rb") as file:
            data = file.read(MAX_CAPTION_BYTES + 1)
    except PermissionError as error:
        raise BadCaption(path, "cannot be read: permission was refused") from error
    except OSError as error:
        raise BadCaption(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    if len(data) > MAX_CAPTION_BYTES:
        raise BadCaption(path, f"is larger than {MAX_CAPTION_BYTES // 1024} KiB; a caption is a line of text")
    text = _decoded(path, data)
    if "\0" in text:
        raise BadCaption(path, "holds NUL characters; save it as UTF-8 text")
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    return Caption(text=lines[0] if lines else "", num_lines=len(lines))


def _decoded(path: Path | str, data: bytes) -> str:
    encoding = "utf-16" if data.startswith(_UTF16_MARKS) else "utf-8"
    try:
        return data.removeprefix(_UTF8_MARK).decode(encoding)
    except UnicodeDecodeError as error:
        raise BadCaption(path, f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error


def _folded(name: str) -> tuple[str, str]:
    stem, extension = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem), extension.lower()
