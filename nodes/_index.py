"""The index of what was found out about files, where it can be used."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.errors import StorageError
from .host import get_host

if TYPE_CHECKING:
    from ..core.index import Index
    from ..core.progress import Progress


def index_if_usable(progress: Progress) -> Index | None:
    """The host's index; None where its file cannot be used (a network share), which is told: all works without it."""
    try:
        index = get_host().index()
        for note in index.take_notes():
            progress.status(note)
        return index
    except StorageError as refusal:
        progress.status(f"Nothing is remembered: {refusal}")
        return None
