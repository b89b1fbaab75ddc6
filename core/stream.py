"""Streaming safetensors: many threads read pieces of tensors and write pieces of a new file, header first.

Files are read by position (pread) into buffers of the caller's, never mapped, so that an input can be replaced while a
merge is planned and memory stays what the caller asks for. The new file has a temporary name until all of it is there.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

from .errors import AtelierError, FormatError
from .files import atomic_path, ensure_space, storage_error
from .progress import Progress
from .tensors import TensorFile, TensorRow, dtype_name, layout

if TYPE_CHECKING:
    from torch import Tensor

_Job = TypeVar("_Job")

PIECE_ELEMENTS = 32768
"""Elements of one piece of arithmetic: fp32 operands stay in the core's cache, and torch works on it in one thread."""

_FLUSH_BYTES = 256 * 2**20
_WAIT_S = 0.2
_MAX_THREADS = 8


class PositionedFile:
    """A file read or written at given positions by any number of threads."""

    def __init__(self, path: Path, *, write: bool = False) -> None:
        """Opens the file; for writing it is made anew.

        Raises:
            StorageError: It cannot be opened.
        """
        self.path = Path(path)
        try:
            self._file: BinaryIO = open(self.path, "w+b" if write else "rb", buffering=0)  # noqa: SIM115
        except OSError as cause:
            raise storage_error("write" if write else "read", self.path, cause) from cause
        self._by_position = hasattr(os, "preadv") and hasattr(os, "pwrite")
        self._lock = threading.Lock()
        if not write and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self._file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def read_into(self, position: int, out: memoryview) -> None:
        """Fills ``out`` with the file's bytes from ``position`` on.

        Raises:
            FormatError: The file ends before.
            StorageError: It cannot be read any more.
        """
        done = 0
        try:
            while done < len(out):
                count = self._read(position + done, out[done:])
                if not count:
                    raise FormatError(f"{self.path} became shorter while it was read; is it still being written?")
                done += count
        except OSError as cause:
            raise storage_error("read", self.path, cause) from cause

    def write_at(self, position: int, data: memoryview) -> None:
        """Writes all of ``data`` at ``position``; an OSError passes through, `atomic_path` explains it."""
        done = 0
        while done < len(data):
            done += self._write(position + done, data[done:])

    def flush_to_disk(self) -> None:
        """Asks the disk for everything written so far; others may go on writing."""
        (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(self._file.fileno())

    def _read(self, position: int, out: memoryview) -> int:
        if self._by_position:
            return os.preadv(self._file.fileno(), [out], position)
        with self._lock:
            self._file.seek(position)
            return int(self._file.readinto(out) or 0)  # type: ignore[attr-defined]

    def _write(self, position: int, data: memoryview) -> int:
        if self._by_position:
            return os.pwrite(self._file.fileno(), data, position)
        with self._lock:
            self._file.seek(position)
            return self._file.write(data)


class TensorReader(TensorFile):
    """A `TensorFile` that any number of threads may read at once, whole tensors or pieces of them."""

    def __init__(self, path: Path) -> None:
        """Reads and checks the header.

        Raises:
            FormatError: Not a safetensors file, or a truncated one.
            StorageError: The file cannot be read.
        """
        super().__init__(path)
        self._positioned: PositionedFile | None = None
        self._opening = threading.Lock()

    def __enter__(self) -> TensorReader:
        """Opens the file."""
        return self

    def close(self) -> None:
        """Closes the file; it opens again at the next read."""
        super().close()
        with self._opening:
            if self._positioned is not None:
                self._positioned.close()
                self._positioned = None

    def tensor(self, key: str, *, dtype: Any = None) -> Tensor:
        """Reads one tensor into CPU memory of its own; see `TensorFile.tensor`."""
        import torch

        file_dtype = self.dtype(key)
        raw = torch.empty(self.size_bytes(key), dtype=torch.uint8)
        self.read_bytes(key, 0, raw)
        value = raw.view(file_dtype).reshape(self.header.shapes[key])
        return value if dtype is None else value.to(dtype)

    def size_bytes(self, key: str) -> int:
        """Bytes of one tensor."""
        self._check_key(key)
        begin, end = self.header.offsets[key]
        return end - begin

    def read_bytes(self, key: str, first_byte: int, out: Tensor) -> None:
        """Fills ``out`` (uint8, contiguous, on the CPU) with the tensor's bytes from ``first_byte`` on.

        Raises:
            FormatError: No such key, or the file became shorter.
            StorageError: The file cannot be read any more.
        """
        self._check_key(key)
        begin, end = self.header.offsets[key]
        if first_byte < 0 or begin + first_byte + out.numel() > end:
            raise AtelierError(f"{key} of {self.path.name} has {end - begin} bytes, asked was for more")
        if out.numel():
            self._file_now().read_into(begin + first_byte, _bytes_of(out))

    def _file_now(self) -> PositionedFile:
        file = self._positioned
        if file is None:
            with self._opening:
                file = self._positioned = self._positioned or PositionedFile(self.path)
        return file


class TensorWriter:
    """A safetensors file whose header stands already; the tensors' bytes come in any order from any thread."""

    def __init__(self, file: PositionedFile, offsets: Mapping[str, tuple[int, int]]) -> None:
        self._file = file
        self._offsets = offsets
        self._lock = threading.Lock()
        self._written = dict.fromkeys(offsets, 0)
        self._unflushed_bytes = 0
        self._flusher: threading.Thread | None = None

    def write(self, key: str, tensor: Tensor) -> None:
        """Writes a whole tensor, of the type and shape that the header promised."""
        import torch

        flat = tensor.detach().to("cpu").contiguous().reshape(-1)
        self.write_bytes(key, 0, flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8))

    def write_bytes(self, key: str, first_byte: int, data: Tensor) -> None:
        """Writes a piece: bytes (uint8, contiguous, on the CPU) of the tensor from ``first_byte`` on.

        Raises:
            AtelierError: More bytes than the header promised.
        """
        begin, end = self._offsets[key]
        if begin + first_byte + data.numel() > end:
            raise AtelierError(f"{key} was to have {end - begin} bytes and more were given to be written")
        if not data.numel():
            return
        self._file.write_at(begin + first_byte, _bytes_of(data))
        with self._lock:
            self._written[key] += data.numel()
            self._unflushed_bytes += data.numel()
            if self._unflushed_bytes < _FLUSH_BYTES or (self._flusher is not None and self._flusher.is_alive()):
                return
            self._unflushed_bytes = 0
            self._flusher = threading.Thread(target=self._flush, daemon=True)
            self._flusher.start()

    def finish(self) -> None:
        """Waits for the disk and makes sure that nothing is missing.

        Raises:
            AtelierError: A tensor was not written, or not all of it.
        """
        if self._flusher is not None:
            self._flusher.join()
        for key, (begin, end) in self._offsets.items():
            if self._written[key] != end - begin:
                raise AtelierError(f"{key} has {end - begin} bytes and {self._written[key]} were written")

    def stop(self) -> None:
        """Waits until nothing uses the file any more."""
        if self._flusher is not None:
            self._flusher.join()

    def _flush(self) -> None:
        # Writing out while the arithmetic goes on; a disk that is full says so again at the last sync.
        try:
            self._file.flush_to_disk()
        except OSError:
            return


@contextmanager
def stream_tensors(
    path: Path, rows: Mapping[str, TensorRow], metadata: Mapping[str, str] | None = None
) -> Iterator[TensorWriter]:
    """Gives a writer for a new safetensors file; the file takes its place when the block ends without an error.

    The layout is that of `core.tensors.write_tensors` (by falling type, then by name), so both write the same bytes.

    Args:
        path: Where to; missing folders are made.
        rows: Type and shape of every tensor.
        metadata: Texts by key.

    Raises:
        StorageError: No space (checked before anything is written, and again as the disk reports it) or no permission.
        AtelierError: A type that the format does not know, metadata that is not text, or tensors left unwritten.
    """
    header, offsets = layout(rows, metadata or {})
    end = max((last for _, last in offsets.values()), default=0)
    ensure_space(path, len(header) + end)
    with atomic_path(path) as temporary:
        file = PositionedFile(temporary, write=True)
        writer = TensorWriter(
            file, {key: (len(header) + first, len(header) + last) for key, (first, last) in offsets.items()}
        )
        try:
            file.write_at(0, memoryview(header))
            yield writer
            writer.finish()
        finally:
            writer.stop()
            file.close()


def row_of(tensor: Tensor) -> TensorRow:
    """Type and shape of a tensor, as `stream_tensors` wants them."""
    return TensorRow(dtype=dtype_name("tensor", tensor), shape=tuple(tensor.shape))


@dataclass(frozen=True, kw_only=True)
class Stop:
    """What a job asks between pieces: whether it should end early, because of Cancel or of another job's error."""

    event: threading.Event

    def check(self) -> None:
        """Ends the job.

        Raises:
            Stopped: Another job failed or the person asked to stop.
        """
        if self.event.is_set():
            raise Stopped


class Stopped(Exception):
    """A job ended early because the whole is ending; never seen outside of `run_jobs`."""


class MemoryBudget:
    """Bounds what jobs hold together: a job that wants more than is left waits; a job larger than all runs alone."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, wanted_bytes: int, stop: Stop) -> Iterator[None]:
        """Waits until the bytes are free, and holds them during the block.

        Raises:
            Stopped: The whole is ending.
        """
        wanted = min(wanted_bytes, self._limit)
        with self._changed:
            while self._used + wanted > self._limit:
                stop.check()
                self._changed.wait(_WAIT_S)
            self._used += wanted
        try:
            yield
        finally:
            with self._changed:
                self._used -= wanted
                self._changed.notify_all()


def default_threads() -> int:
    """Threads for streaming work: one per core this process may use, eight at most."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    return max(1, min(_MAX_THREADS, usable))


def run_jobs(
    jobs: Sequence[_Job],
    do: Callable[[_Job, Stop], None],
    *,
    weight: Callable[[_Job], int] = lambda job: 1,
    threads: int | None = None,
    progress: Progress | None = None,
    text: str = "",
) -> None:
    """Does all jobs in threads, in order, and reports; on the first error, or on Cancel, the others end early.

    Args:
        jobs: What to do, in order.
        do: Does one of them in a thread; asks its `Stop` between pieces.
        weight: Share of a job in the whole, for the progress bar.
        threads: How many at once; None asks `default_threads`.
        progress: Asked for cancel and told about progress, in the caller's own thread.
        text: Words beside the bar.

    Raises:
        BaseException: The first error of a job, or the host's own cancel exception.
    """
    event = threading.Event()
    stop = Stop(event=event)
    total = sum(weight(job) for job in jobs)
    done = 0
    with ThreadPoolExecutor(max_workers=threads or default_threads(), thread_name_prefix="atelier-stream") as pool:
        waiting: dict[Future[None], _Job] = {pool.submit(_one, do, job, stop): job for job in jobs}
        try:
            while waiting:
                finished, _ = wait(waiting, timeout=_WAIT_S, return_when=FIRST_COMPLETED)
                for future in finished:
                    done += weight(waiting.pop(future))
                    future.result()
                if progress is not None:
                    progress.update(done, max(1, total), text)
        except BaseException:
            event.set()
            for future in waiting:
                future.cancel()
            raise


def _one(do: Callable[[_Job, Stop], None], job: _Job, stop: Stop) -> None:
    import torch

    stop.check()
    with torch.no_grad():
        do(job, stop)


def _bytes_of(tensor: Tensor) -> memoryview:
    return memoryview(cast(Any, tensor.numpy()))


def elements(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)
