"""Columns of a data set: packed strings and interned tags. Immutable, so that tables can share them."""

from ._arrays import Digest, frozen, new_digest, offsets_of, runs
from .tag_builder import TagColumnBuilder
from .tag_column import CATEGORIES, SOURCES, TagColumn
from .text_column import TextColumn

__all__ = [
    "CATEGORIES",
    "SOURCES",
    "Digest",
    "TagColumn",
    "TagColumnBuilder",
    "TextColumn",
    "frozen",
    "new_digest",
    "offsets_of",
    "runs",
]
