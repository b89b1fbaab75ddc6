"""Filtering a data set by a query, and splitting it into two for training in two stages."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from ..core.params import Params, param
from .buckets import BucketRule
from .combine import only_used_subsets
from .filter_query import parse_query
from .filter_rows import Answer, Facts, Rows, TermCount, filter_rows
from .table import Dataset
from .words import counted, printable

NUM_EXAMPLES = 5
REG_CHOICES = ("filter", "keep")
_MAX_QUERY_CHARS = 160


@dataclass(frozen=True, kw_only=True)
class FilterParams(Params):
    """Which pictures are kept."""

    query: str = param(
        "",
        doc="Tags and conditions joined by and, or, not and parentheses: (1girl or 1boy) and not *sketch and "
        "width >= 512. Numbers: width height pixels aspect shorter longer bytes tags repeats weight duplicates tier "
        "site_score favourites. Also score:TAG >= 0.4, category:artist >= 1, folder:GLOB, name:GLOB, concept:GLOB, "
        "rating:safe, is:reg captioned masked cropped duplicate listed portrait landscape square. A tag that holds "
        "and, or, not or parentheses goes in double quotes",
        multiline=True,
    )
    names: str = param(
        "",
        doc="Names for the condition is:listed, one per line: file names with or without ending, or paths below the "
        "opened folder",
        multiline=True,
    )
    reg_pictures: str = param(
        "filter",
        doc="Regularisation pictures are filtered like the others, or all kept",
        choices=REG_CHOICES,
    )
    resolution_px: int = param(
        512, doc="Training size that decides the tier", unit="px", minimum=32, maximum=4096, step=8, advanced=True
    )
    duplicate_distance: int = param(
        6,
        doc="How many of the 64 bits of the picture hash may differ in duplicates",
        unit="bits",
        minimum=0,
        maximum=11,
        advanced=True,
    )

    def facts(self, groups: Callable[[], Iterable[tuple[int, ...]]] | None = None) -> Facts:
        """What the query may ask besides the table; ``groups`` finds the duplicates, see :class:`Facts`."""
        return Facts(
            rule=BucketRule(resolution_px=self.resolution_px),
            names=tuple(name for line in self.names.splitlines() if (name := line.strip())),
            groups=groups,
        )


@dataclass(frozen=True, kw_only=True)
class SplitParams(Params):
    """Which pictures are trained in which of two stages."""

    first_query: str = param(
        "simple background or white background",
        doc="Query for the pictures of the first stage; the others are the second. The language is that of 'Filter "
        "Data Set'",
        multiline=True,
    )
    drop_query: str = param(
        "", doc="Query for pictures that are trained in neither stage, such as: sketch; empty for none", multiline=True
    )
    reg_pictures: str = param(
        "both stages",
        doc="Regularisation pictures go to both stages, or are split like the others",
        choices=("both stages", "split"),
    )
    resolution_px: int = param(
        512, doc="Training size that decides the tier", unit="px", minimum=32, maximum=4096, step=8, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A data set in two parts, and what was done in words."""

    first: Dataset
    second: Dataset
    report: str


def filter_dataset(dataset: Dataset, params: FilterParams, facts: Facts | None = None) -> Parts:
    """Keeps the pictures of which a query is true.

    Args:
        dataset: The pictures.
        params: The query and what goes with it.
        facts: What the query may ask besides the table; by default what ``params`` says, without duplicates.

    Returns:
        The kept pictures, the rejected ones (maybe none), and a report.

    Raises:
        InputError: The query is not one, asks for what is not there, or keeps no training picture.
    """
    answer = filter_rows(dataset, parse_query(params.query), facts or params.facts())
    kept = answer.rows | dataset.is_reg if params.reg_pictures == "keep" else answer.rows
    query = _short(params.query)
    if not np.any(kept & ~dataset.is_reg):
        raise _nothing("keeps no training picture", query, answer)
    note = f"filter {query!r}: kept {int(kept.sum())} of {counted(len(dataset), 'picture')}"
    rejected = int((~kept).sum())
    report = [
        f"Filter: kept {int(kept.sum())} of {counted(len(dataset), 'picture')}, rejected {rejected}.",
        f"Query: {query}",
        *_term_lines(answer.terms),
        *_example_line(dataset, kept, "Kept"),
        *_example_line(dataset, ~kept, "Rejected"),
    ]
    return Parts(
        first=_part(dataset, kept, note),
        second=_part(dataset, ~kept, f"filter {query!r}: the {rejected} rejected"),
        report="\n".join(report),
    )


def split_stages(dataset: Dataset, params: SplitParams, facts: Facts | None = None) -> Parts:
    """Splits a data set into two for training one after the other.

    Source: the log of an embedding trainer, who trains on simple backgrounds first and on complex ones after, at a
    lower rate, and leaves sketches out.

    Raises:
        InputError: A query is not one, or a stage has no training picture.
    """
    facts = facts or Facts(rule=BucketRule(resolution_px=params.resolution_px))
    answer = filter_rows(dataset, parse_query(params.first_query), facts)
    terms: Sequence[TermCount] = answer.terms
    dropped = np.zeros(len(dataset), dtype=np.bool_)
    if params.drop_query.strip():
        left_out = filter_rows(dataset, parse_query(params.drop_query), facts)
        dropped, terms = left_out.rows, (*terms, *left_out.terms)
    both = dataset.is_reg & ~dropped if params.reg_pictures == "both stages" else np.zeros(len(dataset), np.bool_)
    stages = (answer.rows & ~dropped) | both, (~answer.rows & ~dropped) | both
    query = _short(params.first_query)
    for rows, name in zip(stages, ("first", "second"), strict=True):
        if not np.any(rows & ~dataset.is_reg):
            raise _nothing(f"leaves no training picture for the {name} stage", query, answer)
    sizes = [int(rows.sum()) for rows in stages]
    report = [
        f"Stage split: {counted(sizes[0], 'picture')} first, {counted(sizes[1], 'picture')} after"
        + (f", {int(both.sum())} of them regularisation pictures in both" if both.any() else "")
        + (f"; {int(dropped.sum())} left out." if dropped.any() else "."),
        f"First stage: {query}",
        *_term_lines(terms),
        *_example_line(dataset, stages[0], "First"),
        *_example_line(dataset, stages[1], "Second"),
        "Train the second stage on from the first, at a lower learning rate.",
    ]
    first, second = (
        _part(dataset, rows, f"stage {number} of 2 ({query}): {counted(size, 'picture')}")
        for number, rows, size in zip((1, 2), stages, sizes, strict=True)
    )
    return Parts(first=first, second=second, report="\n".join(report))


def _part(dataset: Dataset, rows: Rows, note: str) -> Dataset:
    return only_used_subsets(dataset.take(np.flatnonzero(rows).tolist(), note=note))


def _nothing(what: str, query: str, answer: Answer) -> InputError:
    counts = "; ".join(f"{term.hint or f'{term.term!r} is true of {term.pictures}'}" for term in answer.terms[:5])
    return InputError(f"the query {query!r} {what} ({counts}); write another one")


def _term_lines(terms: Sequence[TermCount]) -> list[str]:
    lines = [f"  {term.term}: {counted(term.pictures, 'picture')}" for term in terms]
    return [*lines, *(f"  ! {term.hint}" for term in terms if term.hint)]


def _example_line(dataset: Dataset, rows: Rows, word: str) -> list[str]:
    places = np.flatnonzero(rows)
    if not len(places):
        return []
    names = ", ".join(printable(dataset.names[int(row)]) for row in places[:NUM_EXAMPLES])
    return [f"{word}: {names}" + (" ..." if len(places) > NUM_EXAMPLES else "")]


def _short(query: str) -> str:
    text = " ".join(query.split())
    return text if len(text) <= _MAX_QUERY_CHARS else text[: _MAX_QUERY_CHARS - 3] + "..."
