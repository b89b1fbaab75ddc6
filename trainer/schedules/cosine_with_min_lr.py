"""Half a cosine to a part of the full rate."""

import math

from ._spec import Course, Schedule, progress_after_warmup, warmup


def factor(step: int, course: Course) -> float:
    """Returns m + (1 - m) (1 + cos(pi p)) / 2, with m = ``min_factor``, after a linear warm-up."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    done = progress_after_warmup(step, course)
    return course.min_factor + (1.0 - course.min_factor) * 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULE = Schedule(
    name="cosine_with_min_lr",
    summary="Falls along half a cosine to `min_factor` of the full rate at the last step.",
    source="transformers `get_cosine_with_min_lr_schedule_with_warmup`",
    factor=factor,
)
