"""Work on all captions at once: dropping by rule, counting captions per rule, ranks within a caption."""

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ...core.seeds import derive
from ...dataset.columns import CATEGORIES, SOURCES, TagColumn
from ...dataset.diff import RuleCount
from ...dataset.normal import normal, normals
from ...dataset.table import Dataset
from ._match import Matcher, entries

RULE_SOURCE = SOURCES.index("rule")
TRIGGER = CATEGORIES.index("trigger")
QUALITY = CATEGORIES.index("quality")
ROWS_AT_ONCE = 16384
"""Captions that are sorted together, which bounds the memory that sorting takes."""


def captions_and_tags(
    rows: NDArray[np.int64], rules: NDArray[np.int64], num_rules: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For occurrences with their row and rule: captions and occurrences per rule, int64 [rules] each."""
    occurrences = np.bincount(rules, minlength=num_rules)
    keys = np.unique(rows.astype(np.int64) * max(num_rules, 1) + rules)
    return np.bincount(keys % max(num_rules, 1), minlength=num_rules), occurrences


def drop_by_rule(
    tags: TagColumn, rule_of_tag: NDArray[np.int32], names: Sequence[str], spare: NDArray[np.bool_] | None = None
) -> tuple[TagColumn, tuple[RuleCount, ...]]:
    """Takes out tags by the rule that each falls under.

    Args:
        tags: The captions.
        rule_of_tag: int32 [vocabulary], -1 for tags that stay.
        names: The rules.
        spare: bool [occurrences], those that stay whatever the rule.
    """
    rules = rule_of_tag[tags.ids]
    drop = rules >= 0
    if spare is not None:
        drop &= ~spare
    return drop_occurrences(tags, drop, rules, names)


def drop_occurrences(
    tags: TagColumn, drop: NDArray[np.bool_], rules: NDArray[np.int32], names: Sequence[str]
) -> tuple[TagColumn, tuple[RuleCount, ...]]:
    """Takes out occurrences; ``rules`` [occurrences] says by which rule. Rules that did nothing are left out."""
    places = np.flatnonzero(drop)
    rows = rows_of(tags, places)
    touched, removed = captions_and_tags(rows, rules[places].astype(np.int64), len(names))
    counts = tuple(
        RuleCount(rule=name, touched=int(touched[number]), removed=int(removed[number]))
        for number, name in enumerate(names)
        if removed[number]
    )
    return tags.keep(~drop), counts


def rows_of(tags: TagColumn, places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The row of some occurrences, int64."""
    return np.searchsorted(tags.offsets, places, side="right").astype(np.int64) - 1


def positions(tags: TagColumn) -> NDArray[np.int32]:
    """Place of each occurrence in its caption, from 0: int32 [occurrences]."""
    starts = np.repeat(tags.offsets[:-1], tags.lengths)
    return (np.arange(len(tags.ids), dtype=np.int64) - starts).astype(np.int32)


def order_within_rows(tags: TagColumn, fine: NDArray[np.int64] | NDArray[np.int32]) -> NDArray[np.int64]:
    """The occurrences sorted by ``fine`` (not negative) inside each caption, stable: int64 [occurrences]."""
    order = np.empty(len(tags.ids), dtype=np.int64)
    span = int(fine.max(initial=0)) + 1
    for first in range(0, len(tags), ROWS_AT_ONCE):
        bounds = tags.offsets[first : first + ROWS_AT_ONCE + 1]
        start, end = int(bounds[0]), int(bounds[-1])
        keys = np.repeat(np.arange(len(bounds) - 1, dtype=np.int64) * span, np.diff(bounds))
        keys += fine[start:end]
        order[start:end] = np.argsort(keys, kind="stable") + start
    return order


def images_per_tag(tags: TagColumn) -> NDArray[np.int64]:
    """Number of captions that hold each tag, int64 [vocabulary]."""
    return tags.deduplicated().counts()


def fixed_mask(dataset: Dataset, keep: str = "", *, what: str = "keep") -> NDArray[np.bool_]:
    """Occurrences that no thinning may take: trigger tags, the kept tags at the front of a caption, and a list.

    Args:
        dataset: The data set; a subset's ``keep_tokens`` decides how many tags at the front stay.
        keep: Entries of further tags that stay.
        what: Name of that list for messages.

    Returns:
        Of dtype bool [occurrences].
    """
    tags = dataset.tags
    by_tag = tags.categories == TRIGGER
    if keep.strip():
        by_tag = by_tag | Matcher(tags).mask(entries(keep, what=what))
    kept_front = np.array([subset.keep_tokens for subset in dataset.subsets], dtype=np.int32)[dataset.subset_index]
    mask: NDArray[np.bool_] = by_tag[tags.ids]
    if bool(kept_front.any()):
        mask = mask | (positions(tags) < np.repeat(kept_front, tags.lengths))
    return mask


def translated_by_name(
    tags: TagColumn, targets: dict[str, str]
) -> tuple[TagColumn, NDArray[np.int32], tuple[str, ...]]:
    """A table for renaming: normal form of a tag to what it becomes.

    A target that is in the vocabulary in any spelling takes the spelling that is there most often.

    Returns:
        The column with all targets in its vocabulary (no row changes), int32 [its vocabulary] with the new id of each
        tag, and the normal forms that are on no picture.
    """
    counts = tags.counts()
    best: dict[str, int] = {}
    for number, name in enumerate(normals(tags.vocabulary)):
        if name not in best or counts[number] > counts[best[name]]:
            best[name] = number
    present = {name for name, number in best.items() if counts[number]}
    needed = {source: target for source, target in targets.items() if source in present}
    spelling: dict[str, str] = {}
    for target in needed.values():
        known = best.get(normal(target))
        spelling[target] = target if known is None or not counts[known] else tags.vocabulary[known]
    column = tags.with_vocabulary(spelling.values())
    table = np.arange(len(column.vocabulary), dtype=np.int32)
    for number, name in enumerate(normals(tags.vocabulary)):
        if name in needed:
            place = column.id_of(spelling[needed[name]])
            table[number] = number if place is None else place
    return column, table, tuple(source for source in targets if source not in present)


def hashed(seed: int, purpose: str, rows: NDArray[np.uint64], tags: NDArray[np.uint64]) -> NDArray[np.float64]:
    """A number 0..1 for each pair of a row and a tag, the same wherever they stand: SplitMix64 (Steele 2014)."""
    mixed = rows * np.uint64(0x9E3779B97F4A7C15) + tags * np.uint64(0xD1B54A32D192ED03)
    mixed += np.uint64(derive(seed, purpose))
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    draws: NDArray[np.float64] = (mixed >> np.uint64(11)).astype(np.float64) / float(1 << 53)
    return draws


def row_hashes(dataset: Dataset) -> NDArray[np.uint64]:
    """A number for the picture of each occurrence, from its folder's name and its own: uint64 [occurrences]."""
    per_row = np.array(
        [
            zlib.crc32(name.encode("utf-8"))
            | zlib.crc32(dataset.subsets[subset].folder.name.encode("utf-8", "surrogatepass")) << 32
            for name, subset in zip(dataset.names, dataset.subset_index.tolist(), strict=True)
        ],
        dtype=np.uint64,
    )
    return np.repeat(per_row, dataset.tags.lengths)


def hash_of_names(tags: TagColumn) -> NDArray[np.uint64]:
    """A number for the tag of each occurrence, from its normal form: uint64 [occurrences]."""
    per_tag = np.array([zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in normals(tags.vocabulary)])
    return per_tag.astype(np.uint64)[tags.ids] if len(tags.ids) else np.zeros(0, dtype=np.uint64)
