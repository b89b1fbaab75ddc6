"""Getting facts out of an index file that is damaged, as far as they can be read."""

import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

_ROWS_AT_ONCE = 1000
_CORRUPT, _NO_DATABASE = 11, 26
_WORDS = ("malformed", "not a database", "corrupt")

Row = tuple[str, bytes, bytes]


def is_damage(cause: BaseException) -> bool:
    """Whether an error says that the file itself is damaged, not that it is locked, full or out of reach."""
    if not isinstance(cause, sqlite3.DatabaseError):
        return False
    code = getattr(cause, "sqlite_errorcode", None)  # from Python 3.11 on
    if code is not None:
        return code & 0xFF in (_CORRUPT, _NO_DATABASE)
    return any(word in str(cause) for word in _WORDS)


def move_aside(path: Path) -> Path:
    """Renames an index file and its journal, so that a new one can be begun; gives the new name.

    Raises:
        OSError: It cannot be renamed, e.g. because another program holds it.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    os.replace(path, aside)
    with contextlib.suppress(FileNotFoundError):
        os.replace(f"{path}-wal", f"{aside}-wal")  # it holds what was written last
    with contextlib.suppress(FileNotFoundError):
        os.remove(f"{path}-shm")
    return aside


def rescue(aside: Path, write: Callable[[list[Row]], None]) -> int:
    """Hands over what can be read of a damaged file, which is kept; gives the number of facts.

    It is read from its first fact on until the damage, and then from its last one backwards.

    Args:
        aside: The damaged file.
        write: Takes rows (kind, key, value); a row may come twice.

    Raises:
        sqlite3.Error: From ``write``.
    """
    found = 0
    connection = sqlite3.connect(aside, isolation_level=None)
    try:
        for order in ("kind, key", "kind DESC, key DESC"):
            reading = _Reading(connection, order)
            for rows in reading.parts():
                write(rows)
                found += len(rows)
            if reading.was_whole:
                break
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.remove(f"{aside}-shm")
    return found


class _Reading:
    """Rows in one order until the first that cannot be read."""

    def __init__(self, connection: sqlite3.Connection, order: str) -> None:
        self._connection, self._order = connection, order
        self.was_whole = False

    def parts(self) -> Iterator[list[Row]]:
        rows: list[Row] = []
        try:
            asked = f"SELECT kind, key, value FROM facts ORDER BY {self._order}"  # noqa: S608 (one of two constants)
            for kind, key, value in self._connection.execute(asked):
                if isinstance(kind, str) and isinstance(key, bytes) and isinstance(value, bytes):
                    rows.append((kind, key, value))
                if len(rows) >= _ROWS_AT_ONCE:
                    yield rows
                    rows = []
            self.was_whole = True
        except (sqlite3.DatabaseError, UnicodeDecodeError):
            self.was_whole = False
        yield rows
