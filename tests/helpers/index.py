"""An index file that goes wrong."""

import sqlite3
from collections.abc import Iterable
from pathlib import Path

import numpy as np


def damage_pages(path: Path, pages: Iterable[int]) -> None:
    """Writes nonsense over pages of an index file, behind the back of whoever holds it."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = connection.execute("PRAGMA page_size").fetchone()[0]
    connection.close()
    with open(path, "r+b") as file:
        for page in pages:
            file.seek(page * size)
            file.write(np.random.default_rng(page).bytes(size))
