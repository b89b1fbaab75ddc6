"""Scoring all pictures of a data set: what the store knows is taken from it, the rest is decoded and inferred.

How the rest is worked off is the business of `scoring_pass`. Results are written every few pictures; a run that is
cancelled or killed goes on where it stopped.
"""

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from ..dataset.table import Dataset
from ..dataset.words import printable
from .contents import KnownContent, known_contents
from .scores import SparseScores, Vocabulary
from .scoring_pass import FLUSH_PICTURES, Picture, PictureScorer, ScoringPass
from .store import ScoreStore, merged, picture_key

__all__ = ["FLUSH_PICTURES", "PictureScorer", "Scored", "cores", "failure_note", "score_dataset"]

_MAX_SHOWN_FAILURES = 20


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
        notes: What else happened, e.g. to the index.
    """

    rows: NDArray[np.int64]
    scores: SparseScores
    vocabulary: Vocabulary
    from_store: int
    inferred: int
    failed: dict[int, str]
    seconds: float
    notes: tuple[str, ...] = ()

    def lines(self, dataset: Dataset) -> list[str]:
        """What happened, for a report."""
        rate = f", {self.inferred / self.seconds:.1f} a second" if self.inferred and self.seconds > 0 else ""
        lines = [
            f"{len(self.rows)} pictures: {self.from_store} from the score store, {self.inferred} tagged anew "
            f"in {self.seconds:.1f} s{rate}"
        ]
        lines += [f"! {note}" for note in self.notes]
        if self.failed:
            lines.append(f"! {len(self.failed)} pictures could not be read and keep their captions:")
            for row in sorted(self.failed)[:_MAX_SHOWN_FAILURES]:
                lines.append(f"  {printable(dataset.names[row])}: {self.failed[row]}")
            if len(self.failed) > _MAX_SHOWN_FAILURES:
                lines.append(f"  and {len(self.failed) - _MAX_SHOWN_FAILURES} more")
        return lines


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
    contents = known_contents(index, dataset, row_list)
    keys = [
        None if content is None else picture_key(content, dataset.crop(row))
        for row, content in zip(row_list, contents, strict=True)
    ]
    stored, there = store.get(keys)
    missing = np.flatnonzero(~there)
    run = ScoringPass(dataset, scorer, index, store, progress, workers or cores())
    if len(missing):
        unknown = ((row_list[n], contents[n]) for n in missing.tolist())
        run.go(_pictures(dataset, unknown), len(missing), known=int(there.sum()))
    rows_found, found = run.found()
    progress.update(len(wanted), len(wanted), f"{len(wanted)} pictures")
    if len(wanted) and len(run.failed) == len(wanted):
        first = next(iter(sorted(run.failed)))
        raise InputError(
            f"none of the {len(wanted)} pictures could be read, e.g. {printable(dataset.names[first])}: "
            f"{run.failed[first]}; repair or replace them"
        )
    place = {row: n for n, row in enumerate(row_list)}
    places = np.array([place[row] for row in rows_found.tolist()], dtype=np.int64)
    return Scored(
        rows=wanted,
        scores=merged(stored, places, found),
        vocabulary=scorer.scored,
        from_store=int(there.sum()) + run.found_later,
        inferred=run.inferred,
        failed=run.failed,
        seconds=time.perf_counter() - started,
        notes=tuple(index.take_notes()),
    )


def _pictures(dataset: Dataset, rows: Iterator[tuple[int, bytes | None]]) -> Iterator[Picture]:
    """Pictures to be scored, with the hash of those that were read before."""
    for row, content in rows:
        known = None
        if content is not None:
            known = KnownContent(content, int(dataset.size_bytes[row]), int(dataset.mtime_ns[row]))
        yield Picture(row=row, path=dataset.path(row), crop=dataset.crop(row), known=known)


def failure_note(failed: dict[int, str]) -> str:
    """A clause for a data set's history."""
    return f", {len(failed)} could not be read" if failed else ""
