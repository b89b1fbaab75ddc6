"""Names of tags: the tag table beside a model, and how names are written into captions and prompts."""

import csv
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import FormatError, StorageError
from .taggers._spec import TaggerSpec

KAOMOJI = frozenset(
    [
        "0_0",
        "(o)_(o)",
        "+_+",
        "+_-",
        "._.",
        "<o>_<o>",
        "<|>_<|>",
        "=_=",
        ">_<",
        "3_3",
        "6_9",
        ">_o",
        "@_@",
        "^_^",
        "o_o",
        "u_u",
        "x_x",
        "|_|",
        "||_||",
    ]
)
"""Tags in which an underscore is part of a face and is never written as a space."""


@dataclass(frozen=True, kw_only=True)
class TagTable:
    """The tags of a model in the order of its outputs.

    Attributes:
        names: As in the table, with underscores.
        categories: Category word of each.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]


def read_tags(path: Path, spec: TaggerSpec) -> TagTable:
    """Read a tag table; columns are found by their header, in any order.

    Raises:
        FormatError: A column is missing, a category is not a number, or the file is not CSV or not UTF-8.
        StorageError: It cannot be read.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            header = reader.fieldnames or []
            missing = [name for name in (spec.name_column, spec.category_column) if name not in header]
            if missing:
                raise FormatError(
                    f"{path.name} has no column '{missing[0]}' (its header is {', '.join(header)}); "
                    f"it must be the table that came with the model."
                )
            rows = list(reader)
    except csv.Error as cause:
        raise FormatError(f"{path.name} is no tag table ({cause}); fetch the file as it was published.") from cause
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path.name} is not UTF-8 text; fetch the file again as it was published.") from cause
    except OSError as cause:
        raise StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions.") from cause
    names = tuple(row[spec.name_column] or "" for row in rows)
    return TagTable(names=names, categories=tuple(_category(row[spec.category_column], path, spec) for row in rows))


def _category(text: str | None, path: Path, spec: TaggerSpec) -> str:
    try:
        number = int(text or "")
    except ValueError as cause:
        raise FormatError(
            f"{path.name} holds the category '{text}', which is not a number; fetch the file again."
        ) from cause
    return spec.categories.get(number, f"category {number}")


def written(name: str, *, underscores_to_spaces: bool, escape_parentheses: bool) -> str:
    """Return a tag as it is written into a caption or prompt.

    Args:
        name: As in the table.
        underscores_to_spaces: Write underscores as spaces, except in faces such as ``^_^``.
        escape_parentheses: Put a backslash before parentheses, for prompts; captions are read as they are.
    """
    if underscores_to_spaces and name not in KAOMOJI:
        name = name.replace("_", " ")
    return name.replace("(", "\\(").replace(")", "\\)") if escape_parentheses else name


def compared(name: str) -> str:
    """Return a tag in the form in which two are compared: underscores, spaces and escapes do not count."""
    return " ".join(name.replace("\\(", "(").replace("\\)", ")").replace("_", " ").casefold().split())
