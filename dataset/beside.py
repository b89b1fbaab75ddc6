"""Finding files that belong to pictures: each folder is listed once, whatever the number of pictures in it."""

import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path


class SeenFolders:
    """Which files there are; the case of letters and the form of accents in names do not count."""

    def __init__(self) -> None:
        """Nothing is listed yet."""
        self._stems: dict[str, dict[str, dict[str, str]]] = {}

    def first(self, bases: Iterable[str], endings: Sequence[str]) -> Path | None:
        """The first file called base + ending, as it is really written; None where there is none.

        Args:
            bases: Paths without ending, the best first.
            endings: Endings with their dot in lower case, the best first.
        """
        for base in bases:
            folder, name = os.path.split(base)
            if folder not in self._stems:
                self._stems[folder] = _listed(folder)
            names = self._stems[folder].get(_form(name))
            if names:
                for ending in endings:
                    if ending in names:
                        return Path(folder, names[ending])
        return None


def _listed(folder: str) -> dict[str, dict[str, str]]:
    """Files of a folder: name by ending by stem; none where there is no such folder or it cannot be read."""
    found: dict[str, dict[str, str]] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    stem, ending = os.path.splitext(entry.name)
                    found.setdefault(_form(stem), {})[ending.lower()] = entry.name
    except OSError:
        return {}
    return found


def _form(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
