"""Several resolutions in one training: every picture goes to the one that fits it, or to each."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..core.errors import InputError
from .buckets import Bucket, BucketAssignment, BucketRule
from .table import Dataset

FIT, EACH = "fit", "each"
RESOLUTION_USES = (FIT, EACH)
MIN_PX, MAX_PX = 32, 4096
MAX_RESOLUTIONS = 8


def parse_resolutions(text: str) -> tuple[int, ...]:
    """Reads sides in px such as ``768, 1024``.

    Raises:
        InputError: One is no whole number, out of range, not a multiple of 8, or there twice.
    """
    words = [word for word in re.split(r"[,;\s]+", text.strip()) if word]
    found: list[int] = []
    for word in words:
        number = word.lower().removesuffix("px")
        if not (number.isascii() and number.isdigit() and len(number) <= len(str(MAX_PX))):
            raise InputError(f"resolutions_px has {word!r}: give whole numbers separated by commas, such as 768, 1024")
        side = int(number)
        if not MIN_PX <= side <= MAX_PX or side % 8:
            raise InputError(
                f"resolutions_px has {side}: allowed are multiples of 8 from {MIN_PX} to {MAX_PX} px, such as 768"
            )
        if side in found:
            raise InputError(f"resolutions_px names {side} twice; give every resolution once")
        found.append(side)
    if len(found) > MAX_RESOLUTIONS:
        raise InputError(f"resolutions_px names {len(found)} resolutions: at most {MAX_RESOLUTIONS} are allowed")
    return tuple(found)


@dataclass(frozen=True)
class TieredRule:
    """Chooses among several rules the largest that a picture fills without being enlarged, else the smallest.

    Attributes:
        rules: By rising resolution.
    """

    rules: tuple[BucketRule, ...]

    def assign(self, width_px: int, height_px: int) -> Bucket:
        """The bucket of one picture of the given (upright) size."""
        found = [rule.assign(width_px, height_px) for rule in self.rules]
        # Without upscaling nothing is enlarged; then a smaller picture needs no larger resolution than its own.
        fitting = [bucket for bucket in found if bucket.scale <= 1.0]
        largest = max(fitting, key=lambda bucket: bucket.width * bucket.height, default=found[0])
        return next(bucket for bucket in found if bucket.size == largest.size)


def spread(dataset: Dataset, times: int) -> Dataset:
    """A table that holds every picture several times, one whole table after the other."""
    if times == 1:
        return dataset
    rows = list(range(len(dataset))) * times
    return dataset.take(rows, note=f"every picture at {times} resolutions")


def assign_tiers(dataset: Dataset, rules: Sequence[BucketRule]) -> BucketAssignment:
    """The buckets of a spread table: each copy of the pictures has a rule of its own."""
    each = len(dataset) // len(rules)
    tiers = np.repeat(np.arange(len(rules)), each)
    return BucketAssignment(list(rules), dataset.width_px, dataset.height_px, tiers=tiers)
