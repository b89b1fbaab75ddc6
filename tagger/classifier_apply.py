"""Putting a classifier's label into captions, as the arbiter of a group of which a picture can have only one."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..core.params import Params, param
from ..dataset.columns import SOURCES, TagColumn
from ..dataset.diff import RuleCount
from ..dataset.normal import normal, normals
from .classifier import NO_LABEL_PREFIX

SOURCE_CLASSIFIER = SOURCES.index("classifier")
WHERE = ("every picture", "where a tag of the group is")


@dataclass(frozen=True, kw_only=True)
class ApplyParams(Params):
    """What is done with a label."""

    min_probability: float = param(
        0.5, doc="Leave a caption as it is where the classifier is less sure", minimum=0.0, maximum=1.0, step=0.01
    )
    replace_group: bool = param(
        True, doc="Take out the other labels of the group; off only adds the label, for 'Exclusive Groups' to choose"
    )
    where: str = param(
        "every picture",
        doc="Give every picture its label, or only settle captions that hold a tag of the group",
        choices=WHERE,
    )


def with_labels(
    column: TagColumn,
    names: tuple[str, ...],
    probabilities: NDArray[np.float32],
    rows: NDArray[np.int64],
    params: ApplyParams,
) -> tuple[TagColumn, list[RuleCount]]:
    """A column in which the surest label of each picture stands in place of its group.

    A label that is there already stays where it is and gets its probability; else it takes the place of the group's
    first tag, or comes last. A label that begins with ``_`` stands for none of the others: it only takes out.

    Args:
        column: The captions.
        names: The labels.
        probabilities: float32 [pictures, labels]; nan where nothing is known.
        rows: The pictures they are of, int64.
        params: The choice.

    Returns:
        The new column, and counts per label.
    """
    column = column.with_vocabulary([name for name in names if not name.startswith(NO_LABEL_PREFIX)])
    known = np.isfinite(probabilities).all(axis=1)
    best = np.where(known, np.nan_to_num(probabilities).argmax(axis=1), 0)
    surety = np.where(known, np.nan_to_num(probabilities).max(axis=1), -1.0).astype(np.float32)
    decided = known & (surety >= params.min_probability)
    label = np.full(len(column), -1, dtype=np.int64)
    label[rows[decided]] = best[decided]
    sure = np.zeros(len(column), dtype=np.float32)
    sure[rows[decided]] = surety[decided]

    place = {normal(name): number for number, name in enumerate(names)}
    group = np.array([place.get(name, -1) for name in normals(column.vocabulary)], dtype=np.int64)
    if params.where == WHERE[1]:
        has_any = np.zeros(len(column), dtype=bool)
        has_any[column.row_of_occurrence[group[column.ids] >= 0]] = True
        label[~has_any] = -1
    before = column
    column, touched_removed = _settled(column, group, label, sure, names, params)
    column, added_rows = _added(column, group, label, sure, names)
    return column, _counts(names, label, before, column, touched_removed, added_rows, int((~decided & known).sum()))


def _writes(names: tuple[str, ...]) -> NDArray[np.bool_]:
    return np.array([not name.startswith(NO_LABEL_PREFIX) for name in names], dtype=bool)


def _settled(
    column: TagColumn,
    group: NDArray[np.int64],
    label: NDArray[np.int64],
    sure: NDArray[np.float32],
    names: tuple[str, ...],
    params: ApplyParams,
) -> tuple[TagColumn, NDArray[np.int64]]:
    """The group's tags of every decided picture made one; also the labels that were taken out, by place in `names`."""
    rows = column.row_of_occurrence
    of_group = group[column.ids]
    contested = np.flatnonzero((of_group >= 0) & (label[rows] >= 0))
    if not len(contested):
        return column, np.zeros(0, dtype=np.int64)
    wanted = label[rows[contested]]
    is_own = of_group[contested] == wanted
    # The occurrence that stays: the label's own first one, else the group's first (which becomes the label).
    order = np.lexsort((contested, ~is_own, rows[contested]))
    firsts = np.concatenate([[True], np.diff(rows[contested][order]) > 0])
    staying = np.zeros(len(contested), dtype=bool)
    staying[order[firsts]] = True
    writes = _writes(names)[wanted]
    if not params.replace_group:
        staying &= is_own
    keep = np.ones(len(column.ids), dtype=bool)
    if params.replace_group:
        keep[contested[~(staying & writes)]] = False
    ids = column.ids.copy()
    scores = np.full(len(ids), np.nan, dtype=np.float16) if column.scores is None else column.scores.copy()
    sources = np.zeros(len(ids), dtype=np.uint8) if column.sources is None else column.sources.copy()
    changed = staying & writes
    new_ids = np.array([column.id_of(name) if column.id_of(name) is not None else -1 for name in names], dtype=np.int32)
    spots = contested[changed & ~is_own]
    ids[spots] = new_ids[wanted[changed & ~is_own]]
    scores[contested[changed]] = sure[rows[contested[changed]]]
    sources[contested[changed]] = SOURCE_CLASSIFIER
    gone = contested[~(staying & is_own & writes)] if params.replace_group else contested[:0]
    result = TagColumn(
        column.vocabulary, column.offsets.copy(), ids, categories=column.categories, scores=scores, sources=sources
    )
    return result.keep(keep), of_group[gone]


def _added(
    column: TagColumn,
    group: NDArray[np.int64],
    label: NDArray[np.int64],
    sure: NDArray[np.float32],
    names: tuple[str, ...],
) -> tuple[TagColumn, NDArray[np.int64]]:
    """The label at the end of decided pictures that do not have it; also those pictures."""
    has = np.zeros(len(column), dtype=bool)
    rows = column.row_of_occurrence
    has[rows[group[column.ids] == np.where(label[rows] >= 0, label[rows], -2)]] = True
    missing = np.flatnonzero((label >= 0) & ~has & _writes(names)[np.maximum(label, 0)])
    ids = np.array([column.id_of(names[place]) for place in label[missing]], dtype=np.int32)
    added = column.with_tags(missing, ids, scores=sure[missing].astype(np.float16), source=SOURCE_CLASSIFIER)
    return added, missing


def _counts(
    names: tuple[str, ...],
    label: NDArray[np.int64],
    before: TagColumn,
    after: TagColumn,
    removed: NDArray[np.int64],
    added_rows: NDArray[np.int64],
    unsure: int,
) -> list[RuleCount]:
    def holders(column: TagColumn, name: str) -> int:
        wanted = normal(name)
        own = np.array([other == wanted for other in normals(column.vocabulary)], dtype=bool)
        return len(np.unique(column.row_of_occurrence[own[column.ids]]))

    counts = [
        RuleCount(
            rule=f"label {name}",
            touched=int((label == place).sum()),
            removed=int((removed == place).sum()),
            added=max(0, holders(after, name) - holders(before, name)),
        )
        for place, name in enumerate(names)
    ]
    if unsure:
        counts.append(RuleCount(rule="left alone, not sure enough", touched=unsure))
    if len(added_rows):
        counts.append(RuleCount(rule="had no tag of the group", touched=len(added_rows), added=len(added_rows)))
    return counts
