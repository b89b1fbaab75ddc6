"""Text files that a node writes on demand, below the output folder and nowhere else."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import InputError
from ..core.files import write_text
from .host import get_host

ENDINGS = (".txt", ".toml", ".csv", ".md", ".json")


def write_output(name: str, text: str, *, ending: str) -> Path:
    """Writes a text file below the output folder, atomically; one of that name is replaced.

    Args:
        name: As a person gave it; the ending may be left out.
        text: What goes into it.
        ending: Of the file, with its dot.

    Raises:
        InputError: The name is refused, or has another ending.
        StorageError: It leads out of the output folder, or cannot be written.
    """
    if not name.strip().strip("\"'"):
        raise InputError("file_name is empty; give the name of a file below the output folder, such as plans/mine")
    given = Path(name.strip().strip("\"'")).suffix.lower()
    if given in ENDINGS and given != ending:
        raise InputError(f"the file name {name!r} ends with {given}, but this text is written as {ending}; rename it")
    if given != ending:
        name = f"{name.strip()}{ending}"
    path = get_host().roots().resolve(name, ("output",), must_exist=False, what="output file")
    write_text(path, text)
    return path
