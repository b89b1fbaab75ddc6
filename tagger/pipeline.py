"""Scoring all pictures of a data set: what the store knows is taken from it, the rest is decoded and inferred.

On a CPU every worker thread decodes its pictures and runs the graph on one thread of its own: Pillow and onnxruntime
both let go of Python's lock, so all cores are busy whatever the ratio of the two. On a GPU the workers decode while at
most two of them have a batch on the device. Results are written every few pictures; a run that is cancelled or killed
goes on where it stopped.
"""

import itertools
import os
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import InputError
from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from ..dataset.images import BadPicture, load_row
from ..dataset.table import Dataset
from ..dataset.words import printable
from .contents import known_contents, read_content, remember
from .scores import SparseScores, Vocabulary, sparse_of
from .store import Scorer, ScoreStore, merged, picture_key

FLUSH_PICTURES = 64
"""Pictures per transaction: so many at most are scored a second time after a kill, and those in the workers."""
FLUSH_S = 2.0
JOB_S = 0.1
"""A job should take about so long: short enough for Cancel and for even ends, long enough to cost nothing."""
_GROUP = 64
_GPU_RUNS = 2
_TICK_S = 0.25
_NAP_S = 0.001
_REPORT_S = 0.1
_MAX_SHOWN_FAILURES = 20

Entry = tuple[NDArray[np.int32], NDArray[np.float32]]


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

    def decode(self, path: Path) -> Image.Image:
        """The picture of a file."""

    def prepared(self, image: Image.Image) -> NDArray[np.float32]:
        """A picture as input."""

    def score_batch(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Scores of prepared pictures, float32 [pictures, tags]; several threads may call at once."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scored:
    """The scores of a data set's pictures.

    Attributes:
        rows: The pictures that were asked for, int64.
        scores: Of those pictures, in that order; nothing for those that failed.
        vocabulary: What the scores are of.
        from_store: Pictures whose scores were known.
        inferred: Pictures that went through the graph.
        failed: Reason by picture (row of the data set) for those that could not be decoded.
        seconds: How long it took.
    """

    rows: NDArray[np.int64]
    scores: SparseScores
    vocabulary: Vocabulary
    from_store: int
    inferred: int
    failed: dict[int, str]
    seconds: float

    def lines(self, dataset: Dataset) -> list[str]:
        """What happened, for a report."""
        rate = f", {self.inferred / self.seconds:.1f} a second" if self.inferred and self.seconds > 0 else ""
        lines = [
            f"{len(self.rows)} pictures: {self.from_store} from the score store, {self.inferred} tagged anew "
            f"in {self.seconds:.1f} s{rate}"
        ]
        if self.failed:
            lines.append(f"! {len(self.failed)} pictures could not be read and keep their captions:")
            for row in sorted(self.failed)[:_MAX_SHOWN_FAILURES]:
                lines.append(f"  {printable(dataset.names[row])}: {self.failed[row]}")
            if len(self.failed) > _MAX_SHOWN_FAILURES:
                lines.append(f"  and {len(self.failed) - _MAX_SHOWN_FAILURES} more")
        return lines


@dataclass
class _Picture:
    """A picture on its way."""

    row: int
    path: Path
    crop: tuple[int, int, int, int] | None
    key: bytes | None = None


@dataclass
class _Outcome:
    """What came out of a job."""

    entries: list[tuple[_Picture, Entry]] = field(default_factory=list)
    failures: list[tuple[_Picture, str]] = field(default_factory=list)
    seconds: float = 0.0


def cores() -> int:
    """CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0)) or 1
    return os.cpu_count() or 1


def score_dataset(
    dataset: Dataset,
    scorer: PictureScorer,
    index: Index,
    *,
    rows: Sequence[int] | NDArray[np.int64] | None = None,
    progress: Progress | None = None,
    workers: int | None = None,
) -> Scored:
    """Scores of pictures, inferred only where the store has none.

    Args:
        dataset: The data set.
        scorer: The tagger; on a CPU open it with ``threads=1``, since the workers fill the cores.
        index: Where scores and content hashes are remembered.
        rows: Which pictures; by default all.
        progress: Told how many are done; may cancel between jobs, what was scored until then is kept.
        workers: Threads; by default one per core.

    Raises:
        InputError: Every picture failed to decode.
        FormatError: The graph failed.
        StorageError: The index cannot be used.
    """
    progress = progress or SilentProgress()
    started = time.perf_counter()
    wanted = np.arange(len(dataset), dtype=np.int64) if rows is None else np.asarray(rows, dtype=np.int64)
    store = ScoreStore(index, scorer)
    progress.status(f"{scorer.name}: looking up {len(wanted)} pictures")
    row_list = wanted.tolist()
    keys = [
        None if content is None else picture_key(content, dataset.crop(row))
        for row, content in zip(row_list, known_contents(index, dataset, row_list), strict=True)
    ]
    stored, there = store.get(keys)
    missing = np.flatnonzero(~there).tolist()
    run = _Run(dataset, scorer, index, store, progress, workers or cores(), total=len(wanted))
    run.done = int(there.sum())
    pictures = (
        _Picture(row=row_list[n], path=dataset.path(row_list[n]), crop=dataset.crop(row_list[n]), key=keys[n])
        for n in missing
    )
    if missing:
        run.go(pictures)
    progress.update(len(wanted), len(wanted), f"{len(wanted)} pictures")
    if missing and len(run.failed) == len(wanted):
        first = next(iter(sorted(run.failed)))
        raise InputError(
            f"none of the {len(wanted)} pictures could be read, e.g. {printable(dataset.names[first])}: "
            f"{run.failed[first]}; repair or replace them"
        )
    place = {row: n for n, row in enumerate(row_list)}
    return Scored(
        rows=wanted,
        scores=merged(stored, {place[row]: entry for row, entry in run.fresh.items()}),
        vocabulary=scorer.scored,
        from_store=int(there.sum()) + run.found_later,
        inferred=run.inferred,
        failed=run.failed,
        seconds=time.perf_counter() - started,
    )


class _Run:
    """One pass over the pictures that the store does not know."""

    def __init__(
        self,
        dataset: Dataset,
        scorer: PictureScorer,
        index: Index,
        store: ScoreStore,
        progress: Progress,
        workers: int,
        *,
        total: int,
    ) -> None:
        self.dataset, self.scorer, self.index, self.store, self.progress = dataset, scorer, index, store, progress
        self.workers, self.total = max(1, workers), total
        self.done, self.inferred, self.found_later = 0, 0, 0
        self.fresh: dict[int, Entry] = {}
        self.failed: dict[int, str] = {}
        self._gate = threading.Semaphore(self.workers if scorer.on_cpu else _GPU_RUNS)
        self._jobs: set[Future[_Outcome]] = set()
        self._claimed: dict[bytes, int] = {}
        self._twins: list[tuple[int, int]] = []
        self._unwritten: list[tuple[bytes, Entry]] = []
        self._read: list[tuple[bytes, bytes]] = []
        self._written_at = time.monotonic()
        self._reported_at = 0.0
        self._picture_s = 0.0

    def go(self, pictures: Iterator[_Picture]) -> None:
        """Scores them all; whatever happens, what is finished is written."""
        groups: deque[list[tuple[_Picture, Future[tuple[bytes, bytes]] | None]]] = deque()
        # One thread more than cores: a core has work while a thread waits for the disk or for Python's lock.
        with ThreadPoolExecutor(self.workers + 1, thread_name_prefix="atelier-tagger") as pool:
            try:
                while True:
                    while len(groups) < 2 and (group := self._next_group(pictures, pool)):
                        groups.append(group)
                    if not groups:
                        break
                    for pictures_of_job in self._jobs_of(self._identified(groups.popleft())):
                        self._await(self.workers + 2)
                        self._jobs.add(pool.submit(self._score, pictures_of_job))
                while self._jobs:
                    self._await(len(self._jobs) - 1)
            finally:
                for job in self._jobs:
                    job.cancel()
                for hashing in (hashing for group in groups for _, hashing in group if hashing is not None):
                    hashing.cancel()
                wait(self._jobs)
                self._collect({job for job in self._jobs if not job.cancelled() and job.exception() is None})
                self._flush()
        for row, twin in self._twins:
            if twin in self.failed:
                self.failed[row] = self.failed[twin]
            else:
                self.fresh[row] = self.fresh[twin]

    def _next_group(
        self, pictures: Iterator[_Picture], pool: ThreadPoolExecutor
    ) -> list[tuple[_Picture, "Future[tuple[bytes, bytes]] | None"]]:
        """The next pictures, those never read before being hashed already."""
        group = list(itertools.islice(pictures, _GROUP))
        return [
            (picture, pool.submit(read_content, picture.path) if picture.key is None else None) for picture in group
        ]

    def _identified(self, group: Sequence[tuple[_Picture, "Future[tuple[bytes, bytes]] | None"]]) -> list[_Picture]:
        """The pictures of a group that have to be scored: not those whose content the store or this run knows."""
        pictures: list[_Picture] = []
        looked_up: list[_Picture] = []
        for picture, hashing in group:
            if hashing is not None:
                while not hashing.done():
                    self._await(None)
                try:
                    file, content = hashing.result()
                except BadPicture as refusal:
                    self._fail(picture, refusal.reason)
                    continue
                self._read.append((file, content))
                picture.key = picture_key(content, picture.crop)
                looked_up.append(picture)
            pictures.append(picture)
        known, there = self.store.get([picture.key for picture in looked_up])
        for place, picture in enumerate(looked_up):
            if there[place]:
                self.fresh[picture.row] = known.row(place)
                self.found_later += 1
                self.done += 1
        return [picture for picture in pictures if picture.row not in self.fresh and not self._is_twin(picture)]

    def _is_twin(self, picture: _Picture) -> bool:
        """Whether the same content is on its way already."""
        twin = self._claimed.setdefault(picture.key or b"", picture.row)
        if twin == picture.row:
            return False
        self._twins.append((picture.row, twin))
        self.found_later += 1
        self.done += 1
        return True

    def _jobs_of(self, pictures: Sequence[_Picture]) -> Iterator[list[_Picture]]:
        """Parts of a group, as large as takes a short while."""
        first = 0
        while first < len(pictures):
            size = self.scorer.batch_size
            if self.scorer.is_batched and self.scorer.on_cpu:
                near = JOB_S / self._picture_s if self._picture_s else 1.0
                size = min(size, max(1, round(near)))
            yield list(pictures[first : first + size])
            first += size

    def _score(self, pictures: Sequence[_Picture]) -> _Outcome:
        """One job, in a worker: decode, prepare, infer."""
        outcome = _Outcome()
        started = time.perf_counter()
        ready: list[tuple[_Picture, NDArray[np.float32]]] = []
        for picture in pictures:
            try:
                ready.append((picture, self.scorer.prepared(self._decoded(picture))))
            except BadPicture as refusal:
                outcome.failures.append((picture, refusal.reason))
        if ready:
            with self._gate:
                values = self.scorer.score_batch([pixels for _, pixels in ready])
            vocabulary = self.scorer.scored
            outcome.entries = [
                (picture, sparse_of(row, vocabulary)) for (picture, _), row in zip(ready, values, strict=True)
            ]
        outcome.seconds = time.perf_counter() - started
        return outcome

    def _decoded(self, picture: _Picture) -> Image.Image:
        return self.scorer.decode(picture.path) if picture.crop is None else load_row(self.dataset, picture.row)

    def _await(self, most: int | None) -> None:
        """Waits until at most so many jobs are left (None: a moment), takes what is finished, looks for Cancel."""
        while True:
            if self._jobs and (most is None or len(self._jobs) > most):
                self._collect(wait(self._jobs, timeout=_TICK_S, return_when=FIRST_COMPLETED).done)
            elif most is None:
                time.sleep(_NAP_S)
            self._flush_if_due()
            self._report()
            if most is None or len(self._jobs) <= most:
                return

    def _report(self) -> None:
        self.progress.check()
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_S:
            self._reported_at = now
            rate = f", {self.workers / self._picture_s:.1f} a second" if self._picture_s else ""
            self.progress.update(self.done, self.total, f"{self.done} of {self.total} pictures{rate}")

    def _collect(self, finished: "set[Future[_Outcome]]") -> None:
        """Takes results in; a job that failed raises after the others' results are safe."""
        self._jobs -= finished
        errors = [error for future in finished if (error := future.exception()) is not None]
        for future in finished:
            if future.exception() is not None:
                continue
            outcome = future.result()
            for picture, entry in outcome.entries:
                self.fresh[picture.row] = entry
                if picture.key is not None:
                    self._unwritten.append((picture.key, entry))
            for picture, reason in outcome.failures:
                self._fail(picture, reason)
            scored = len(outcome.entries)
            self.inferred += scored
            self.done += scored
            if scored:
                each_s = outcome.seconds / scored
                self._picture_s = each_s if not self._picture_s else 0.8 * self._picture_s + 0.2 * each_s
        if errors:
            raise errors[0]

    def _fail(self, picture: _Picture, reason: str) -> None:
        self.failed[picture.row] = reason
        self.done += 1

    def _flush_if_due(self) -> None:
        if len(self._unwritten) >= FLUSH_PICTURES or time.monotonic() - self._written_at >= FLUSH_S:
            self._flush()

    def _flush(self) -> None:
        self._written_at = time.monotonic()
        remember(self.index, self._read)
        self._read.clear()
        self.store.put([(key, ids, values) for key, (ids, values) in self._unwritten])
        self._unwritten.clear()


def failure_note(failed: dict[int, str]) -> str:
    """A clause for a data set's history."""
    return f", {len(failed)} could not be read" if failed else ""
