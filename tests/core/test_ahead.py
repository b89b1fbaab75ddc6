"""Work done ahead by threads: order, bounds, exceptions."""

import threading

import pytest

from lora_atelier.core.ahead import NextAhead, done_ahead


def test_results_come_in_order_and_few_are_begun_early() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        return item * item

    results = done_ahead(work, range(100), workers=3, most_ahead=4)
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert max(begun) <= 6
    results.close()  # type: ignore[attr-defined]
    assert list(done_ahead(work, range(20), workers=2)) == [item * item for item in range(20)]
    assert list(done_ahead(work, [])) == []


def test_an_exception_comes_at_its_items_turn() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    results = done_ahead(work, range(5), workers=2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(results)


def test_the_next_value_is_begun_while_one_is_used() -> None:
    done = {number: threading.Event() for number in range(12)}
    asked: list[int] = []

    def make(number: int) -> int:
        asked.append(number)
        done[number].set()
        return number * 10

    values = NextAhead(make)
    assert values.get(0) == 0
    assert done[1].wait(10)
    assert values.get(1) == 10
    assert values.get(7) == 70, "any number may be asked for"
    assert done[8].wait(10)
    values.close()
    assert sorted(set(asked)) == asked[:1] + sorted(set(asked[1:]))
    assert asked.count(1) == 1


def test_what_was_raised_ahead_comes_when_it_is_asked_for() -> None:
    def make(number: int) -> int:
        if number == 1:
            raise KeyboardInterrupt
        return number

    values = NextAhead(make)
    assert values.get(0) == 0
    with pytest.raises(KeyboardInterrupt):
        values.get(1)
    values.close()
