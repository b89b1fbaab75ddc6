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
            ended = False
            for rows, ended in _readable(connection, order):
                write(rows)
                found += len(rows)
            if ended:
                break
    finally:
        with contextlib.suppress(sqlite3.Error):
            connection.close()
    with contextlib.suppress(FileNotFoundError, PermissionError):
        os.remove(f"{aside}-shm")
    return found


def _readable(connection: sqlite3.Connection, order: str) -> Iterator[tuple[list[Row], bool]]:
    """Rows until the first that cannot be read; True with the last ones where none was damaged."""
    rows: list[Row] = []
    ended = False
    try:
        for kind, key, value in connection.execute(f"SELECT kind, key, value FROM facts ORDER BY {order}"):  # noqa: S608
            if isinstance(kind, str) and isinstance(key, bytes) and isinstance(value, bytes):
                rows.append((kind, key, value))
            if len(rows) >= _ROWS_AT_ONCE:
                yield rows, False
                rows = []
        ended = True
    except (sqlite3.DatabaseError, UnicodeDecodeError):
        ended = False
    yield rows, ended
