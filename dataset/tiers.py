"""How well pictures fit the size they are trained at: resolution tiers, crop loss, and the batches of every bucket.

The tiers are those of a trainer of person LoRAs: a picture smaller than its bucket is enlarged and teaches blur; one
much larger is shrunk and teaches clean detail.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError
from ..core.params import Params, param
from .batches import effective_repeats
from .buckets import BucketAssignment, BucketRule, Size, assign_buckets

if TYPE_CHECKING:
    from .table import Dataset

TIERS = ("upscaled", "ok", "ideal")
"""Names by place in ``Fits.tier``."""
UPSCALED, OK, IDEAL = range(3)
IDEAL_FACTOR = 2.0


@dataclass(frozen=True, kw_only=True)
class BucketParams(Params):
    """The size pictures are trained at; a training run takes the same settings."""

    resolution_px: int = param(
        512, doc="Side of the square whose area a training picture has at most.", unit="px", minimum=32, maximum=4096,
        step=8,
    )  # fmt: skip
    batch_size: int = param(
        1, doc="Pictures shown to the network at once.", unit="images", minimum=1, maximum=1024, step=1
    )
    bucket_step_px: int = param(
        64, doc="Sides of the buckets are multiples of this.", unit="px", minimum=8, maximum=512, step=8, advanced=True
    )
    bucket_min_px: int = param(
        256, doc="Shortest side of a bucket.", unit="px", minimum=8, maximum=4096, step=8, advanced=True
    )
    bucket_max_px: int = param(
        1024, doc="Longest side of a bucket.", unit="px", minimum=8, maximum=8192, step=8, advanced=True
    )
    upscale: bool = param(
        True,
        doc="Enlarge pictures that are smaller than their bucket. Off: they keep their size and get a bucket of "
        "their own.",
        advanced=True,
    )

    def rule(self) -> BucketRule:
        """The bucket rule.

        Raises:
            InputError: The numbers do not fit together.
        """
        return BucketRule(
            resolution_px=self.resolution_px,
            step_px=self.bucket_step_px,
            min_px=self.bucket_min_px,
            max_px=self.bucket_max_px,
            upscale=self.upscale,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Fits:
    """How every picture of a data set fits.

    Attributes:
        buckets: The bucket of each.
        scale: float64 [pictures]; factor from the picture to the trained size, above 1 where it is too small.
        loss: float64 [pictures]; share of the picture that the crop to its bucket cuts off.
        tier: uint8 [pictures], place in ``TIERS``.
    """

    buckets: BucketAssignment
    scale: NDArray[np.float64]
    loss: NDArray[np.float64]
    tier: NDArray[np.uint8]

    def share(self, tier: int, rows: NDArray[np.bool_] | None = None) -> float:
        """Share of the pictures (or of the given ones) in a tier."""
        tiers = self.tier if rows is None else self.tier[rows]
        return float(np.mean(tiers == tier)) if len(tiers) else 0.0


@dataclass(frozen=True, kw_only=True)
class BucketRow:
    """One bucket of a data set.

    Attributes:
        size: (width, height) in px.
        pictures: Different pictures.
        seen: Pictures per epoch after repeats.
        batches: Batches per epoch.
        partial: Pictures in the last batch where it is not full, else 0.
        upscaled: Pictures that are enlarged.
        mean_loss: Mean share that the crop cuts off.
        max_loss: Largest such share.
    """

    size: Size
    pictures: int
    seen: int
    batches: int
    partial: int
    upscaled: int
    mean_loss: float
    max_loss: float


def measure(dataset: "Dataset", rule: BucketRule, *, ideal_factor: float = IDEAL_FACTOR) -> Fits:
    """Finds the bucket, the scaling, the crop loss and the tier of every picture, from sizes alone.

    Args:
        dataset: The table.
        rule: How it will be trained.
        ideal_factor: A picture is ideal when its sides are at least this many times those of its bucket.

    Raises:
        InputError: The factor is below 1.
    """
    if not ideal_factor >= 1.0:
        raise InputError(f"ideal_factor is {ideal_factor}, allowed is at least 1 (2 means twice the trained size)")
    buckets = assign_buckets(dataset, rule)
    if rule.upscale:
        scale = buckets.column(lambda bucket: bucket.scale)
    else:  # small pictures keep their size, but they are as far from the trained one
        side = rule.resolution_px
        area = side * side if isinstance(side, int) else side[0] * side[1]
        scale = buckets.column(lambda bucket: math.sqrt(area / (bucket.source[0] * bucket.source[1])))
    tier = np.full(len(dataset), OK, dtype=np.uint8)
    tier[scale > 1.0 + 1e-9] = UPSCALED
    tier[scale <= 1.0 / ideal_factor + 1e-9] = IDEAL
    return Fits(buckets=buckets, scale=scale, loss=buckets.column(lambda bucket: bucket.crop_loss), tier=tier)


def bucket_rows(dataset: "Dataset", fits: Fits, batch_size: int) -> list[BucketRow]:
    """The table of buckets with batches, enlarged pictures and crop loss; buckets nobody sees are listed too.

    Raises:
        InputError: The batch size is not positive.
    """
    if batch_size < 1:
        raise InputError(f"the batch size is {batch_size}, allowed is at least 1")
    return list(_bucket_rows(dataset, fits, batch_size))


def _bucket_rows(dataset: "Dataset", fits: Fits, batch_size: int) -> Iterator[BucketRow]:
    index, count = fits.buckets.index, len(fits.buckets.sizes)
    seen = np.array(fits.buckets.counts(effective_repeats(dataset)), dtype=np.int64)
    pictures = np.bincount(index, minlength=count)
    upscaled = np.bincount(index, weights=fits.tier == UPSCALED, minlength=count)
    loss = np.bincount(index, weights=fits.loss, minlength=count) / np.maximum(1, pictures)
    worst = np.zeros(count)
    np.maximum.at(worst, index, fits.loss)
    for number, size in enumerate(fits.buckets.sizes):
        yield BucketRow(
            size=size,
            pictures=int(pictures[number]),
            seen=int(seen[number]),
            batches=int(-(-seen[number] // batch_size)),
            partial=int(seen[number] % batch_size),
            upscaled=int(upscaled[number]),
            mean_loss=float(loss[number]),
            max_loss=float(worst[number]),
        )


def fit_facts(dataset: "Dataset", fits: Fits, params: BucketParams) -> tuple[str, ...]:
    """Tiers, crop loss and buckets of a data set in three lines."""
    rows = bucket_rows(dataset, fits, params.batch_size)
    used = [row for row in rows if row.seen]
    partial, single = sum(row.partial > 0 for row in used), sum(row.partial == 1 for row in used)
    batches = sum(row.batches for row in used)
    ones = f", {single} hold one picture" if params.batch_size > 1 else ""
    worst = float(fits.loss.max()) if len(fits.loss) else 0.0
    return (
        f"at {params.resolution_px} px: {tier_shares(fits)}",
        f"crop loss: mean {float(fits.loss.mean()) if len(fits.loss) else 0.0:.1%}, worst {worst:.0%}",
        f"{len(used)} bucket{'s' * (len(used) != 1)}, {batches} batch{'es' * (batches != 1)} of up to "
        f"{params.batch_size} per epoch, {partial} not full{ones}",
    )


def tier_shares(fits: Fits, rows: NDArray[np.bool_] | None = None) -> str:
    """Pictures per tier with their shares, in words."""
    tiers = fits.tier if rows is None else fits.tier[rows]
    counts = np.bincount(tiers, minlength=len(TIERS)).tolist()
    return ", ".join(
        f"{name} {count} ({fits.share(place, rows):.0%})"
        for place, (name, count) in enumerate(zip(TIERS, counts, strict=True))
    )


def bucket_table(rows: Sequence[BucketRow]) -> list[list[str]]:
    """The buckets as rows of texts, a header first."""
    header = ["bucket px", "pictures", "per epoch", "batches", "last batch", "enlarged", "mean crop", "worst crop"]
    return [
        header,
        *(
            [
                f"{row.size[0]} x {row.size[1]}",
                str(row.pictures),
                str(row.seen),
                str(row.batches),
                str(row.partial or "full"),
                str(row.upscaled),
                f"{row.mean_loss:.1%}",
                f"{row.max_loss:.0%}",
            ]
            for row in rows
        ),
    ]


def bucket_text(dataset: "Dataset", fits: Fits, rows: Sequence[BucketRow], params: BucketParams) -> str:
    """The buckets as a table of text, with tiers and losses above."""
    table = bucket_table(rows)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*fit_facts(dataset, fits, params), "", *lines])


def some_pictures(dataset: "Dataset") -> None:
    """Refuses an empty data set.

    Raises:
        InputError: It holds no picture.
    """
    if not len(dataset):
        raise InputError("the data set holds no pictures; connect one that does (a filter may have kept none)")
