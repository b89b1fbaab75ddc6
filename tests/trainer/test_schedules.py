"""Schedules by numbers worked out by hand."""

from dataclasses import replace
from typing import Any

import pytest

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.trainer.optimizers._check import check_optimizer, course_of
from lora_atelier.trainer.optimizers._spec import Trained
from lora_atelier.trainer.optimizers.adamw import OPTIMIZER, AdamWParams
from lora_atelier.trainer.schedules._spec import Course, find_schedule, schedules
from lora_atelier.trainer.schedules._stairs import parse_rates

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
    got = schedule.factor(step, Course(total_steps=total, warmup_steps=warmup, cycles=cycles))
    assert got == pytest.approx(factor, abs=1e-12)


@pytest.mark.parametrize("name", sorted(schedules()))
def test_schedule_contract(name: str) -> None:
    schedule = schedules()[name]
    assert schedule.name == name
    assert schedule.summary
    assert schedule.source
    course = Course(total_steps=50, warmup_steps=7, cycles=3)
    factors = [schedule.factor(step, course) for step in range(50)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert factors[0] == 0.0
    assert factors[7] == 1.0


def test_unknown_schedule_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="cosine"):
        find_schedule("cosin")


LATER = [
    # name, step, course, factor
    ("rex", 0, Course(total_steps=10), 1.0),
    ("rex", 5, Course(total_steps=10), 0.5 / (0.1 + 0.9 * 0.5)),
    ("rex", 10, Course(total_steps=10), 0.0),
    ("rex", 1, Course(total_steps=10, warmup_steps=4), 0.25),
    ("warmup_stable_decay", 1, Course(total_steps=20, warmup_steps=2, decay_steps=8), 0.5),
    ("warmup_stable_decay", 2, Course(total_steps=20, warmup_steps=2, decay_steps=8), 1.0),
    ("warmup_stable_decay", 12, Course(total_steps=20, warmup_steps=2, decay_steps=8), 1.0),
    ("warmup_stable_decay", 16, Course(total_steps=20, warmup_steps=2, decay_steps=8), 0.5),
    ("warmup_stable_decay", 20, Course(total_steps=20, warmup_steps=2, decay_steps=8, min_factor=0.1), 0.1),
    ("polynomial", 5, Course(total_steps=10, power=2.0), 0.25),
    ("polynomial", 5, Course(total_steps=10, power=2.0, min_factor=0.2), 0.4),
    ("polynomial", 5, Course(total_steps=10), 0.5),
    ("inverse_sqrt", 4, Course(total_steps=100, warmup_steps=4), 1.0),
    ("inverse_sqrt", 16, Course(total_steps=100, warmup_steps=4), 0.5),
    ("inverse_sqrt", 30_000, Course(total_steps=100_000), 0.5),
    ("cosine_with_min_lr", 4, Course(total_steps=8, min_factor=0.5), 0.75),
    ("cosine_with_min_lr", 8, Course(total_steps=8, min_factor=0.5), 0.5),
]


@pytest.mark.parametrize(("name", "step", "course", "factor"), LATER)
def test_later_schedules_by_hand(name: str, step: int, course: Course, factor: float) -> None:
    assert schedules()[name].factor(step, course) == pytest.approx(factor, abs=1e-12)


def test_a_step_list() -> None:
    """The example of the form: 0.005 in the first 100 steps, 1e-3 up to step 1000, then 1e-5."""
    params = AdamWParams(lr_unet=1e-3, lr_text_encoder=5e-4, schedule="step_list", rates="0.005:100, 1e-3:1000, 1e-5")
    factor = schedules()["step_list"].factor
    course = course_of(params, Trained(unet=True, text_encoder=True, steps=2000))
    got = [factor(step, course) * params.lr_unet for step in (0, 99, 100, 999, 1000, 1999)]
    assert got == pytest.approx([0.005, 0.005, 1e-3, 1e-3, 1e-5, 1e-5])
    alone = course_of(params, Trained(unet=False, text_encoder=True, steps=2000))
    assert factor(0, alone) * params.lr_text_encoder == pytest.approx(0.005)
    ends = course_of(replace(params, rates="0.005:100, 1e-3:1000"), Trained(unet=True, text_encoder=True, steps=2000))
    assert factor(1500, ends) * params.lr_unet == pytest.approx(1e-3)
    warm = course_of(replace(params, warmup_steps=10), Trained(unet=True, text_encoder=True, steps=2000))
    assert factor(5, warm) == 0.5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "rates is empty"),
        (" , ", "rates is empty"),
        ("0.1:100, 0.01", None),
        ("0.1:100,0.01:50", "the steps must rise"),
        ("0.1, 0.01:50", "only the last rate may go on"),
        ("fast:100", "'fast' is no learning rate"),
        ("0.1:soon", "'soon' is no step"),
        ("0.1:0", "'0' is no step"),
        ("-0.1:10", "a learning rate must be a number from 0"),
        ("nan:10", "a learning rate must be a number from 0"),
        ("0.1:10:20", "'10:20' is no step"),
    ],
)
def test_the_text_of_a_step_list(text: str, words: str | None) -> None:
    if words is None:
        assert parse_rates(text) == ((0.1, 100), (0.01, None))
        return
    with pytest.raises(InputError, match=words):
        parse_rates(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"schedule": "step_list"}, "rates is empty"),
        ({"rates": "0.1:10"}, "choose the schedule step_list"),
        ({"schedule": "step_list", "rates": "0:10"}, "every rate is 0"),
        ({"schedule": "warmup_stable_decay"}, "decay_steps is 0"),
        ({"schedule": "warmup_stable_decay", "decay_steps": 90, "warmup_steps": 20}, "together more than the 100"),
        ({"decay_steps": 5}, "only warmup_stable_decay uses it"),
        ({"warmup_steps": 100}, "the warm-up must be shorter"),
        ({"lr_unet": 0.0}, "lr_unet is 0, but train_unet is on"),
    ],
)
def test_schedules_that_do_not_fit(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_optimizer(OPTIMIZER, AdamWParams(**given), Trained(unet=True, text_encoder=True, steps=100))


def test_what_a_step_list_warns_of() -> None:
    def warned(rates: str) -> list[str]:
        params = AdamWParams(schedule="step_list", rates=rates)
        return check_optimizer(OPTIMIZER, params, Trained(unet=True, text_encoder=True, steps=100))

    assert warned("1e-3:100") == []
    assert "the last one is kept until step 100" in warned("1e-3:50")[0]
    assert "before the last of the rates is reached" in warned("1e-3:200, 1e-4")[0]
