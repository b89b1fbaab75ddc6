"""The tag document as large LoRAs publish it with the model: every tag with its count, aliases and notes."""

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.errors import InputError
from ..core.params import Params, param
from .columns import CATEGORIES
from .normal import matched_nothing, normal, normals
from .words import counted

if TYPE_CHECKING:
    from .table import Dataset

CSV, MARKDOWN, JSON = "CSV", "Markdown", "JSON"
ENDINGS: Mapping[str, str] = {CSV: ".csv", MARKDOWN: ".md", JSON: ".json"}
_PAIR = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^,"][^,]*|)),(.*)$')
"""Two fields; the first is quoted where it holds a comma."""
COLUMNS = ("tag", "count", "category", "aliases", "notes")


@dataclass(frozen=True, kw_only=True)
class DocumentParams(Params):
    """What the document holds."""

    form: str = param(MARKDOWN, doc="How the document is written.", choices=tuple(ENDINGS))
    min_count: int = param(
        1, doc="Tags on fewer pictures are left out.", unit="images", minimum=1, maximum=1_000_000, step=1
    )
    aliases: str = param(
        "",
        doc="One line per alias: alias,tag. Other spellings of a tag that the captions hold are listed by themselves.",
        multiline=True,
    )
    notes: str = param("", doc="One line per note: tag,note.", multiline=True)


@dataclass(frozen=True, kw_only=True)
class DocumentRow:
    """One tag of the document."""

    tag: str
    count: int
    category: str = ""
    aliases: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TagDocument:
    """The document.

    Attributes:
        name: Of the data set.
        pictures: Number of pictures.
        rows: Most frequent first, then by name.
        unmatched: A sentence for each alias or note whose tag is not there.
    """

    name: str
    pictures: int
    rows: tuple[DocumentRow, ...]
    unmatched: tuple[str, ...] = ()

    def text(self, form: str) -> str:
        """The document as CSV, Markdown or JSON.

        Raises:
            InputError: There is no such form.
        """
        writers = {CSV: self._csv, MARKDOWN: self._markdown, JSON: self._json}
        if form not in writers:
            raise InputError(f"the form {form!r} is not known, allowed are {', '.join(writers)}")
        return writers[form]()

    def report(self) -> str:
        """How many tags it holds, and what matched nothing."""
        with_aliases = sum(bool(row.aliases) for row in self.rows)
        with_notes = sum(bool(row.notes) for row in self.rows)
        lines = [
            f"Tag document of {self.name}: {counted(len(self.rows), 'tag')} of {counted(self.pictures, 'picture')}, "
            f"{with_aliases} with aliases, {with_notes} with notes"
        ]
        return "\n".join([*lines, *(f"! {sentence}" for sentence in self.unmatched)])

    def _csv(self) -> str:
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in self.rows:
            writer.writerow([row.tag, row.count, row.category, "; ".join(row.aliases), "; ".join(row.notes)])
        return buffer.getvalue()

    def _markdown(self) -> str:
        lines = [
            f"# Tags of {_escaped(self.name)}",
            "",
            f"{counted(len(self.rows), 'tag')} on {counted(self.pictures, 'picture')}.",
            "",
            "| tag | count | category | aliases | notes |",
            "|---|--:|---|---|---|",
        ]
        for row in self.rows:
            cells = (row.tag, str(row.count), row.category, ", ".join(row.aliases), "; ".join(row.notes))
            lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def _json(self) -> str:
        rows: list[dict[str, Any]] = [
            {
                "tag": row.tag,
                "count": row.count,
                "category": row.category,
                "aliases": list(row.aliases),
                "notes": list(row.notes),
            }
            for row in self.rows
        ]
        data = {"format": "atelier-tags-1", "name": self.name, "pictures": self.pictures, "tags": rows}
        return json.dumps(data, ensure_ascii=False, indent=1) + "\n"


def tag_document(dataset: "Dataset", params: DocumentParams) -> TagDocument:
    """Makes the document; spellings of one tag are one row under the most frequent.

    Raises:
        InputError: A line of the aliases or notes is not such a pair.
    """
    column = dataset.tags
    spelled = normals(column.vocabulary)
    forms: dict[str, int] = {}
    table = np.array([forms.setdefault(form, len(forms)) for form in spelled], dtype=np.int32)
    pictures = column.translated(table, tuple(forms)).deduplicated().counts() if len(table) else np.zeros(0)
    by_form: dict[str, list[int]] = {}
    counts = column.counts()
    for tag in np.flatnonzero(counts).tolist():
        by_form.setdefault(spelled[tag], []).append(tag)
    aliases = _pairs(params.aliases, "aliases", "alias,tag")
    notes = _pairs(params.notes, "notes", "tag,note")
    own_aliases = _grouped((normal(tag), alias) for alias, tag in aliases)
    own_notes = _grouped((normal(tag), note) for tag, note in notes)
    rows = []
    for form, tags in by_form.items():
        count = int(pictures[forms[form]])
        if count < params.min_count:
            continue
        best, *others = sorted(tags, key=lambda tag: (-int(counts[tag]), column.vocabulary[tag]))
        listed = [column.vocabulary[tag] for tag in others] + own_aliases.get(form, [])
        rows.append(
            DocumentRow(
                tag=column.vocabulary[best],
                count=count,
                category=CATEGORIES[max(int(column.categories[tag]) for tag in tags)],
                aliases=tuple(dict.fromkeys(alias for alias in listed if alias != column.vocabulary[best])),
                notes=tuple(own_notes.get(form, ())),
            )
        )
    rows.sort(key=lambda row: (-row.count, row.tag))
    unknown = [tag for tag in dict.fromkeys([*(tag for _, tag in aliases), *(tag for tag, _ in notes)])
               if normal(tag) not in by_form]  # fmt: skip
    unmatched = tuple(matched_nothing(tag, tuple(by_form)) for tag in unknown)
    return TagDocument(name=dataset.root.name, pictures=len(dataset), rows=tuple(rows), unmatched=unmatched)


def _pairs(text: str, what: str, form: str) -> list[tuple[str, str]]:
    """Lines of two fields; the first may be quoted where it holds a comma."""
    pairs = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _PAIR.match(line)
        quoted, plain, rest = match.groups() if match else (None, "", "")
        first, rest = (quoted.replace('""', '"') if quoted is not None else plain).strip(), rest.strip()
        if not first or not rest:
            raise InputError(f"line {number} of the {what} is {line.strip()!r}; write {form}")
        pairs.append((first, rest))
    return pairs


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return groups


def _escaped(text: str) -> str:
    """Text in a cell of a Markdown table: no signs of Markdown's or HTML's own."""
    plain = " ".join(text.split())
    for sign in ("\\", "|", "*", "_", "`", "<", ">", "[", "]", "~", "#"):
        plain = plain.replace(sign, f"\\{sign}")
    return plain
