"""Schedules by numbers worked out by hand."""

import pytest

from lora_atelier.core.errors import UnknownNameError
from lora_atelier.trainer.schedules._spec import find_schedule, schedules

HALF_ROOT = 0.7071067811865476

BY_HAND = [
    # name, step, total, warmup, cycles, factor
    ("constant", 0, 10, 0, 1, 1.0),
    ("constant", 9, 10, 0, 1, 1.0),
    ("constant", 0, 10, 4, 1, 0.0),
    ("constant", 1, 10, 4, 1, 0.25),
    ("constant", 4, 10, 4, 1, 1.0),
    ("linear", 0, 10, 0, 1, 1.0),
    ("linear", 5, 10, 0, 1, 0.5),
    ("linear", 9, 10, 0, 1, 0.1),
    ("linear", 1, 10, 2, 1, 0.5),
    ("linear", 6, 10, 2, 1, 0.5),
    ("cosine", 0, 8, 0, 1, 1.0),
    ("cosine", 2, 8, 0, 1, (1 + HALF_ROOT) / 2),
    ("cosine", 4, 8, 0, 1, 0.5),
    ("cosine", 6, 8, 0, 1, (1 - HALF_ROOT) / 2),
    ("cosine", 8, 8, 0, 1, 0.0),
    ("cosine", 1, 10, 2, 1, 0.5),
    ("cosine", 6, 10, 2, 1, 0.5),
    ("cosine_with_restarts", 0, 8, 0, 2, 1.0),
    ("cosine_with_restarts", 2, 8, 0, 2, 0.5),
    ("cosine_with_restarts", 3, 8, 0, 2, (1 - HALF_ROOT) / 2),
    ("cosine_with_restarts", 4, 8, 0, 2, 1.0),
    ("cosine_with_restarts", 6, 8, 0, 2, 0.5),
    ("cosine_with_restarts", 8, 8, 0, 2, 0.0),
    ("cosine_with_restarts", 4, 8, 0, 1, 0.5),
]


@pytest.mark.parametrize(("name", "step", "total", "warmup", "cycles", "factor"), BY_HAND)
def test_factor_by_hand(name: str, step: int, total: int, warmup: int, cycles: int, factor: float) -> None:
    schedule = schedules()[name]
    got = schedule.factor(step, total_steps=total, warmup_steps=warmup, cycles=cycles)
    assert got == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", sorted(schedules()))
def test_schedule_contract(name: str) -> None:
    schedule = schedules()[name]
    assert schedule.name == name
    assert schedule.summary
    assert schedule.source
    factors = [schedule.factor(step, total_steps=50, warmup_steps=7, cycles=3) for step in range(50)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[0] == 0.0
    assert factors[7] == 1.0


def test_unknown_schedule_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="cosine"):
        find_schedule("cosin")
