"""What was once found out about files, remembered in one SQLite file: sizes, content hashes, tagger scores.

Everything in it can be found out again, so a damaged file is moved aside and begun anew. Rows are bytes by
(kind, key); what they mean is the business of whoever writes the kind. Several threads and processes may use one file.
"""

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from .errors import StorageError

LOCK_TIMEOUT_S = 60.0
"""How long a writer waits for another process to finish its transaction."""
_ASK_AT_ONCE = 500
_CREATE = (
    "CREATE TABLE IF NOT EXISTS facts (kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, "
    "PRIMARY KEY (kind, key)) WITHOUT ROWID"
)
_Answer = TypeVar("_Answer")


class Index:
    """Remembered facts; see the module. Use it as a context manager, or call :meth:`close`."""

    def __init__(self, path: Path, *, status: Callable[[str], None] | None = None) -> None:
        """Opens the file, which is made when it is missing.

        Args:
            path: The SQLite file. Its folder must be on a local disk: WAL needs shared memory.
            status: Told when a damaged file was moved aside.

        Raises:
            StorageError: The file cannot be opened or made.
        """
        self.path = Path(path)
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        try:
            self._connection()
        except sqlite3.DatabaseError as cause:
            if isinstance(cause, sqlite3.OperationalError):
                raise self._refusal(cause) from cause
            aside = self._move_aside()
            if status is not None:
                status(f"{self.path.name} was damaged ({cause}); it now lies at {aside} and a new one is begun.")
            try:
                self._connection()
            except sqlite3.Error as again:
                raise self._refusal(again) from again

    def __enter__(self) -> "Index":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections of all threads; the object cannot be used after it."""
        with self._lock:
            for connection in self._opened:
                connection.close()
            self._opened.clear()
        self._local = threading.local()

    def get(self, kind: str, key: bytes) -> bytes | None:
        """The value of one key, or None."""
        return self.get_many(kind, [key])[0]

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
        self._changed(
            lambda connection: connection.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?, ?)", rows), rows
        )

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
            except BaseException:
                connection.execute("ROLLBACK")
                raise
            connection.execute("COMMIT")

        self._asked(in_transaction)

    def _asked(self, ask: Callable[[sqlite3.Connection], _Answer]) -> _Answer:
        try:
            return ask(self._connection())
        except sqlite3.Error as cause:
            raise self._refusal(cause) from cause

    def _connection(self) -> sqlite3.Connection:
        """The connection of this thread."""
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is not None:
            return connection
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise self._refusal(cause) from cause
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
        self._local.connection = connection
        return connection

    def _move_aside(self) -> Path:
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.time_ns()}")
        try:
            os.replace(self.path, aside)
            for ending in ("-wal", "-shm"):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(f"{self.path}{ending}")
        except OSError as cause:
            raise self._refusal(cause) from cause
        return aside

    def _refusal(self, cause: Exception) -> StorageError:
        return StorageError(
            f"the index {str(self.path)!r} cannot be used ({cause}); close other programs that hold it, free disk "
            "space, or delete it: it is made anew."
        )
