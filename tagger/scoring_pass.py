"""One pass over pictures whose scores are not known: read, decode, infer, write down.

On a CPU as many worker threads as there are cores compute, each picture from its bytes to its scores in one go, so that
its pixels are still in the core's cache when the graph reads them; Pillow and onnxruntime both let go of Python's lock.
On a GPU the workers decode while at most two of them have a batch on the device. One thread more asks the disk for the
files that are next, so that no core waits for it. A worker reads a file once: what it hashes is what it decodes.
"""

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.index import Index
from ..core.progress import Progress
from ..dataset.images import BadPicture, load_row
from ..dataset.table import Dataset
from .contents import KnownContent, read_picture, remember
from .scores import SparseScores, joined, sparse_of
from .store import Entry, Scorer, ScoreStore, picture_key

FLUSH_PICTURES = 64
"""Pictures per transaction: so many at most are scored a second time after a kill, and those in the workers."""
FLUSH_S = 2.0
JOB_S = 0.05
"""On a CPU a job should take about so long: short enough for Cancel and for even ends, long enough to cost nothing."""
JOB_PICTURES = 16
"""Most pictures in a job on a CPU."""
CACHED_BYTES = 1 << 20
"""On a CPU pictures go through the graph together only while their inputs fit a core's cache; larger ones cost more."""
_GPU_RUNS = 2
_PIECE_BYTES = 1 << 20
_COLD_PICTURES = 100
"""After so many files that were in memory already nothing is read ahead, until one is not."""
_TICK_S = 0.25
_REPORT_S = 0.1


class PictureScorer(Scorer, Protocol):
    """What scores pictures: a tagger or a classifier."""

    @property
    def name(self) -> str:
        """For messages."""

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU alone computes."""

    @property
    def batch_size(self) -> int:
        """Most pictures in a call."""

    @property
    def is_batched(self) -> bool:
        """Whether fewer than `batch_size` will do."""

    def decode(self, path: Path, data: bytes | None = None) -> Image.Image:
        """The picture of a file, of its bytes where they were read already."""

    def prepared(self, image: Image.Image) -> NDArray[np.float32]:
        """A picture as input."""

    def score_batch(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Scores of prepared pictures, float32 [pictures, tags]; several threads may call at once."""


@dataclass
class Picture:
    """A picture on its way.

    Attributes:
        row: Its row of the data set.
        path: Its file.
        crop: The part of it that is scored; None for all of it.
        known: What its content was found to be earlier.
        key: By which its scores are kept, once its content is known.
        is_begun: Whether a worker has come to it.
    """

    row: int
    path: Path
    crop: tuple[int, int, int, int] | None
    known: KnownContent | None = None
    key: bytes = b""
    is_begun: bool = False


@dataclass
class _Outcome:
    """What came out of a job."""

    entries: list[tuple[Picture, Entry]] = field(default_factory=list)
    known: list[tuple[Picture, Entry]] = field(default_factory=list)
    twins: list[tuple[int, int]] = field(default_factory=list)
    failures: list[tuple[Picture, str]] = field(default_factory=list)
    contents: list[tuple[bytes, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None


class ScoringPass:
    """Scores pictures that the store does not know; see `go`."""

    def __init__(
        self, dataset: Dataset, scorer: PictureScorer, index: Index, store: ScoreStore, progress: Progress, workers: int
    ) -> None:
        """Prepares a pass with so many worker threads."""
        self._dataset, self._scorer, self._index, self._store = dataset, scorer, index, store
        self._progress = progress
        self._threads = max(1, workers) + (0 if scorer.on_cpu else _GPU_RUNS)
        self._device: AbstractContextManager[object]
        self._device = contextlib.nullcontext() if scorer.on_cpu else threading.Semaphore(_GPU_RUNS)
        self.inferred, self.found_later, self.failed = 0, 0, dict[int, str]()
        self._done, self._total = 0, 0
        self._jobs: SimpleQueue[list[Picture] | None] = SimpleQueue()
        self._ahead: SimpleQueue[list[Picture] | None] = SimpleQueue()
        self._outcomes: SimpleQueue[_Outcome] = SimpleQueue()
        self._under_way = 0
        self._cold = _COLD_PICTURES
        self._claims, self._claimed = threading.Lock(), dict[bytes, int]()
        self._twins: list[tuple[int, int]] = []
        self._place: dict[int, int] = {}
        self._parts: list[SparseScores] = []
        self._fresh: list[Entry] = []
        self._unwritten: list[tuple[bytes, Entry]] = []
        self._contents: list[tuple[bytes, bytes]] = []
        self._written_at = self._started_at = time.monotonic()
        self._reported_at = 0.0
        self._picture_s = 0.0

    def go(self, pictures: Iterator[Picture], number: int, *, known: int) -> None:
        """Scores them all; whatever happens, what is finished is written.

        Args:
            pictures: The pictures.
            number: How many they are.
            known: How many others are done already, for the progress.
        """
        self._done, self._total = known, known + number
        tasks = [self._read_ahead, *[self._work] * self._threads]
        threads = [
            threading.Thread(target=task, name=f"atelier-tagger-{n}", daemon=True) for n, task in enumerate(tasks)
        ]
        for thread in threads:
            thread.start()
        left = number
        try:
            while left or self._under_way:
                while left and self._under_way < self._threads + 2:
                    job = list(itertools.islice(pictures, self._job_size(left)))
                    left -= len(job)
                    self._under_way += 1
                    self._jobs.put(job)
                    self._ahead.put(job)
                self._await_one()
        finally:
            self._stop(threads)

    def found(self) -> tuple[NDArray[np.int64], SparseScores]:
        """Rows of the data set that got scores, ascending, and those scores."""
        place = self._place
        for row, twin in self._twins:
            if twin in self.failed:
                self.failed[row] = self.failed[twin]
            else:
                place[row] = place[twin]
        rows = np.array(sorted(place), dtype=np.int64)
        places = np.array([place[row] for row in rows.tolist()], dtype=np.int64)
        return rows, _chained(self._parts).take(places)

    def _job_size(self, left: int) -> int:
        """Pictures of the next job: as many as take a short while, and fewer towards the end."""
        if not self._scorer.on_cpu or not self._scorer.is_batched:
            return self._scorer.batch_size
        near = round(JOB_S / self._picture_s) if self._picture_s else 1
        return max(1, min(near, JOB_PICTURES, left // (2 * self._threads)))

    def _stop(self, threads: Sequence[threading.Thread]) -> None:
        """Lets the workers end what they have begun, and writes what came of it."""
        for jobs in (self._jobs, self._ahead):
            with contextlib.suppress(Empty):
                while True:
                    jobs.get_nowait()
            for _ in threads:
                jobs.put(None)
        for thread in threads:
            thread.join()
        with contextlib.suppress(Empty):
            while True:
                self._collect(self._outcomes.get_nowait())
        self._flush()

    def _read_ahead(self) -> None:
        """The thread that asks the disk for files which no worker has come to yet."""
        while (job := self._ahead.get()) is not None:
            for picture in job:
                if self._cold and not picture.is_begun:
                    fetch(picture.path)

    def _work(self) -> None:
        """A worker thread."""
        try:
            while (job := self._jobs.get()) is not None:
                self._outcomes.put(self._outcome_of(job))
        finally:
            self._index.release()

    def _outcome_of(self, job: Sequence[Picture]) -> _Outcome:
        outcome = _Outcome()
        started = time.perf_counter()
        try:
            self._score(self._unknown(job, outcome), outcome)
        except Exception as error:  # noqa: BLE001 (raised by the thread that asked, once the others' results are safe)
            outcome.error = error
        outcome.seconds = time.perf_counter() - started
        return outcome

    def _unknown(self, job: Sequence[Picture], outcome: _Outcome) -> list[tuple[Picture, bytes | None]]:
        """Reads the pictures of a job; those, with their bytes, whose content neither store nor this pass knows."""
        found: list[tuple[Picture, bytes | None]] = []
        asked: list[Picture] = []
        for picture in job:
            picture.is_begun = True
            try:
                read = read_picture(picture.path, picture.known)
            except BadPicture as refusal:
                outcome.failures.append((picture, refusal.reason))
                continue
            self._cold = _COLD_PICTURES if read.had_to_wait else max(0, self._cold - 1)
            picture.key = picture_key(read.content, picture.crop)
            is_new = picture.known is None or picture.known.content != read.content
            if is_new:
                outcome.contents.append((read.file, read.content))
            with self._claims:
                twin = self._claimed.setdefault(picture.key, picture.row)
            if twin != picture.row:
                outcome.twins.append((picture.row, twin))
                continue
            found.append((picture, read.data))
            if is_new:
                asked.append(picture)
        entries = zip(asked, self._store.entries([picture.key for picture in asked]), strict=True)
        stored = {picture.row: entry for picture, entry in entries if entry is not None}
        outcome.known += [(picture, stored[picture.row]) for picture, _ in found if picture.row in stored]
        return [(picture, data) for picture, data in found if picture.row not in stored]

    def _score(self, pictures: list[tuple[Picture, bytes | None]], outcome: _Outcome) -> None:
        """Decodes pictures and puts them through the graph; empties the list."""
        waiting: list[tuple[Picture, NDArray[np.float32]]] = []
        pictures.reverse()
        while pictures:
            picture, data = pictures.pop()
            try:
                waiting.append((picture, self._scorer.prepared(self._decoded(picture, data))))
            except BadPicture as refusal:
                outcome.failures.append((picture, refusal.reason))
                continue
            if len(waiting) >= self._group(waiting[0][1].nbytes):
                self._infer(waiting, outcome)
        if waiting:
            self._infer(waiting, outcome)

    def _decoded(self, picture: Picture, data: bytes | None) -> Image.Image:
        if picture.crop is None:
            return self._scorer.decode(picture.path, data)
        return load_row(self._dataset, picture.row, data=data)

    def _group(self, input_bytes: int) -> int:
        """Pictures that go through the graph together."""
        if not self._scorer.on_cpu or not self._scorer.is_batched:
            return self._scorer.batch_size
        return max(1, min(self._scorer.batch_size, CACHED_BYTES // input_bytes))

    def _infer(self, waiting: list[tuple[Picture, NDArray[np.float32]]], outcome: _Outcome) -> None:
        """Scores pictures; empties the list."""
        with self._device:
            values = self._scorer.score_batch([pixels for _, pixels in waiting])
        vocabulary = self._scorer.scored
        outcome.entries += [
            (picture, sparse_of(row, vocabulary)) for (picture, _), row in zip(waiting, values, strict=True)
        ]
        waiting.clear()

    def _await_one(self) -> None:
        """Waits for a job's end, takes in whatever ended, and looks for Cancel."""
        with contextlib.suppress(Empty):
            outcome = self._outcomes.get(timeout=_TICK_S)
            while True:
                self._collect(outcome)
                if outcome.error is not None:
                    raise outcome.error
                outcome = self._outcomes.get_nowait()
        if len(self._unwritten) >= FLUSH_PICTURES or time.monotonic() - self._written_at >= FLUSH_S:
            self._flush()
        self._report()

    def _report(self) -> None:
        self._progress.check()
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_S:
            self._reported_at = now
            rate = f", {self.inferred / (now - self._started_at):.1f} a second" if self.inferred else ""
            self._progress.update(self._done, self._total, f"{self._done} of {self._total} pictures{rate}")

    def _collect(self, outcome: _Outcome) -> None:
        self._under_way -= 1
        self._contents += outcome.contents
        self._twins += outcome.twins
        for picture, entry in outcome.entries:
            self._keep(picture, entry)
            self._unwritten.append((picture.key, entry))
        for picture, entry in outcome.known:
            self._keep(picture, entry)
        for picture, reason in outcome.failures:
            self.failed[picture.row] = reason
        scored = len(outcome.entries)
        self.inferred += scored
        self.found_later += len(outcome.known) + len(outcome.twins)
        self._done += scored + len(outcome.known) + len(outcome.twins) + len(outcome.failures)
        if scored:
            each_s = outcome.seconds / scored
            self._picture_s = each_s if not self._picture_s else 0.8 * self._picture_s + 0.2 * each_s

    def _keep(self, picture: Picture, entry: Entry) -> None:
        self._place[picture.row] = len(self._place)
        self._fresh.append(entry)

    def _flush(self) -> None:
        """Writes contents and scores, each in one transaction; packs the scores, which as single arrays are large."""
        self._written_at = time.monotonic()
        remember(self._index, self._contents)
        self._contents.clear()
        self._store.put([(key, ids, values) for key, (ids, values) in self._unwritten])
        self._unwritten.clear()
        if self._fresh:
            self._parts.append(joined(self._fresh))
            self._fresh.clear()


def fetch(path: Path) -> None:
    """Has the system read a file, so that it is in memory when it is wanted; what cannot be read is told then."""
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
            return
        piece = bytearray(_PIECE_BYTES)
        while file.readinto(piece):
            pass


def _chained(parts: Sequence[SparseScores]) -> SparseScores:
    lengths = [np.diff(part.offsets) for part in parts]
    return SparseScores(
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]),
        ids=np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
        values=np.concatenate([np.zeros(0, np.float32), *(part.values for part in parts)]),
    )
