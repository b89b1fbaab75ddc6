"""A lock that a process holds on a folder; the system lets go of it when the process ends, however it ends."""

import contextlib
import errno
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..core.errors import StorageError

if sys.platform == "win32":
    import msvcrt

    def _take(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)

    def _give_back(file: BinaryIO) -> None:
        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _take(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _give_back(file: BinaryIO) -> None:
        fcntl.flock(file.fileno(), fcntl.LOCK_UN)


_HELD = (errno.EAGAIN, errno.EACCES, errno.EDEADLK, errno.EWOULDBLOCK)
"""What the systems say when another process has the lock (EDEADLK and EACCES on Windows)."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the folder for this process.

    Raises:
        StorageError: another process (or another thread of this one) holds it.
    """
    with open(folder / "run.lock", "a+b") as file:
        try:
            _take(file)
        except OSError as cause:
            if cause.errno not in _HELD:
                raise StorageError(
                    f"The run {folder.name} cannot be locked ({cause}): the disk of the output folder does not allow "
                    "it; choose an output folder on another disk."
                ) from cause
            raise StorageError(
                f"The run {folder.name} is being trained by another process; wait for it, or choose the mode restart."
            ) from cause
        try:
            yield
        finally:
            _give_back(file)
