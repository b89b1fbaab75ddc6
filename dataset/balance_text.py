"""A plan of repeats in the forms other tools read: folder names, kohya's TOML, ``multiply.txt``."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import InputError, StorageError
from ..core.files import safe_name, write_text
from .balance import Plan, tree_places
from .export import ExportParams, toml_text
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

FOLDER_NAMES, TOML, MULTIPLY = "folder names", "kohya TOML", "multiply.txt"
FORMS = (FOLDER_NAMES, TOML, MULTIPLY)
MULTIPLY_FILE = "multiply.txt"


def plan_text(dataset: "Dataset", plan: Plan, form: str, *, resolution_px: int = 512) -> str:
    """The plan in one of ``FORMS``.

    Args:
        dataset: The balanced data set.
        plan: Its plan.
        form: ``folder names``: one ``N_name`` per line; ``kohya TOML``: a data set configuration; ``multiply.txt``: one
            line ``folder,factor`` for each file that would be written.
        resolution_px: Named in the TOML text.

    Raises:
        InputError: There is no such form.
    """
    if form == FOLDER_NAMES:
        return "\n".join(folder_name(folder.repeats, folder.name) for folder in plan.folders) + "\n"
    if form == TOML:
        folders = [subset.folder.as_posix() for subset in dataset.subsets]
        return toml_text(dataset, folders, ExportParams(resolution_px=resolution_px, batch_size=plan.params.batch_size))
    if form == MULTIPLY:
        return "".join(f"{folder.name},{folder.multiply:g}\n" for folder in plan.folders)
    raise InputError(f"the form {form!r} is not known, allowed are {', '.join(FORMS)}")


def folder_name(repeats: int, name: str) -> str:
    """An ``N_name`` that every system accepts."""
    return safe_name(f"{repeats}_{name}", max_chars=120)


def write_multiply(dataset: "Dataset", plan: Plan, allowed: Callable[[Path], bool]) -> list[Path]:
    """Writes ``multiply.txt`` into every planned folder; all are checked before the first is written.

    Args:
        dataset: The balanced data set.
        plan: Its plan.
        allowed: Says whether a folder may be written to.

    Returns:
        The files.

    Raises:
        StorageError: A folder may not be written to, or is gone.
        InputError: The file would be taken for the caption of a picture.
    """
    by_levels = {folder.levels: folder for folder in plan.folders}
    captioned = {
        int(number)
        for number, name in zip(dataset.subset_index.tolist(), dataset.names, strict=True)
        if os.path.splitext(name)[0].casefold() == "multiply"
    }
    wanted: list[tuple[Path, str]] = []
    for number, levels in tree_places(dataset).items():
        folder = dataset.subsets[number].folder
        if levels not in by_levels or dataset.subsets[number].is_reg:
            continue
        if number in captioned:
            raise InputError(
                f"the folder {printable(folder.name)!r} holds a picture called 'multiply', whose caption file is "
                f"{MULTIPLY_FILE}; rename that picture first"
            )
        if not folder.is_dir():
            raise StorageError(f"the folder {printable(folder.name)!r} is gone; open the data set again")
        if not allowed(folder):
            raise StorageError(
                f"the folder {str(folder)!r} lies outside the allowed folders, so {MULTIPLY_FILE} is not written; "
                "take its text from this node instead"
            )
        wanted.append((folder / MULTIPLY_FILE, f"{by_levels[levels].multiply:g}\n"))
    for path, text in wanted:
        write_text(path, text)
    return [path for path, _ in wanted]


def written_note(paths: list[Path]) -> str:
    """What was written, for a report."""
    shown = ", ".join(str(path) for path in paths[:3])
    return f"Wrote {counted(len(paths), 'file')}: {shown}{' ...' if len(paths) > 3 else ''}"
