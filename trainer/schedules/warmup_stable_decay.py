"""Warm-up, a long flat stretch, and a fall at the end."""

import math

from ._spec import Course, Schedule, warmup


def factor(step: int, course: Course) -> float:
    """Returns 1 between the warm-up and the last ``decay_steps``, in which it falls along half a cosine."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    first = course.total_steps - course.decay_steps
    if course.decay_steps == 0 or step < first:
        return 1.0
    done = min(1.0, (step - first) / course.decay_steps)
    return course.min_factor + (1.0 - course.min_factor) * 0.5 * (1.0 + math.cos(math.pi * done))


SCHEDULE = Schedule(
    name="warmup_stable_decay",
    summary="The full rate until the last `decay_steps`, then half a cosine to `min_factor`.",
    source="Hu et al. 2024 (MiniCPM), section 4.2; transformers `get_wsd_schedule`",
    factor=factor,
)
