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


KEEP, REPEAT, MERGE = "keep", "repeat", "merge"
SMALL_BATCHES = (KEEP, REPEAT, MERGE)
"""What becomes of a bucket's last batch where it is not full."""


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
    dataset: "Dataset",
    buckets: BucketAssignment,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    small: str = KEEP,
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
        small: One of ``SMALL_BATCHES``; for MERGE the buckets are merged already.

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
    sizes = [batch_sizes(count, batch_size, small) for count in counts.tolist()]
    if small != KEEP:
        slots = np.array([int(each.sum()) for each in sizes], dtype=np.int64)
        place = np.arange(int(slots.sum())) - np.repeat(np.cumsum(slots) - slots, slots)
        of_bucket = np.repeat(counts, slots)
        taken = np.repeat(np.cumsum(counts) - counts, slots) + place % np.maximum(1, of_bucket)
        items, showings = items[taken], showings[taken] + place // np.maximum(1, of_bucket)
    ends = np.cumsum(np.concatenate(sizes))
    starts = ends - np.concatenate(sizes)
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


def batch_sizes(count: int, batch_size: int, small: str) -> NDArray[np.int64]:
    """How many pictures the batches of a bucket have, int64 [batches].

    Args:
        count: Pictures of the bucket in an epoch.
        batch_size: Pictures of a full batch.
        small: KEEP leaves a partial last one; REPEAT fills it up; MERGE makes all nearly equal, and where two do not
            fit evenly, one picture is shown twice instead of alone.
    """
    batches = -(-count // batch_size)
    if small == MERGE and batches:
        count += count // batches == 1 and count > 1 and batch_size > 1 and count % batches > 0
        return np.array([count // batches + (number < count % batches) for number in range(batches)], dtype=np.int64)
    sizes = np.full(batches, batch_size, dtype=np.int64)
    if small == KEEP and count % batch_size:
        sizes[-1] = count % batch_size
    return sizes


@dataclass(frozen=True, kw_only=True)
class BatchFacts:
    """What the batches of an epoch are like.

    Attributes:
        batches: How many there are.
        images: Pictures in all of them.
        partial: Batches that are not full.
        alone: Batches of one picture, where batches should have more.
        repeated: Pictures that only fill batches up.
    """

    batches: int
    images: int
    partial: int
    alone: int
    repeated: int


def batch_facts(dataset: "Dataset", buckets: BucketAssignment, *, batch_size: int, small: str = KEEP) -> BatchFacts:
    """Counts the batches of an epoch.

    Raises:
        InputError: As :func:`epoch_batches`.
    """
    _check(dataset, buckets, batch_size)
    counts = buckets.counts(effective_repeats(dataset))
    sizes = np.concatenate([np.zeros(0, np.int64), *(batch_sizes(count, batch_size, small) for count in counts)])
    return BatchFacts(
        batches=len(sizes),
        images=int(sizes.sum()),
        partial=int((sizes < batch_size).sum()),
        alone=int((sizes == 1).sum()) if batch_size > 1 else 0,
        repeated=int(sizes.sum()) - sum(counts),
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
