"""One over the square root of the step."""

import math

from ._spec import Course, Schedule, warmup

TIMESCALE_STEPS = 10_000


def factor(step: int, course: Course) -> float:
    """Returns sqrt(s / (step - warm-up + s)) after the warm-up; s is the warm-up, or 10,000 steps without one."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    scale = course.warmup_steps or TIMESCALE_STEPS
    return math.sqrt(scale / (step - course.warmup_steps + scale))


SCHEDULE = Schedule(
    name="inverse_sqrt",
    summary="Falls with the square root of the steps since the warm-up.",
    source="Vaswani et al. 2017, section 5.3; transformers `get_inverse_sqrt_schedule`",
    factor=factor,
)
