"""Half a cosine to zero after a linear warm-up."""

import math

from ._spec import Course, Schedule, progress_after_warmup, warmup


def factor(step: int, course: Course) -> float:
    """Returns (1 + cos(pi p)) / 2, with p the part of the steps after the warm-up that is done."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    done = progress_after_warmup(step, course)
    return 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULE = Schedule(
    name="cosine",
    summary="Falls along half a cosine to zero at the last step.",
    source="Loshchilov and Hutter 2017 (SGDR), equation 5, one period; diffusers `get_cosine_schedule_with_warmup`",
    factor=factor,
)
