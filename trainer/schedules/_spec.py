"""What a learning rate schedule is: one pure function of the step."""

from dataclasses import dataclass
from typing import Any, Protocol

from ...core.discovery import discover
from ...core.errors import unknown_name


class Factor(Protocol):
    """The part of the base learning rate that is used in a step."""

    def __call__(self, step: int, *, total_steps: int, warmup_steps: int, cycles: int) -> float:
        """Returns the factor (0..1) of the ``step``-th update, counted from 0."""
        ...


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


def warmup(step: int, warmup_steps: int) -> float | None:
    """Returns the factor of a linear warm-up from 0, or None when ``step`` lies behind it."""
    return step / warmup_steps if step < warmup_steps else None


def progress_after_warmup(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Returns which part (0..1) of the steps after the warm-up is done."""
    return min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
