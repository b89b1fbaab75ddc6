"""What was once found out about files, remembered in one SQLite file: sizes, content hashes, tagger scores.

Everything in it can be found out again, so a damaged file is moved aside and begun anew with what of it can be read,
whether the damage is met at opening or later. Rows are bytes by (kind, key); what they mean is the business of whoever
writes the kind. Several threads and processes may use one file.
"""

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .errors import StorageError
from .index_rescue import Row, is_damage, move_aside, rescue

log = logging.getLogger("lora_atelier")

LOCK_TIMEOUT_S = 60.0
"""How long a writer waits for another process to finish its transaction."""
_ASK_AT_ONCE = 500
_CREATE = (
    "CREATE TABLE IF NOT EXISTS facts (kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, "
    "PRIMARY KEY (kind, key)) WITHOUT ROWID"
)
_GET = "SELECT value FROM facts WHERE kind = ? AND key = ?"
_PUT = "INSERT OR REPLACE INTO facts VALUES (?, ?, ?)"
_Answer = TypeVar("_Answer")


class Index:
    """Remembered facts; see the module. Use it as a context manager, or call :meth:`close`."""

    def __init__(self, path: Path, *, status: Callable[[str], None] | None = None) -> None:
        """Opens the file, which is made when it is missing.

        Args:
            path: The SQLite file. Its folder must be on a local disk: WAL needs shared memory.
            status: Told when a damaged file was moved aside; so is the log, and whoever calls `take_notes`.

        Raises:
            StorageError: The file cannot be opened or made.
        """
        self.path = Path(path)
        self._status = status
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._turn = threading.Condition()
        self._users, self._mending, self._generation = 0, False, 0
        self._file: tuple[int, int] | None = None
        self._notes: list[str] = []
        self._asked(lambda connection: None)

    def take_notes(self) -> list[str]:
        """What happened to the file since this was asked last, to be told to a person: usually nothing."""
        with self._lock:
            notes, self._notes = self._notes, []
        return notes

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections of all threads; the object cannot be used after it."""
        self._close_all()

    def release(self) -> None:
        """Closes the connection of this thread; for threads that end before the index is closed."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            return
        self._local.connection = None
        with self._lock:
            if connection in self._opened:
                self._opened.remove(connection)
        connection.close()

    def get(self, kind: str, key: bytes) -> bytes | None:
        """The value of one key, or None.

        Raises:
            StorageError: The file cannot be read.
        """
        row = self._asked(lambda connection: connection.execute(_GET, (kind, key)).fetchone())
        return None if row is None else row[0]

    def get_many(self, kind: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of the keys in their order, None where there is none.

        Raises:
            StorageError: The file cannot be read.
        """

        def ask(connection: sqlite3.Connection) -> list[bytes | None]:
            found: dict[bytes, bytes] = {}
            for start in range(0, len(keys), _ASK_AT_ONCE):
                part = keys[start : start + _ASK_AT_ONCE]
                marks = ",".join("?" * len(part))
                found.update(
                    connection.execute(
                        f"SELECT key, value FROM facts WHERE kind = ? AND key IN ({marks})",  # noqa: S608 (only marks)
                        (kind, *part),
                    )
                )
            return [found.get(key) for key in keys]

        return self._asked(ask)

    def put_many(self, kind: str, items: Iterable[tuple[bytes, bytes]]) -> None:
        """Writes (key, value) pairs in one transaction; all of them are on disk afterwards or none is.

        Raises:
            StorageError: The file cannot be written.
        """
        rows = [(kind, key, value) for key, value in items]
        self._changed(lambda connection: connection.executemany(_PUT, rows), rows)

    def delete_many(self, kind: str, keys: Iterable[bytes]) -> None:
        """Forgets keys in one transaction.

        Raises:
            StorageError: The file cannot be written.
        """
        rows = [(kind, key) for key in keys]
        self._changed(
            lambda connection: connection.executemany("DELETE FROM facts WHERE kind = ? AND key = ?", rows), rows
        )

    def count(self, kind: str) -> int:
        """How many keys a kind has."""
        answer = self._asked(
            lambda connection: connection.execute("SELECT COUNT(*) FROM facts WHERE kind = ?", (kind,)).fetchone()
        )
        return int(answer[0])

    def sizes(self, kind: str) -> dict[bytes, int]:
        """Bytes of the value of every key of a kind."""
        return dict(
            self._asked(
                lambda connection: connection.execute(
                    "SELECT key, LENGTH(value) FROM facts WHERE kind = ?", (kind,)
                ).fetchall()
            )
        )

    def items(self, kind: str) -> Iterator[tuple[bytes, bytes]]:
        """All (key, value) pairs of a kind, as they stand when asked."""
        rows: list[tuple[bytes, bytes]] = self._asked(
            lambda connection: connection.execute("SELECT key, value FROM facts WHERE kind = ?", (kind,)).fetchall()
        )
        return iter(rows)

    def _changed(self, change: Callable[[sqlite3.Connection], object], rows: Sequence[object]) -> None:
        if not rows:
            return

        def in_transaction(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")
            try:
                change(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

        self._asked(in_transaction)

    def _asked(self, ask: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """The answer; asked once more where the file turned out to be damaged and was begun anew."""
        generation = self._generation
        try:
            return self._in_turn(ask)
        except sqlite3.Error as cause:
            if not is_damage(cause):
                raise self._refusal(cause) from cause
            self._mend(cause, generation)
        try:
            return self._in_turn(ask)
        except sqlite3.Error as cause:
            raise self._refusal(cause) from cause

    def _in_turn(self, ask: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        """The answer, while no thread mends the file."""
        with self._turn:
            self._turn.wait_for(lambda: not self._mending)
            self._users += 1
        try:
            return ask(self._connection())
        finally:
            with self._turn:
                self._users -= 1
                self._turn.notify_all()

    def _mend(self, damage: sqlite3.Error, generation: int) -> None:
        """Moves the damaged file aside and begins a new one with what can be read of it.

        Args:
            damage: What was said of it.
            generation: Of the file that it was said of; a newer one is left alone, another thread has mended it.

        Raises:
            StorageError: It cannot be moved, or a new one cannot be written.
        """
        with self._turn:
            self._turn.wait_for(lambda: not self._mending)
            if self._generation != generation:
                return
            self._mending = True
            self._turn.wait_for(lambda: self._users == 0)
        try:
            self._close_all()
            if self._file is None or self._file == _identity(self.path):  # else another process has mended it
                aside = move_aside(self.path)
                found = rescue(aside, self._take_over)
                self._say(
                    f"{self.path.name} was damaged ({damage}); it now lies at {aside} and a new one is begun, with the "
                    f"{found} facts that could still be read. What is missing is found out again when it is needed."
                )
            self._generation += 1
        except (OSError, sqlite3.Error) as cause:
            raise self._refusal(cause) from cause
        finally:
            with self._turn:
                self._mending = False
                self._turn.notify_all()

    def _take_over(self, rows: list[Row]) -> None:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_PUT, rows)
        connection.execute("COMMIT")

    def _say(self, note: str) -> None:
        log.warning("%s", note)
        with self._lock:
            self._notes.append(note)
        if self._status is not None:
            self._status(note)

    def _connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise self._refusal(cause) from cause
        self._file = _identity(self.path)
        connection = sqlite3.connect(self.path, timeout=LOCK_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            # In WAL mode this cannot corrupt the file; a power cut may lose the last facts, which are found again.
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(_CREATE)
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._opened.append(connection)
            self._file = _identity(self.path)
        self._local.connection = connection
        return connection

    def _close_all(self) -> None:
        """Closes the connections of all threads, none of which is in use."""
        with self._lock:
            for connection in self._opened:
                with contextlib.suppress(sqlite3.Error):
                    connection.close()
            self._opened.clear()
        self._local = threading.local()

    def _refusal(self, cause: Exception) -> StorageError:
        return StorageError(
            f"the index {str(self.path)!r} cannot be used ({cause}); close other programs that hold it, free disk "
            "space, or delete it: it is made anew."
        )


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells this file from another one under the same name."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_dev, facts.st_ino
