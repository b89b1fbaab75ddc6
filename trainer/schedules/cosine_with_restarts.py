"""Half cosines that begin again at the full learning rate."""

import math

from ._spec import Course, Schedule, progress_after_warmup, warmup


def factor(step: int, course: Course) -> float:
    """Returns (1 + cos(pi (n p mod 1))) / 2, with n cycles over the steps after the warm-up."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    done = progress_after_warmup(step, course)
    if done >= 1.0:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * ((course.cycles * done) % 1.0)))


SCHEDULE = Schedule(
    name="cosine_with_restarts",
    summary="Half cosines to zero, begun again at the full learning rate `cycles` times.",
    source="Loshchilov and Hutter 2017 (SGDR), equation 5; diffusers "
    "`get_cosine_with_hard_restarts_schedule_with_warmup`",
    factor=factor,
)
