"""A power of what is left."""

import math

from ._spec import Course, Schedule, progress_after_warmup, warmup


def factor(step: int, course: Course) -> float:
    """Returns m + (1 - m) (1 - p)^power, with m = ``min_factor``, after a linear warm-up."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    left = 1.0 - progress_after_warmup(step, course)
    return course.min_factor + (1.0 - course.min_factor) * math.pow(left, course.power)


SCHEDULE = Schedule(
    name="polynomial",
    summary="Falls with a power of the steps that are left, to `min_factor`.",
    source="diffusers `get_polynomial_decay_schedule_with_warmup` (the one kohya's scripts use)",
    factor=factor,
)
