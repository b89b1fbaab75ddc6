"""What a learning rate schedule is: one pure function of the step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...core.discovery import discover
from ...core.errors import unknown_name


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a schedule is made from; every schedule reads what it needs.

    Attributes:
        total_steps: of the run.
        warmup_steps: over which the rate rises from 0.
        cycles: falls of ``cosine_with_restarts``.
        decay_steps: length of the fall of ``warmup_stable_decay``.
        min_factor: where ``cosine_with_min_lr``, ``polynomial`` and ``warmup_stable_decay`` end.
        power: of ``polynomial``.
        stairs: of ``step_list``: (factor, last step that has it), the last one may have None.
    """

    total_steps: int
    warmup_steps: int = 0
    cycles: int = 1
    decay_steps: int = 0
    min_factor: float = 0.0
    power: float = 1.0
    stairs: tuple[tuple[float, int | None], ...] = ()


Factor = Callable[[int, Course], float]
"""(step counted from 0, course) -> the part of the base learning rate that is used in that update."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One learning rate schedule.

    Attributes:
        name: the name in menus and files; equal to the file name.
        summary: one line for a tooltip.
        source: where the formula stands.
        factor: the formula.
    """

    name: str
    summary: str
    source: str
    factor: Factor


def schedules() -> dict[str, Schedule]:
    """Returns every schedule of this folder by name."""
    found: dict[str, Any] = discover(__package__, "SCHEDULE")
    return found


def schedule_names() -> tuple[str, ...]:
    """Returns the names of all schedules."""
    return tuple(schedules())


def find_schedule(name: str) -> Schedule:
    """Returns the schedule called ``name``.

    Raises:
        UnknownNameError: there is none.
    """
    found = schedules()
    if name not in found:
        raise unknown_name("schedule", name, found)
    return found[name]


def warmup(step: int, course: Course) -> float | None:
    """Returns the factor of a linear warm-up from 0, or None when ``step`` lies behind it."""
    return step / course.warmup_steps if step < course.warmup_steps else None


def progress_after_warmup(step: int, course: Course) -> float:
    """Returns which part (0..1) of the steps after the warm-up is done."""
    return min(1.0, (step - course.warmup_steps) / max(1, course.total_steps - course.warmup_steps))
