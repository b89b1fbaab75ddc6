"""Tag tables: the files beside a tagger's graph that say what its numbers mean, in every form in use."""

import csv
import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..core.errors import FormatError, StorageError
from .taggers._spec import TaggerSpec

CHARACTERS_FILE = "tags-character.txt"
"""DeepDanbooru's list of the tags that are characters."""
THRESHOLDS_FILE = "thresholds.csv"
"""Thresholds per category beside a tag table, columns ``category`` and ``threshold``."""
CATEGORY_WORDS = frozenset(
    ["general", "character", "copyright", "artist", "meta", "species", "rating", "quality"]
    + ["model", "style", "year", "lore", "invalid", "contributor"]
)
"""Category words that tables use in place of numbers."""
_RATING_PREFIX = "rating:"
_RATING_LETTERS = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
"""Danbooru's letters, as PixAI writes them after the prefix."""
_THRESHOLD_COLUMNS = ("best_threshold", "threshold")


@dataclass(frozen=True, kw_only=True)
class TagTable:
    """The tags of a model in the order of its outputs.

    Attributes:
        names: As in the table, with underscores.
        categories: Category word of each.
        tag_thresholds: Threshold of single tags (by place) where the table gives one.
        thresholds: Threshold per category where files beside the graph give one.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    tag_thresholds: Mapping[int, float] = field(default_factory=dict)
    thresholds: Mapping[str, float] = field(default_factory=dict)


def read_tags(path: Path, spec: TaggerSpec) -> TagTable:
    """Read a tag table (.csv, .json, .txt) and the thresholds beside it.

    Raises:
        FormatError: A column or key is missing, a category is not known, or the file is not what its ending says.
        StorageError: It cannot be read.
    """
    kind = path.suffix.lower()
    if kind == ".json":
        table = _from_json(_json(path), path, spec)
    elif kind == ".txt":
        table = _from_lines(path, spec)
    else:
        table = _from_csv(path, spec)
    if not table.names:
        raise FormatError(f"{path.name} holds no tag; fetch the file again as it was published.")
    beside = path.parent / THRESHOLDS_FILE
    if not beside.is_file():
        return table
    return replace(table, thresholds={**table.thresholds, **_category_thresholds(beside, spec)})


def in_folder(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """Files of a folder whose names fit one of the patterns, in the order of the patterns, then by name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    found = [name for pattern in patterns for name in names if fnmatch.fnmatchcase(name, pattern)]
    return [folder / name for name in dict.fromkeys(found)]


# comma separated -----------------------------------------------------------------------------------------------
def _from_csv(path: Path, spec: TaggerSpec) -> TagTable:
    header, rows = _rows(path)
    wanted = (spec.name_column, spec.category_column) if spec.category_column else (spec.name_column,)
    missing = [name for name in wanted if name not in header]
    if missing:
        raise FormatError(
            f"{path.name} has no column '{missing[0]}' (its header is {', '.join(header)}); "
            f"it must be the table that came with the model."
        )
    names = tuple(row[spec.name_column] or "" for row in rows)
    categories = ("general",) * len(rows)
    if spec.category_column:
        categories = tuple(_category(row[spec.category_column], path, spec) for row in rows)
    column = next((name for name in _THRESHOLD_COLUMNS if name in header), None)
    limits = {} if column is None else {n: _number(row[column], path) for n, row in enumerate(rows) if row[column]}
    return TagTable(names=names, categories=categories, tag_thresholds=limits)


def _rows(path: Path) -> tuple[Sequence[str], list[dict[str, str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            return reader.fieldnames or [], list(reader)
    except csv.Error as cause:
        raise FormatError(f"{path.name} is no tag table ({cause}); fetch the file as it was published.") from cause
    except UnicodeDecodeError as cause:
        raise _not_utf8(path) from cause
    except OSError as cause:
        raise _unreadable(path, cause) from cause


def _category(text: Any, path: Path, spec: TaggerSpec) -> str:
    word = str(text if text is not None else "").strip()
    if word.lower() in spec.categories:
        return spec.categories[word.lower()]
    if word.lower() in CATEGORY_WORDS:
        return word.lower()
    try:
        number = int(word)
    except ValueError as cause:
        raise FormatError(
            f"{path.name} holds the category '{text}', which is not a number; fetch the file again."
        ) from cause
    return spec.categories.get(number, f"category {number}")


def _number(text: str, path: Path) -> float:
    try:
        value = float(text)
    except ValueError as cause:
        raise FormatError(f"{path.name} holds the threshold '{text}', which is not a number.") from cause
    if not 0.0 <= value <= 1.0:
        raise FormatError(f"{path.name} holds the threshold {text}, allowed is 0 to 1.")
    return value


def _category_thresholds(path: Path, spec: TaggerSpec) -> Mapping[str, float]:
    header, rows = _rows(path)
    if "category" not in header or "threshold" not in header:
        return {}
    return {_category(row["category"], path, spec): _number(row["threshold"], path) for row in rows}


# JSON ----------------------------------------------------------------------------------------------------------
def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as cause:
        raise _not_utf8(path) from cause
    except (json.JSONDecodeError, RecursionError) as cause:
        raise FormatError(f"{path.name} is not valid JSON ({cause}); fetch the file again.") from cause
    except OSError as cause:
        raise _unreadable(path, cause) from cause


def _from_json(data: Any, path: Path, spec: TaggerSpec) -> TagTable:
    """A table out of any of the forms: idx_to_tag (at the root or nested), {index: {tag, category}}, tags_split."""
    if isinstance(data, dict):
        nested = data.get("dataset_info", data)
        nested = nested.get("tag_mapping", nested) if isinstance(nested, dict) else {}
        if isinstance(nested, dict) and "idx_to_tag" in nested:
            return _from_mapping(nested, path, spec)
        if "tags" in data and "tags_split" in data:
            return _from_split(data, path, spec)
        if data and all(isinstance(entry, dict) and "tag" in entry for entry in data.values()):
            entries = _in_order(data, path)
            return TagTable(
                names=tuple(str(entry["tag"]) for entry in entries),
                categories=tuple(_word(entry.get("category", "general"), spec) for entry in entries),
            )
    raise FormatError(
        f"{path.name} is none of the known tag tables (idx_to_tag with tag_to_category, index with tag and category, "
        "tags with tags_split); take the file that came with the model."
    )


def _from_mapping(data: Mapping[str, Any], path: Path, spec: TaggerSpec) -> TagTable:
    listed = data["idx_to_tag"]
    names = tuple(str(name) for name in (listed if isinstance(listed, list) else _in_order(listed, path)))
    words = data.get("tag_to_category", {})
    if not isinstance(words, dict):
        raise FormatError(f"tag_to_category of {path.name} is no table of categories by tag; fetch the file again.")
    return TagTable(names=names, categories=tuple(_word(words.get(name, "general"), spec) for name in names))


def _from_split(data: Mapping[str, Any], path: Path, spec: TaggerSpec) -> TagTable:
    """PixAI's form: all tags in a row, and per category how many they are or where they lie."""
    names, split = data["tags"], data["tags_split"]
    if not isinstance(names, list) or not isinstance(split, (dict, list)):
        raise FormatError(f"tags or tags_split of {path.name} is not a list; fetch the file again.")
    parts = list(split.items()) if isinstance(split, dict) else [tuple(part) for part in split]
    categories = ["general"] * len(names)
    start = 0
    for word, place in parts:
        first, end = (start, start + place) if isinstance(place, int) else (int(place[0]), int(place[1]))
        if not 0 <= first <= end <= len(names):
            raise FormatError(f"tags_split of {path.name} gives {word} the places {first} to {end} of {len(names)}.")
        categories[first:end] = [_word(word, spec)] * (end - first)
        start = end
    best = data.get("category_best_threshold", {})
    limits = {_word(word, spec): _number(str(value), path) for word, value in best.items()}
    plain = tuple(_without_prefix(str(name)) for name in names)
    return TagTable(names=plain, categories=tuple(categories), thresholds=limits)


def _in_order(data: Any, path: Path) -> list[Any]:
    """The values of {"0": a, "1": b, ...} by number."""
    try:
        by_index = {int(key): value for key, value in data.items()}
    except (AttributeError, ValueError) as cause:
        raise FormatError(f"{path.name} does not number its tags 0, 1, 2 ...; fetch the file again.") from cause
    if sorted(by_index) != list(range(len(by_index))):
        raise FormatError(f"{path.name} leaves out numbers between its first and last tag; fetch the file again.")
    return [by_index[number] for number in range(len(by_index))]


def _word(category: Any, spec: TaggerSpec) -> str:
    word = str(category).strip().lower()
    return spec.categories.get(word, word)


# lists ---------------------------------------------------------------------------------------------------------
def _from_lines(path: Path, spec: TaggerSpec) -> TagTable:
    """One tag a line; ``rating:`` ones are ratings, those that ``tags-character.txt`` lists are characters."""
    names = _lines(path)
    beside = path.parent / CHARACTERS_FILE
    characters = frozenset(_lines(beside)) if beside.is_file() else frozenset()
    categories = tuple(
        "rating" if name.startswith(_RATING_PREFIX) else "character" if name in characters else "general"
        for name in names
    )
    return TagTable(names=tuple(map(_without_prefix, names)), categories=categories)


def _without_prefix(name: str) -> str:
    plain = name.removeprefix(_RATING_PREFIX)
    return plain if plain == name else _RATING_LETTERS.get(plain, plain)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise _not_utf8(path) from cause
    except OSError as cause:
        raise _unreadable(path, cause) from cause
    return text.rstrip("\r\n").splitlines() if text.strip() else []


def _not_utf8(path: Path) -> FormatError:
    return FormatError(f"{path.name} is not UTF-8 text; fetch the file again as it was published.")


def _unreadable(path: Path, cause: OSError) -> StorageError:
    return StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions.")
