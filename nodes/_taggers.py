"""Taggers by name, as the nodes offer them; a missing one is answered with the files that go where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.errors import AtelierError, InputError, UnknownNameError
from ..core.index import Index
from ..core.progress import Progress
from ..tagger.adapters import files_wanted
from ..tagger.runner import Tagger, open_tagger
from ._index import index_if_usable
from .host import PICO_NAME, get_host
from .widgets import combo


def tagger_combo(what: str = "The tagger") -> Any:
    """The list of taggers."""
    return combo(
        get_host().tagger_names(),
        f"{what}: a folder with model.onnx and its tag table (selected_tags.csv, tag_mapping.json, top_tags.txt ...) "
        f"below the taggers model folder, or '{PICO_NAME}', the tagger of the tiny model.",
    )


def tagger_path(name: str) -> Path:
    """Folder or graph of a tagger.

    Raises:
        InputError: There is none of this name; the message says which files go where.
    """
    try:
        return get_host().tagger_path(name)
    except UnknownNameError as refusal:
        wanted = files_wanted(f"the folder '{name}' below the taggers model folder", name)
        raise InputError(f"{refusal}; to have it, {wanted}") from refusal


def refusal_of(name: str | None) -> bool | str:
    """For ``VALIDATE_INPUTS``: True, or why there is no such tagger."""
    if name is None:
        return True
    try:
        tagger_path(name)
    except AtelierError as refusal:
        return str(refusal)
    return True


def score_index(progress: Progress) -> Index:
    """Where scores are kept: the host's index, or one in the temporary folder where that cannot be used.

    Raises:
        StorageError: Neither can be used.
    """
    usual = index_if_usable(progress)
    return usual if usual is not None else Index(get_host().temp_dir() / "atelier-index.sqlite")


def open_for_many(name: str) -> Tagger:
    """A tagger for a data set: one thread for each call, since the pipeline's workers fill the cores.

    Raises:
        InputError: There is none of this name.
        AtelierError: Its files do not belong together or cannot be run.
    """
    return open_tagger(tagger_path(name), threads=1)
