"""Aspect-ratio buckets by the rule of kohya's scripts (``library/train_util.py`` and ``library/model_util.py``).

With upscaling, a picture goes to the listed size whose width / height is nearest to its own, is scaled to cover it and
cropped at the centre. Without, a picture keeps its size (or shrinks to the area), and is cropped down to whole steps.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..core.errors import InputError

if TYPE_CHECKING:
    from .table import Dataset

Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Where one picture is trained.

    Attributes:
        width: Trained width in px.
        height: Trained height in px.
        source: (width, height) of the upright picture in px.
        resized: (width, height) after scaling, before the crop, in px.
        scale: Scaling factor; above 1 the picture is enlarged.
        crop: (left, top, right, bottom) of the trained part in the scaled picture, in px.
    """

    width: int
    height: int
    source: Size
    resized: Size
    scale: float
    crop: tuple[int, int, int, int]

    @property
    def size(self) -> Size:
        """(width, height) of the bucket in px."""
        return self.width, self.height

    def crop_at(self, focus: tuple[float, float] | None) -> tuple[int, int, int, int]:
        """The trained part of the scaled picture, with a focal point as near its middle as the picture allows.

        Args:
            focus: (x, y) in 0..1 of the picture; None for its centre.
        """
        if focus is None:
            return self.crop
        left = _start_at(focus[0], self.resized[0], self.width)
        top = _start_at(focus[1], self.resized[1], self.height)
        return (left, top, left + self.width, top + self.height)

    @property
    def crop_loss(self) -> float:
        """Share of the scaled picture's pixels that the crop cuts off, 0 to 1."""
        return 1.0 - self.width * self.height / (self.resized[0] * self.resized[1])

    @property
    def ar_error(self) -> float:
        """Bucket's width / height minus the picture's (``img_ar_error`` in kohya's metadata)."""
        return self.width / self.height - self.source[0] / self.source[1]


def bucket_sizes(resolution_px: int | Size, *, step_px: int, min_px: int, max_px: int) -> list[Size]:
    """All bucket sizes (width, height) for an area, in kohya's order (sorted).

    For every width from min to max in steps: the greatest height in whole steps that keeps the area, at most max; both
    it and its transpose; and the square. Source: ``make_bucket_resolutions`` of kohya-ss/sd-scripts.

    Args:
        resolution_px: Side of the square, or (width, height), whose area is the limit.
        step_px: Sides are multiples of this.
        min_px: Shortest side.
        max_px: Longest side.

    Raises:
        InputError: The numbers do not fit together.
    """
    width_px, height_px = _resolution(resolution_px)
    _check_rule(width_px, height_px, step_px, min_px, max_px)
    area = width_px * height_px
    square_px = math.isqrt(area) // step_px * step_px
    sizes = {(square_px, square_px)}
    for width in range(min_px, max_px + 1, step_px):
        height = min(max_px, area // width // step_px * step_px)
        if height >= min_px:
            sizes |= {(width, height), (height, width)}
    return sorted(sizes)


@dataclass(frozen=True, kw_only=True)
class BucketRule:
    """How pictures are sorted into buckets.

    Attributes:
        resolution_px: Side of the square, or (width, height), whose area is the limit.
        step_px: Bucket sides are multiples of this.
        min_px: Shortest bucket side (with upscaling only, as in kohya's scripts).
        max_px: Longest bucket side (with upscaling only).
        upscale: Enlarge small pictures to a listed bucket; False keeps them at their size (kohya's no_upscale).
    """

    resolution_px: int | Size
    step_px: int = 64
    min_px: int = 256
    max_px: int = 1024
    upscale: bool = True

    def __post_init__(self) -> None:
        width_px, height_px = _resolution(self.resolution_px)
        _check_rule(width_px, height_px, self.step_px, self.min_px, self.max_px)

    @cached_property
    def sizes(self) -> tuple[Size, ...]:
        """The listed bucket sizes (not used without upscaling)."""
        return tuple(bucket_sizes(self.resolution_px, step_px=self.step_px, min_px=self.min_px, max_px=self.max_px))

    def assign(self, width_px: int, height_px: int) -> Bucket:
        """The bucket of one picture of the given (upright) size.

        Raises:
            InputError: A side is not positive.
        """
        if width_px < 1 or height_px < 1:
            raise InputError(f"a picture of {width_px} x {height_px} px has no pixels; both sides must be at least 1")
        if self.upscale:
            return assign(width_px, height_px, self.sizes)
        area_width, area_height = _resolution(self.resolution_px)
        return assign_no_upscale(width_px, height_px, max_area_px=area_width * area_height, step_px=self.step_px)


def assign(width_px: int, height_px: int, sizes: Sequence[Size]) -> Bucket:
    """Picks among listed sizes: the exact one, else the nearest width / height (first of equals), scaled to cover."""
    ratio = width_px / height_px
    exact = (width_px, height_px)
    size = exact if exact in sizes else min(sizes, key=lambda listed: abs(listed[0] / listed[1] - ratio))
    scale = size[1] / height_px if ratio > size[0] / size[1] else size[0] / width_px
    resized = (max(size[0], int(width_px * scale + 0.5)), max(size[1], int(height_px * scale + 0.5)))
    return _bucket(size, source=(width_px, height_px), resized=resized, scale=scale)


def assign_no_upscale(width_px: int, height_px: int, *, max_area_px: int, step_px: int) -> Bucket:
    """Keeps a picture's size, or shrinks it to the area, and crops it down to whole steps.

    Of a picture that shrinks, the side is rounded to a step whose rounding changes width / height less. A picture with
    a side under one step is the one exception that is enlarged, because a bucket needs at least one step.
    """
    ratio = width_px / height_px
    resized, scale = (width_px, height_px), 1.0
    if width_px * height_px > max_area_px:
        exact_width = math.sqrt(max_area_px * ratio)
        by_width = _down_to_step(exact_width, step_px)
        by_height = _down_to_step(max_area_px / exact_width, step_px)
        width_error = abs(by_width / _down_to_step(by_width / ratio, step_px) - ratio)
        height_error = abs(_down_to_step(by_height * ratio, step_px) / by_height - ratio)
        if width_error < height_error:
            resized, scale = (by_width, int(by_width / ratio + 0.5)), by_width / width_px
        else:
            resized, scale = (int(by_height * ratio + 0.5), by_height), by_height / height_px
    if min(resized) < step_px:
        scale = step_px / min(width_px, height_px)
        resized = (max(step_px, int(width_px * scale + 0.5)), max(step_px, int(height_px * scale + 0.5)))
    size = (resized[0] // step_px * step_px, resized[1] // step_px * step_px)
    return _bucket(size, source=(width_px, height_px), resized=resized, scale=scale)


class Rule(Protocol):
    """What gives every picture its bucket."""

    def assign(self, width_px: int, height_px: int) -> Bucket:
        """The bucket of one picture of the given (upright) size."""
        ...


class BucketAssignment:
    """The bucket of every picture of a data set, in columns.

    Attributes:
        sizes: The bucket sizes (width, height) that are in use, sorted.
        index: int32 [pictures], the place of each picture's bucket in ``sizes``.
    """

    def __init__(
        self,
        rule: Rule | Sequence[Rule],
        widths_px: NDArray[np.int32],
        heights_px: NDArray[np.int32],
        *,
        tiers: NDArray[np.int64] | None = None,
    ) -> None:
        """Sorts pictures.

        Args:
            rule: For all pictures, or several.
            widths_px: Of every picture.
            heights_px: Likewise.
            tiers: Which of several rules is meant, of every picture.
        """
        if tiers is None:
            tiers = np.zeros(len(widths_px), dtype=np.int64)
        rules = rule if isinstance(rule, Sequence) else [rule]
        facts = np.stack([tiers, widths_px, heights_px], axis=1).astype(np.int32, copy=False)
        unique, inverse = np.unique(facts, axis=0, return_inverse=True)
        buckets = [rules[int(tier)].assign(int(width), int(height)) for tier, width, height in unique]
        self._set(buckets, inverse.reshape(-1).astype(np.int32))

    def _set(self, buckets: Sequence[Bucket], inverse: NDArray[np.int32]) -> None:
        self.sizes: tuple[Size, ...] = tuple(sorted({bucket.size for bucket in buckets}))
        place = {size: number for number, size in enumerate(self.sizes)}
        of_unique = np.array([place[bucket.size] for bucket in buckets], dtype=np.int32)
        self._buckets = tuple(buckets)
        self._inverse: NDArray[np.int32] = inverse
        self.index: NDArray[np.int32] = of_unique[self._inverse] if buckets else np.zeros(0, dtype=np.int32)
        self.index.setflags(write=False)

    def merged(self, repeats: NDArray[np.int64], at_least: int) -> "BucketAssignment":
        """The same pictures with fewer buckets: those seen less often than ``at_least`` join the nearest other one.

        The smallest goes first, to the bucket whose width / height, and then whose area, differs least.

        Args:
            repeats: How often each picture is seen in an epoch.
            at_least: Pictures per epoch that a bucket must have to stay; one bucket always does.
        """
        counts = {size: count for size, count in zip(self.sizes, self.counts(repeats), strict=True) if count}
        goes_to: dict[Size, Size] = {}
        while len(counts) > 1:
            size = min(counts, key=lambda listed: (counts[listed], listed))
            if counts[size] >= at_least:
                break
            count = counts.pop(size)
            nearest = min(counts, key=lambda listed: (_distance(size, listed), listed))
            counts[nearest] += count
            goes_to[size] = nearest
        buckets = []
        for bucket in self._buckets:
            size = bucket.size
            while size in goes_to:
                size = goes_to[size]
            buckets.append(bucket if size == bucket.size else assign(*bucket.source, [size]))
        found = BucketAssignment.__new__(BucketAssignment)
        found._set(buckets, self._inverse)
        return found

    def __len__(self) -> int:
        return len(self._inverse)

    def __getitem__(self, picture: int) -> Bucket:
        return self._buckets[int(self._inverse[picture])]

    def column(self, value: Callable[[Bucket], float]) -> NDArray[np.float64]:
        """A number of every picture's bucket, float64 [pictures]; ``value`` is asked once per picture size."""
        return np.array([value(bucket) for bucket in self._buckets], dtype=np.float64)[self._inverse]

    def counts(self, repeats: NDArray[np.int64] | None = None) -> list[int]:
        """Pictures per bucket of ``sizes``, each counted ``repeats`` times."""
        weights = None if repeats is None else repeats.astype(np.float64)
        return [int(count) for count in np.bincount(self.index, weights=weights, minlength=len(self.sizes))]

    def mean_ar_error(self, repeats: NDArray[np.int64] | None = None) -> float:
        """Mean absolute difference of width / height between picture and bucket."""
        if not len(self):
            return 0.0
        errors = np.array([abs(bucket.ar_error) for bucket in self._buckets])[self._inverse]
        return float(np.average(errors, weights=repeats))

    def info(self, repeats: NDArray[np.int64] | None = None) -> dict[str, Any]:
        """The value of kohya's ``ss_bucket_info``: buckets with resolution and count, and the mean error."""
        counts = self.counts(repeats)
        listed = {
            str(number): {"resolution": list(size), "count": count}
            for number, (size, count) in enumerate(zip(self.sizes, counts, strict=True))
        }
        return {"buckets": listed, "mean_img_ar_error": self.mean_ar_error(repeats)}

    def text(self, repeats: NDArray[np.int64] | None = None) -> str:
        """One line per bucket for a plan or a report."""
        counts = self.counts(repeats)
        lines = [f"{w} x {h} px: {count}" for (w, h), count in zip(self.sizes, counts, strict=True)]
        return "\n".join(lines)


def assign_buckets(dataset: "Dataset", rule: Rule) -> BucketAssignment:
    """Sorts every picture of a data set into its bucket."""
    return BucketAssignment(rule, dataset.width_px, dataset.height_px)


def _bucket(size: Size, *, source: Size, resized: Size, scale: float) -> Bucket:
    left, top = (resized[0] - size[0]) // 2, (resized[1] - size[1]) // 2
    crop = (left, top, left + size[0], top + size[1])
    return Bucket(width=size[0], height=size[1], source=source, resized=resized, scale=scale, crop=crop)


def _start_at(focus: float, resized_px: int, length_px: int) -> int:
    return min(max(0, round(focus * resized_px - length_px / 2)), resized_px - length_px)


def _distance(one: Size, other: Size) -> float:
    """How different two buckets are: by shape, and by area where several resolutions are trained."""
    shape = abs(math.log(one[0] / one[1]) - math.log(other[0] / other[1]))
    return shape + abs(math.log(one[0] * one[1]) - math.log(other[0] * other[1]))


def _down_to_step(length_px: float, step_px: int) -> int:
    """A length rounded to whole px, then down to a multiple of the step, at least one step."""
    return max(step_px, int(length_px + 0.5) // step_px * step_px)


def _resolution(resolution_px: int | Size) -> Size:
    return (resolution_px, resolution_px) if isinstance(resolution_px, int) else resolution_px


def _check_rule(width_px: int, height_px: int, step_px: int, min_px: int, max_px: int) -> None:
    if step_px < 8 or step_px % 8:
        raise InputError(f"the bucket step {step_px} px is not allowed; give a multiple of 8, such as 64 (8 for pico)")
    if min_px < step_px or min_px % step_px:
        raise InputError(
            f"the shortest bucket side {min_px} px is not allowed; give a multiple of the step ({step_px} px)"
        )
    if max_px % step_px or min(width_px, height_px) < min_px or max(width_px, height_px) > max_px:
        raise InputError(
            f"the resolution {width_px} x {height_px} px does not fit the bucket sides {min_px} to {max_px} px in "
            f"steps of {step_px}: the resolution must lie between them, and the longest side be a multiple of the step"
        )
