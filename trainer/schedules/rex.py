"""The reflected exponential: slow at first, then a steep fall to zero."""

from ._spec import Course, Schedule, progress_after_warmup, warmup

SHAPE = 0.9


def factor(step: int, course: Course) -> float:
    """Returns (1 - p) / ((1 - d) + d (1 - p)) with d = 0.9, after a linear warm-up."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    left = 1.0 - progress_after_warmup(step, course)
    return left / ((1.0 - SHAPE) + SHAPE * left)


SCHEDULE = Schedule(
    name="rex",
    summary="Stays high for long and falls to zero at the last step.",
    source="Chen, Wolfe and Kyrillidis 2022 (REX), equation 2, with d = 0.9 as in OneTrainer",
    factor=factor,
)
