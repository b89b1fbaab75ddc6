"""Batches of an epoch by kohya's rule: repeats, one bucket per batch, a partial last one, regularisation made equal.

Everything follows from (seed, epoch) alone: an epoch can be rebuilt after any stop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..core.seeds import derive
from .buckets import BucketAssignment, Size

if TYPE_CHECKING:
    from .table import Dataset

MAX_ITEMS = 100_000_000
"""Most pictures an epoch may have after repeats (an epoch's order takes 16 bytes for each)."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pictures that are trained in one step, all of one bucket.

    Attributes:
        size: (width, height) of the bucket in px.
        images: Places in the data set.
        flips: For each, whether it is mirrored this time.
        caption_seeds: For each, the seed of its caption's order and dropout.
        showings: For each, how often the run has shown it before.
    """

    size: Size
    images: tuple[int, ...]
    flips: tuple[bool, ...]
    caption_seeds: tuple[int, ...]
    showings: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.images)


class EpochBatches(Sequence[Batch]):
    """The batches of one epoch, built when asked for."""

    def __init__(
        self,
        *,
        items: NDArray[np.int32],
        draws: NDArray[np.uint64],
        showings: NDArray[np.int64],
        flippable: NDArray[np.bool_],
        starts: NDArray[np.int64],
        ends: NDArray[np.int64],
        buckets: BucketAssignment,
    ) -> None:
        self._items = items
        self._draws = draws
        self._showings = showings
        self._flippable = flippable
        self._starts = starts
        self._ends = ends
        self._buckets = buckets

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, number: int) -> Batch: ...

    @overload
    def __getitem__(self, number: slice) -> Sequence[Batch]: ...

    def __getitem__(self, number: int | slice) -> Batch | Sequence[Batch]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(f"batch {number} of {len(self)}")
        run = slice(int(self._starts[number]), int(self._ends[number]))
        images = self._items[run].tolist()
        draws = self._draws[run].tolist()
        return Batch(
            size=self._buckets.sizes[int(self._buckets.index[images[0]])],
            images=tuple(images),
            flips=tuple(
                bool(self._flippable[image]) and draw & 1 == 1 for image, draw in zip(images, draws, strict=True)
            ),
            caption_seeds=tuple(draw >> 1 for draw in draws),
            showings=tuple(self._showings[run].tolist()),
        )

    def __iter__(self) -> Iterator[Batch]:
        return (self[number] for number in range(len(self)))


def effective_repeats(dataset: "Dataset") -> NDArray[np.int64]:
    """How often each picture is seen in an epoch, int64 [pictures].

    Training pictures: their folder's repeats. Regularisation pictures, in order: their folder's repeats until there
    are as many as training pictures after repeats (the rest is never used); if all of them are too few, one more each,
    around and around, until the counts are equal. Source: ``DreamBoothDataset`` of kohya-ss/sd-scripts.
    """
    repeats = dataset.repeats
    reg = np.flatnonzero(dataset.is_reg)
    if len(reg) == 0:
        return repeats
    wanted = int(repeats.sum() - repeats[reg].sum())
    before = np.cumsum(repeats[reg]) - repeats[reg]
    counts = np.where(before < wanted, repeats[reg], 0)
    missing = wanted - int(counts.sum())
    if missing > 0:
        counts = counts + missing // len(reg)
        counts[: missing % len(reg)] += 1
    result: NDArray[np.int64] = repeats.copy()
    result[reg] = counts
    return result


def steps_per_epoch(dataset: "Dataset", buckets: BucketAssignment, batch_size: int) -> int:
    """Batches in an epoch, before gradient accumulation."""
    _check(dataset, buckets, batch_size)
    counts = np.array(buckets.counts(effective_repeats(dataset)), dtype=np.int64)
    return int((-(-counts // batch_size)).sum())


def epoch_batches(
    dataset: "Dataset", buckets: BucketAssignment, *, batch_size: int, seed: int, epoch: int
) -> EpochBatches:
    """The batches of an epoch in their order.

    Within a bucket the pictures are shuffled and cut into batches, the last of which may be smaller; then all batches
    are shuffled.

    Args:
        dataset: The table.
        buckets: From ``assign_buckets`` on the same table.
        batch_size: Pictures per batch.
        seed: The run's seed.
        epoch: Number of the epoch; another one has another order.

    Raises:
        InputError: The batch size is not positive, the buckets belong to another table, or an epoch is too long.
    """
    _check(dataset, buckets, batch_size)
    repeats = effective_repeats(dataset)
    items = np.repeat(np.arange(len(dataset), dtype=np.int32), repeats)
    copies = np.arange(len(items), dtype=np.int64) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    showings = epoch * repeats[items] + copies
    # Raw output of a counter-based generator: its sequence is fixed for good, unlike that of ready-made permutations.
    random = np.random.Philox(key=derive(seed, "epoch batches", epoch))
    order = np.lexsort((random.random_raw(len(items)), buckets.index[items]))
    items, showings = items[order], showings[order]
    counts = np.array(buckets.counts(repeats), dtype=np.int64)
    starts_list = [
        np.arange(end - count, end, batch_size, dtype=np.int64)
        for count, end in zip(counts.tolist(), np.cumsum(counts).tolist(), strict=True)
    ]
    ends_list = [
        np.minimum(starts + batch_size, end)
        for starts, end in zip(starts_list, np.cumsum(counts).tolist(), strict=True)
    ]
    starts, ends = np.concatenate(starts_list), np.concatenate(ends_list)
    batch_order = np.argsort(random.random_raw(len(starts)), kind="stable")
    draws = random.random_raw(len(items))
    flippable = np.array([subset.flip for subset in dataset.subsets], dtype=np.bool_)[dataset.subset_index]
    return EpochBatches(
        items=items,
        draws=draws,
        showings=showings,
        flippable=flippable,
        starts=starts[batch_order],
        ends=ends[batch_order],
        buckets=buckets,
    )


def _check(dataset: "Dataset", buckets: BucketAssignment, batch_size: int) -> None:
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}, allowed is at least 1")
    if len(buckets) != len(dataset):
        raise InputError(
            f"the buckets were made for {len(buckets)} pictures, the data set has {len(dataset)}; assign them again"
        )
    items = int(effective_repeats(dataset).sum())
    if items > MAX_ITEMS:
        raise InputError(
            f"an epoch would have {items} pictures after repeats, allowed are {MAX_ITEMS}; lower the repeats"
        )
