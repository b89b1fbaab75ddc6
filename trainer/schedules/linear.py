"""A straight fall to zero after a linear warm-up."""

from ._spec import Course, Schedule, progress_after_warmup, warmup


def factor(step: int, course: Course) -> float:
    """Returns 1 - p, with p the part of the steps after the warm-up that is done."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    return 1.0 - progress_after_warmup(step, course)


SCHEDULE = Schedule(
    name="linear",
    summary="Falls in a straight line to zero at the last step.",
    source="diffusers `get_linear_schedule_with_warmup` (the one kohya's scripts use)",
    factor=factor,
)
