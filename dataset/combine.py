"""Putting data sets together: several concepts, and pictures for regularisation with their own weight."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core.errors import InputError
from ..core.params import Params, param
from .batches import effective_repeats
from .filter_query import parse_query
from .filter_rows import filter_rows
from .table import Dataset, Subset
from .words import counted, printable


@dataclass(frozen=True, kw_only=True)
class MarkParams(Params):
    """Which pictures are for regularisation, and how much they count."""

    is_reg: bool = param(
        True,
        doc="On: the pictures are for regularisation and seen as often as those to train. Off: they are for training",
    )
    prior_weight: float = param(
        1.0,
        doc="Factor on the loss of regularisation pictures; below 1 they hold the model back less",
        minimum=0.0,
        maximum=10.0,
        step=0.05,
    )
    query: str = param(
        "", doc="Only pictures of which this query is true, such as folder:1_*; empty for all", multiline=True
    )


@dataclass(frozen=True, kw_only=True)
class Combined:
    """A data set, and what was done in words."""

    dataset: Dataset
    report: str


def combine(datasets: Sequence[Dataset], regularisation: Sequence[Dataset] = ()) -> Combined:
    """Puts data sets below each other; each keeps its folders, options, crops and masks.

    Args:
        datasets: Sets that keep what they are.
        regularisation: Sets of which every picture becomes one for regularisation.

    Raises:
        InputError: There is none, or nothing to train.
    """
    parts = [*datasets, *(_marked(part) for part in regularisation)]
    if not parts:
        raise InputError("there is no data set to combine; connect at least one")
    result = parts[0]
    for part in parts[1:]:
        result = result.joined(part, note=f"combined with {printable(part.root.name)!r}")
    if not np.any(~result.is_reg):
        raise InputError(
            "every picture is for regularisation, so there is nothing to train; connect a training set to dataset_1"
        )
    note = f"combined {counted(len(parts), 'data set')}: {counted(len(result), 'picture')}"
    history = tuple(line for part in parts for line in part.history)
    result = replace(result, history=(*history, note), layout=_layouts(parts))
    return Combined(dataset=result, report="\n".join([f"Combined {counted(len(parts), 'data set')}.", *_table(result)]))


def mark_regularisation(dataset: Dataset, params: MarkParams) -> Combined:
    """Marks pictures as regularisation or training pictures, and sets the weight of the former.

    Pictures of one folder that are not all marked alike go into two subsets of that folder.

    Raises:
        InputError: The query is not one or finds nothing, or nothing is left to train.
    """
    rows = np.ones(len(dataset), dtype=np.bool_)
    if params.query.strip():
        rows = filter_rows(dataset, parse_query(params.query)).rows
        if not rows.any():
            raise InputError(f"the query {params.query.strip()!r} is true of no picture, so none can be marked")
    subsets: list[Subset] = []
    index = np.empty(len(dataset), dtype=np.int32)
    for number, subset in enumerate(dataset.subsets):
        own = dataset.subset_index == number
        weight = params.prior_weight if params.is_reg else 1.0
        changed = replace(subset, is_reg=params.is_reg, prior_weight=weight)
        for chosen, version in ((own & ~rows, subset), (own & rows, changed)):
            if chosen.any():
                index[chosen] = len(subsets)
                subsets.append(version)
    count = int(rows.sum())
    word = f"regularisation, weight {params.prior_weight:g}" if params.is_reg else "training"
    note = f"marked {counted(count, 'picture')} for {word}"
    index.setflags(write=False)
    result = replace(dataset, subsets=tuple(subsets), subset_index=index, history=(*dataset.history, note))
    if not np.any(~result.is_reg):
        report = "Every picture is now for regularisation: connect this set to 'Combine Data Sets' with one to train."
    else:
        report = f"{int((~result.is_reg).sum())} for training, {int(result.is_reg.sum())} for regularisation."
    return Combined(dataset=result, report="\n".join([note[0].upper() + note[1:] + ".", report, *_table(result)]))


def only_used_subsets(dataset: Dataset) -> Dataset:
    """Without the folders of which no picture is left."""
    used, index = np.unique(dataset.subset_index, return_inverse=True)
    if len(used) == len(dataset.subsets):
        return dataset
    place = index.reshape(-1).astype(np.int32)
    place.setflags(write=False)
    return replace(dataset, subsets=tuple(dataset.subsets[number] for number in used), subset_index=place)


def _marked(dataset: Dataset) -> Dataset:
    subsets = [replace(subset, is_reg=True) for subset in dataset.subsets]
    return dataset.with_subsets(subsets, note=f"marked {counted(len(dataset), 'picture')} for regularisation")


def _layouts(parts: Sequence[Dataset]) -> str:
    return " ".join(dict.fromkeys(f"{printable(part.root.name)}: {part.layout}" for part in parts))


def _table(dataset: Dataset) -> list[str]:
    """One line per folder, and what a person should notice."""
    seen = effective_repeats(dataset)
    lines = []
    for number, subset in enumerate(dataset.subsets):
        rows = dataset.subset_index == number
        if not rows.any():
            continue
        kind = f", regularisation (weight {subset.prior_weight:g})" if subset.is_reg else ""
        lines.append(
            f"  {printable(subset.folder.name)}: {counted(int(rows.sum()), 'picture')} x {subset.repeats}{kind}, "
            f"{int(seen[rows].sum())} per epoch"
        )
    return [*lines, *_notices(dataset)]


def _notices(dataset: Dataset) -> list[str]:
    """Files that occur more than once."""
    places: dict[tuple[str, tuple[int, int, int, int] | None], list[int]] = {}
    for row in range(len(dataset)):
        places.setdefault((str(dataset.path(row)), dataset.crop(row)), []).append(row)
    is_reg = dataset.is_reg
    twice = [rows for rows in places.values() if len(rows) > 1]
    both = [rows for rows in twice if bool(is_reg[rows].any()) and not bool(is_reg[rows].all())]
    lines = []
    if both:
        first = printable(dataset.names[both[0][0]])
        lines.append(f"  ! {counted(len(both), 'picture')} both for training and for regularisation, such as {first}")
    if len(twice) > len(both):
        rows = next(rows for rows in twice if rows not in both)
        lines.append(
            f"  ! {counted(len(twice) - len(both), 'picture')} more than once, such as {dataset.names[rows[0]]}"
        )
    return lines
