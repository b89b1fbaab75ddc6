"""Entries that name tags: exactly, by glob, by regular expression, by category or class. Vocabulary only."""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...core.errors import InputError, unknown_name
from ...dataset.columns import CATEGORIES, TagColumn
from ...dataset.normal import matched_nothing, normal, normals, places_by_normal
from ._classes import CLASSES, class_mask
from ._lists import checked_tag, content_lines
from ._regex import matching, safe_pattern

KINDS = ("exact", "glob", "regex", "category", "class")
MAX_PATTERNS = 500
_MAX_HINTS = 40


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One entry of a list.

    Attributes:
        kind: One of ``KINDS``.
        text: What it says, without its kind.
        where: Its place, for messages.
        typed: False when it came from a file.
    """

    kind: str
    text: str
    where: str
    typed: bool = True

    @property
    def shown(self) -> str:
        """As a person would write it."""
        return self.text if self.kind == "exact" else f"{self.kind}:{self.text}"


def entries(text: str, *, what: str, kind: str = "exact", typed: bool = True) -> tuple[Entry, ...]:
    """Reads entries: separated by commas or line ends; a regular expression takes its line to the end.

    Args:
        text: What was typed.
        what: What it is, for messages.
        kind: How an entry without a kind of its own (``glob:``, ``regex:`` ...) is meant.
        typed: Whether a person typed it.

    Raises:
        InputError: An entry is too long, there are too many patterns, or a category is not known.
    """
    found: dict[tuple[str, str], Entry] = {}
    for number, line in content_lines(text):
        where = f"{what}, line {number}"
        whole = line.startswith("regex:") or (kind == "regex" and not _kind_of(line))
        for part in [line] if whole else line.split(","):
            if not part.strip():
                continue
            own = _kind_of(part.strip())
            body = part.strip()[len(own) + 1 :].strip() if own else part.strip()
            if not body:
                raise InputError(f"{where}: the entry {part.strip()!r} names nothing; write a tag after the colon")
            entry = Entry(kind=own or kind, text=body, where=where, typed=typed)
            if entry.kind != "regex":
                checked_tag(body, where)
            if entry.kind == "category" and body.casefold() not in _category_names():
                raise unknown_name("category of tags", body, _category_names())
            if entry.kind == "class" and body.casefold() not in CLASSES:
                raise unknown_name("class of tags", body, CLASSES)
            key = body if entry.kind == "regex" else normal(body)
            found.setdefault((entry.kind, key), entry)
    patterns = sum(entry.kind in ("glob", "regex") for entry in found.values())
    if patterns > MAX_PATTERNS:
        raise InputError(f"{what} has {patterns} globs and regular expressions, allowed are {MAX_PATTERNS}; list tags")
    return tuple(found.values())


class Matcher:
    """Finds the tags of a data set that entries name. Tags that no picture has are never found."""

    def __init__(self, tags: TagColumn) -> None:
        self._tags = tags
        self.counts = tags.counts()
        self._names = normals(tags.vocabulary)
        self._places = places_by_normal(tags.vocabulary)
        self._used = np.flatnonzero(self.counts)
        self._found: dict[Entry, NDArray[np.int64]] = {}

    def ids(self, entry: Entry) -> NDArray[np.int64]:
        """Ids in use that an entry names, ascending."""
        if entry not in self._found:
            self._found[entry] = self._search(entry)
        return self._found[entry]

    def _search(self, entry: Entry) -> NDArray[np.int64]:
        if entry.kind == "exact":
            places = np.array(self._places.get(normal(entry.text), ()), dtype=np.int64)
            return places[self.counts[places] > 0]
        if entry.kind == "category":
            number = _category_names().index(entry.text.casefold())
            return self._among(self._tags.categories == number)
        if entry.kind == "class":
            return self._among(class_mask(self._tags.vocabulary, entry.text.casefold()))
        return self._by_pattern(_patterns(entry), entry.where)

    def _among(self, mask: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.flatnonzero(mask & (self.counts > 0))

    def _by_pattern(self, patterns: Sequence[re.Pattern[str]], where: str) -> NDArray[np.int64]:
        names = [self._names[place] for place in self._used.tolist()]
        return self._used[np.array(matching(patterns, names, where), dtype=np.int64)]

    def rule_of_tag(self, wanted: Sequence[Entry]) -> NDArray[np.int32]:
        """The first entry that names each tag, int32 [vocabulary]; -1 where none does."""
        rule = np.full(len(self._names), -1, dtype=np.int32)
        for number in range(len(wanted) - 1, -1, -1):
            rule[self.ids(wanted[number])] = number
        return rule

    def mask(self, wanted: Sequence[Entry]) -> NDArray[np.bool_]:
        """Whether any entry names a tag, bool [vocabulary]."""
        return self.rule_of_tag(wanted) >= 0

    def known(self) -> list[str]:
        """Normal forms of the tags in use."""
        return [self._names[place] for place in self._used.tolist()]

    def nothing(self, entry: Entry) -> str:
        """The sentence for an entry that matched nothing."""
        if entry.kind == "exact":
            return matched_nothing(entry.text, self.known())
        if entry.kind == "category" and not bool(self._tags.categories.any()):
            return f"entry {entry.shown!r} matched 0 images: no tag of this data set has a category"
        return f"entry {entry.shown!r} matched 0 images"

    def unmatched(self, wanted: Sequence[Entry]) -> tuple[str, ...]:
        """A sentence for each typed entry that names no tag in use, and one for all of a file's."""
        missing = [entry for entry in wanted if not len(self.ids(entry))]
        typed = [entry for entry in missing if entry.typed]
        sentences = [self.nothing(entry) for entry in typed[:_MAX_HINTS]]
        sentences += [f"entry {entry.shown!r} matched 0 images" for entry in typed[_MAX_HINTS:]]
        return (*sentences, *file_summary(len(missing) - len(typed), sum(not entry.typed for entry in wanted)))


def file_summary(missing: int, total: int) -> tuple[str, ...]:
    """One sentence about the entries of a file that matched nothing; none when all did."""
    return (f"{missing} of {total} entries of the file matched 0 images",) if missing else ()


def _kind_of(text: str) -> str:
    kind = text.partition(":")[0]
    return kind if ":" in text and kind in KINDS else ""


def _category_names() -> list[str]:
    return ["unknown", *CATEGORIES[1:]]


def _patterns(entry: Entry) -> list[re.Pattern[str]]:
    if entry.kind == "regex":
        spaced = entry.text.replace("_", " ")
        texts = [entry.text] if spaced == entry.text else [entry.text, spaced]
        return [safe_pattern(text, entry.where) for text in texts]
    # fnmatch's own translation cannot run away, whatever the number of stars; '[' is a plain character here.
    forms = dict.fromkeys([normal(entry.text), entry.text.casefold()])
    return [re.compile(fnmatch.translate(form.replace("[", "[[]"))) for form in forms]
