"""Caption files beside pictures: finding those that belong to a picture, and reading them.

For ``a.png`` these are looked at: ``a.txt`` and ``a.caption`` (first the ending that was asked for), ``a.png.txt``,
``a.tags``; and for what a site says ``a.json``, ``a.png.json`` and waifuc's ``.a_meta.json``. An ``a.json`` that this
pack wrote is a caption too: of it and a caption file the one that was written last counts.
"""

import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import FormatError
from .captions import split_tags

CAPTION_EXTENSIONS = (".txt", ".caption")
"""Endings of caption files, first choice first; kohya's library default is .caption, its users write .txt."""

SEPARATORS = ("auto", "comma", "line", "space")

MAX_CAPTION_BYTES = 256 * 1024
"""A caption is a line of tags; a larger file is something else."""

_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_UTF8_MARK = b"\xef\xbb\xbf"
_MAX_WORDS_OF_A_TAG = 4
_GRABBER_LINE = re.compile(
    r"^(character|copyright|artist|general|species|meta|model|photo_set|rating|score):\s*(.*)$", re.IGNORECASE
)


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
    """A caption as read: its first line that is not blank, how many such lines the file has, and all of them."""

    text: str
    num_lines: int
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CaptionTags:
    """A caption taken apart.

    Attributes:
        tags: In their order.
        form: How they were separated, in words.
        categories: Name of each tag's category where the file says it; empty when it does not.
        rating: The rating as the file writes it.
        score: The score as the file writes it.
        unused_lines: Lines after the first that do not count.
    """

    tags: tuple[str, ...]
    form: str
    categories: tuple[str, ...] = ()
    rating: str = ""
    score: str = ""
    unused_lines: int = 0


@dataclass(frozen=True, kw_only=True)
class Found:
    """Names of the files that belong to a picture; None where there is none."""

    caption: str | None
    site: str | None


class CaptionIndex:
    """Caption files of one folder by the picture they belong to.

    Names are compared exactly first, then as Unicode NFC with the ending in any case, so that ``e\u0301.png`` finds
    ``\u00e9.TXT`` after a trip through another system.
    """

    def __init__(self, names: Sequence[str], extensions: Sequence[str]) -> None:
        self._extensions = extensions
        endings = {*extensions, ".tags", ".json"}
        self._names = frozenset(name for name in names if os.path.splitext(name)[1].lower() in endings)
        self.has_json = any(name.lower().endswith(".json") for name in self._names)
        self._folded: Mapping[str, str] | None = None

    def find(self, picture_name: str) -> str | None:
        """Name of the caption file for a picture's file name, or None."""
        return self.find_all(picture_name).caption

    def find_all(self, picture_name: str) -> Found:
        """Names of all files for a picture's file name."""
        if not self._names:
            return Found(caption=None, site=None)
        stem = os.path.splitext(picture_name)[0]
        captions = [stem + extension for extension in self._extensions]
        captions += [picture_name + ".txt", stem + ".tags"]
        # a.json first: it is what this pack writes, also beside the a.png.json of a downloader.
        site = self._first([stem + ".json", picture_name + ".json", f".{stem}_meta.json"]) if self.has_json else None
        return Found(caption=self._first(captions), site=site)

    def _first(self, wanted: Sequence[str]) -> str | None:
        for name in wanted:
            if name in self._names:
                return name
        if self._folded is None:
            self._folded = {_folded(name): name for name in sorted(self._names, reverse=True)}
        for name in wanted:
            found = self._folded.get(_folded(name))
            if found is not None:
                return found
        return None


def read_caption(path: Path | str) -> Caption:
    """Reads a caption: UTF-8 with or without byte order mark, or UTF-16 with one; any line ends.

    A file larger than a caption can be is not read beyond that size.

    Raises:
        BadCaption: A folder, not readable, too large, or not text.
    """
    too_large = f"is larger than {MAX_CAPTION_BYTES // 1024} KiB; a caption is a line of text"
    text = decoded_text(path, MAX_CAPTION_BYTES, too_large)
    lines = tuple(line for line in (line.strip() for line in text.splitlines()) if line)
    return Caption(text=lines[0] if lines else "", num_lines=len(lines), lines=lines)


def parse_caption(caption: Caption, *, separator: str = "auto", name: str = "") -> CaptionTags:
    """Takes a caption apart.

    ``auto`` reads commas where there is one (the first line counts, as in kohya's scripts); three or more lines of a
    few words each as one tag per line, and two in a file of a tag downloader (``a.png.txt``, ``a.tags``); a single
    line of words with underscores as tags between blanks; ``artist: ...`` lines as imgbrd-grabber writes them.

    Args:
        caption: From :func:`read_caption`.
        separator: One of ``SEPARATORS``, or any other text that separates.
        name: The file's name, whose ending tells of downloaders.
    """
    ending = os.path.splitext(name)[1].lower() or ".txt"
    lines = caption.lines
    kind = _kind_of(lines, name) if separator == "auto" else separator
    if kind == "grabber":
        return _grabber_tags(lines, ending)
    if kind == "line":
        tags = tuple(" ".join(line.rstrip(",").split()) for line in lines)
        return CaptionTags(tags=tuple(tag for tag in tags if tag), form=f"one tag per line ({ending})")
    unused = max(0, len(lines) - 1)
    if kind == "space":
        text = caption.text.replace(",", " ")
        return CaptionTags(tags=tuple(text.split()), form=f"separated by blanks ({ending})", unused_lines=unused)
    if kind == "comma":
        return CaptionTags(
            tags=tuple(split_tags(caption.text)), form=f"separated by commas ({ending})", unused_lines=unused
        )
    parts = (" ".join(part.split()) for part in caption.text.split(separator))
    tags = tuple(part for part in parts if part)
    return CaptionTags(tags=tags, form=f"separated by {separator!r} ({ending})", unused_lines=unused)


def decoded_text(path: Path | str, max_bytes: int, too_large: str) -> str:
    """A text file as a string, read only up to a size.

    Raises:
        BadCaption: A folder, not readable, larger than ``max_bytes``, or not text.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except IsADirectoryError as error:
        raise BadCaption(path, "is a folder; rename it") from error
    except PermissionError as error:
        if os.path.isdir(path):  # what Windows says of folders
            raise BadCaption(path, "is a folder; rename it") from error
        raise BadCaption(path, "cannot be read: permission was refused") from error
    except OSError as error:
        raise BadCaption(path, f"cannot be read: {error.strerror or type(error).__name__}") from error
    if len(data) > max_bytes:
        raise BadCaption(path, too_large)
    encoding = "utf-16" if data.startswith(_UTF16_MARKS) else "utf-8"
    try:
        text = data.removeprefix(_UTF8_MARK).decode(encoding)
    except UnicodeDecodeError as error:
        raise BadCaption(path, f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    if "\0" in text:
        raise BadCaption(path, "holds NUL characters; save it as UTF-8 text")
    return text


def _kind_of(lines: Sequence[str], name: str) -> str:
    if len(lines) == 1:
        line = lines[0]
        if "," in line or " " not in line:
            return "comma"
        words = line.split()
        downloaded = name.lower().endswith(".tags")
        # One word with an underscore may be a name in a sentence; two in a line of words are a site's tags.
        return "space" if downloaded or sum("_" in word[1:-1] for word in words) >= 2 else "comma"
    if len(lines) >= 2 and all(_GRABBER_LINE.match(line) for line in lines):
        return "grabber"
    enough = 2 if _is_downloaded(name) else 3
    short = all("," not in line.rstrip(",") and len(line.split()) <= _MAX_WORDS_OF_A_TAG for line in lines)
    return "line" if len(lines) >= enough and short else "comma"


def _is_downloaded(name: str) -> bool:
    """Whether a file is called as tag downloaders call theirs: ``a.png.txt`` or ``a.tags``."""
    stem, ending = os.path.splitext(name)
    return ending.lower() == ".tags" or 3 <= len(os.path.splitext(stem)[1]) <= 5


def _grabber_tags(lines: Sequence[str], ending: str) -> CaptionTags:
    tags: list[str] = []
    categories: list[str] = []
    facts: dict[str, str] = {}
    for line in lines:
        match = _GRABBER_LINE.match(line)
        if match is None:
            continue
        key, text = match[1].lower(), match[2]
        if key in ("rating", "score"):
            facts[key] = text.strip()
            continue
        names = split_tags(text) if "," in text else text.split()
        tags += names
        categories += [key] * len(names)
    return CaptionTags(
        tags=tuple(tags),
        form=f"imgbrd-grabber lines ({ending})",
        categories=tuple(categories),
        rating=facts.get("rating", ""),
        score=facts.get("score", ""),
    )


def _folded(name: str) -> str:
    stem, extension = os.path.splitext(name)
    return unicodedata.normalize("NFC", stem) + extension.lower()
