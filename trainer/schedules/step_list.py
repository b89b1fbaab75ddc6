"""Rates and the steps up to which they hold, as text."""

from ._spec import Course, Schedule, warmup


def factor(step: int, course: Course) -> float:
    """Returns the factor of the stair that holds in the ``step``-th update (counted from 0); the last one stays."""
    rising = warmup(step, course)
    if rising is not None:
        return rising
    for value, until in course.stairs:
        if until is None or step < until:
            return value
    return course.stairs[-1][0] if course.stairs else 1.0


SCHEDULE = Schedule(
    name="step_list",
    summary="Learning rates by steps from the text `rates`, such as `0.005:100, 1e-3:1000`.",
    source="AUTOMATIC1111 `LearnRateScheduleIterator` (the text's form)",
    factor=factor,
)
