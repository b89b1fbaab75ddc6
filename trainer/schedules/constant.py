"""The full learning rate after a linear warm-up."""

from ._spec import Course, Schedule, warmup


def factor(step: int, course: Course) -> float:
    """Returns 1 after a linear warm-up."""
    rising = warmup(step, course)
    return 1.0 if rising is None else rising


SCHEDULE = Schedule(
    name="constant",
    summary="The full learning rate from the end of the warm-up to the last step.",
    source="diffusers `get_constant_schedule_with_warmup` (the one kohya's scripts use)",
    factor=factor,
)
