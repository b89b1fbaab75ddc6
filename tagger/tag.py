"""Tagging a data set: scores from the store or the graph, tags by thresholds, put into the captions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.index import Index
from ..core.params import Params, param
from ..core.progress import Progress
from ..dataset.diff import Diff, compare
from ..dataset.table import Dataset
from .ensemble import COMBINE, Member, combine
from .modes import MODES, Tags, rows_for, with_tagger_tags
from .picking import PickParams, floor_note, pick_rows, unmatched_entries
from .pipeline import PictureScorer, Scored, failure_note, score_dataset
from .scores import SparseScores, Vocabulary
from .steps._lists import pairs, resolved


@dataclass(frozen=True, kw_only=True)
class ModeParams(Params):
    """What happens to the captions there are."""

    mode: str = param(
        "append",
        doc="Existing captions: 'append' keeps them and adds what is missing, 'prepend' puts the tagger's tags first, "
        "'overwrite' replaces them, 'only missing' tags only pictures without one",
        choices=tuple(MODES),
    )


@dataclass(frozen=True, kw_only=True)
class EnsembleParams(Params):
    """How several taggers become one."""

    combine: str = param(
        "mean",
        doc="How the calibrated scores become one: the mean of the models that know a tag, the surest of them, or the "
        "share that sees it",
        choices=tuple(COMBINE),
    )
    aliases: str = param(
        "",
        doc="Tags that are one thing under several names, as a danbooru and an e621 tagger give them: 'kitty -> cat', "
        "one pair to a line. Spaces and underscores are the same anyway",
        multiline=True,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Refuses pairs that are none."""
        super().__post_init__()
        self.same_tags()

    def same_tags(self) -> dict[str, str]:
        """Normal form of each name to the tag it stands for.

        Raises:
            FormatError: A line is no pair.
            InputError: The pairs run in a circle or contradict each other.
        """
        return resolved(pairs(self.aliases, what="aliases"), what="the list of aliases")


@dataclass(frozen=True, kw_only=True, eq=False)
class TagResult:
    """A tagged data set.

    Attributes:
        dataset: With the new captions.
        diff: What changed.
        lines: Where the scores came from, and what could not be read.
    """

    dataset: Dataset
    diff: Diff
    lines: tuple[str, ...]

    def text(self) -> str:
        """The whole report."""
        return "\n".join([*self.lines, self.diff.text()])


def tag_dataset(
    dataset: Dataset,
    tagger: PictureScorer,
    index: Index,
    *,
    params: PickParams,
    mode: str = "append",
    progress: Progress | None = None,
    workers: int | None = None,
) -> TagResult:
    """Tags the pictures of a data set; those whose scores are known are not looked at again.

    Args:
        dataset: The data set; it stays as it is.
        tagger: Opened with ``threads=1`` where the CPU computes.
        index: Where scores are remembered.
        params: Which tags are kept.
        mode: One of `modes.MODES`.
        progress: Told how many are done; may cancel, what was scored until then is kept.
        workers: Threads; by default one per core.

    Raises:
        InputError: No picture could be read, or a choice is refused.
        FormatError: The graph failed.
        StorageError: The index cannot be used.
    """
    scored = score_dataset(dataset, tagger, index, rows=rows_for(dataset, mode), progress=progress, workers=workers)
    return _tagged(
        dataset, scored.rows, scored.scores, scored.vocabulary, scored.failed, params, mode,
        title=tagger.name, lines=scored.lines(dataset), progress=progress,
    )  # fmt: skip


def tag_with_ensemble(
    dataset: Dataset,
    scored: Sequence[tuple[str, float, Scored]],
    *,
    params: PickParams,
    mode: str = "append",
    how: str = "mean",
    aliases: Mapping[str, str] | None = None,
    progress: Progress | None = None,
) -> TagResult:
    """Tags a data set by several taggers, whose scores are there.

    Args:
        dataset: The data set; it stays as it is.
        scored: Name, weight and scores of each tagger, all of the pictures that the mode tags.
        params: Which tags are kept; thresholds are on the calibrated scale, where 0.5 is every model's own.
        mode: One of `modes.MODES`.
        how: One of `ensemble.COMBINE`.
        aliases: From `EnsembleParams.same_tags`.
        progress: Checked now and then.

    Raises:
        InputError: No tagger, or a choice is refused.
    """
    members = [
        Member(name=name, weight=weight, scores=one.scores, vocabulary=one.vocabulary) for name, weight, one in scored
    ]
    scores, vocabulary = combine(members, how, aliases)
    failed = {row: reason for _, _, one in scored for row, reason in one.failed.items()}
    lines = [f"{name}: {line}" for name, _, one in scored for line in one.lines(dataset)]
    title = f"{how} of {', '.join(member.name for member in members)}"
    rows = scored[0][2].rows
    kept = _without_failed(rows, scores, failed)
    return _tagged(dataset, rows, kept, vocabulary, failed, params, mode, title=title, lines=lines, progress=progress)


def _without_failed(rows: NDArray[np.int64], scores: SparseScores, failed: dict[int, str]) -> SparseScores:
    """Scores with nothing for pictures that one of the taggers could not read."""
    bad = np.isin(rows, np.array(sorted(failed), dtype=np.int64))
    if not bool(bad.any()):
        return scores
    mask = ~np.repeat(bad, np.diff(scores.offsets))
    lengths = np.where(bad, 0, np.diff(scores.offsets))
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])
    return SparseScores(offsets=offsets, ids=scores.ids[mask], values=scores.values[mask])


def _tagged(
    dataset: Dataset,
    rows: NDArray[np.int64],
    scores: SparseScores,
    vocabulary: Vocabulary,
    failed: dict[int, str],
    params: PickParams,
    mode: str,
    *,
    title: str,
    lines: Sequence[str],
    progress: Progress | None,
) -> TagResult:
    good = ~np.isin(rows, np.array(sorted(failed), dtype=np.int64))
    rows, scores = rows[good], scores.without_empty(good)
    picked = pick_rows(scores, vocabulary, params, progress=progress)
    tags = Tags(rows=rows, picked=picked, scores=scores, vocabulary=vocabulary)
    column, rules = with_tagger_tags(dataset.tags, tags, params, mode)
    note = f"tagged {len(rows)} pictures with {title} ({mode}){failure_note(failed)}"
    after = dataset.with_tag_column(column, note=note)
    diff = compare(
        dataset, after, title=f"{title}, {mode}", rules=rules, unmatched=unmatched_entries(vocabulary, params)
    )
    low = floor_note(vocabulary, params)
    return TagResult(dataset=after, diff=diff, lines=(*lines, *([f"! {low}"] if low else [])))
