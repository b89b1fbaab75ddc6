"""The small language in which axis values are typed: lists with quotes, one per line, and number ranges.

``1-5`` counts 1 2 3 4 5; ``1-10 (+2)`` steps by 2; ``0.1-1 [5]`` takes five values spread evenly, both ends included.
The forms are those of the web UI's X/Y/Z plot, without its quirks: a descending range includes its end, and a range of
fractions gets no extra value from rounding.
"""

import csv
import math
import re

from ..core.errors import InputError

MAX_VALUES = 1000
"""Longest axis; a typing error such as 1-1000000 must not fill the memory."""

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_RANGE = re.compile(rf"^\s*({_NUMBER})\s*-\s*({_NUMBER})\s*(?:\(\s*({_NUMBER})\s*\)|\[\s*(\d+)\s*\])?\s*$")


def split_list(text: str, *, what: str) -> list[str]:
    """Split a comma-separated list; quotes hold commas together, and every line break separates too.

    Raises:
        InputError: Nothing is left, or there are more than 1000 values.
    """
    values: list[str] = []
    for line in text.splitlines():
        for row in csv.reader([line], skipinitialspace=True):
            values += [item.strip() for item in row if item.strip()]
    return _checked(values, what)


def split_lines(text: str, *, what: str) -> list[str]:
    """Split into lines, for values that hold commas themselves; blank lines are passed over.

    Raises:
        InputError: Nothing is left, or there are more than 1000 values.
    """
    return _checked([line.strip() for line in text.splitlines() if line.strip()], what)


def parse_floats(text: str, *, what: str) -> list[float]:
    """Read numbers and ranges of fractions.

    Raises:
        InputError: A value is not a number or range, a step is 0, or there are more than 1000 values.
    """
    values: list[float] = []
    for item in split_list(text, what=what):
        values += _expand(item, what, whole=False)
        _checked(values, what)
    return values


def parse_ints(text: str, *, what: str) -> list[int]:
    """Read whole numbers and ranges of them; a count in brackets is rounded to whole numbers.

    Raises:
        InputError: A value is not a whole number or range, a step is 0, or there are more than 1000 values.
    """
    values: list[int] = []
    for item in split_list(text, what=what):
        values += [int(value) for value in _expand(item, what, whole=True)]
        _checked(values, what)
    return values


def _checked(values: list, what: str) -> list:  # type: ignore[type-arg]
    if not values:
        raise InputError(f"The axis '{what}' has no value; give at least one, separated by commas or line breaks.")
    if len(values) > MAX_VALUES:
        raise InputError(f"The axis '{what}' has {len(values)} values; at most {MAX_VALUES} are allowed.")
    return values


def _number(text: str, item: str, what: str, whole: bool) -> float:
    kind = "whole number" if whole else "number"
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(
            f"'{item}' in the axis '{what}' is not a {kind} or a range of them; "
            "write for example 1, 2, 5 or 1-5 or 1-10 (+2) or 0.1-1 [5]."
        )
    return value


def _expand(item: str, what: str, whole: bool) -> list[float]:
    found = _RANGE.match(item)
    if not found:
        return [_number(item, item, what, whole)]
    first, last = (_number(found.group(index), item, what, whole) for index in (1, 2))
    if found.group(4):
        count = int(found.group(4))
        if not 1 <= count <= MAX_VALUES:
            raise InputError(f"'{item}' in the axis '{what}' asks for {count} values; 1 to {MAX_VALUES} are allowed.")
        spread = [first + (last - first) * index / max(count - 1, 1) for index in range(count)]
        return [round(value) if whole else _tidy(value) for value in spread]
    step = abs(_number(found.group(3), item, what, whole)) if found.group(3) else 1
    if step == 0:
        raise InputError(f"'{item}' in the axis '{what}' has step 0; give a step such as (+1).")
    steps = abs(last - first) / step
    if steps >= MAX_VALUES:
        raise InputError(f"'{item}' in the axis '{what}' is {steps + 1:.0f} values; at most {MAX_VALUES} are allowed.")
    direction = step if last >= first else -step
    return [_tidy(first + direction * index) for index in range(math.floor(steps + 1e-9) + 1)]


def _tidy(value: float) -> float:
    """Remove the rounding tail of binary fractions, so that 0.1 + 0.2 is written 0.3."""
    return float(f"{value:.10g}") if isinstance(value, float) else value


def show_number(value: float) -> str:
    """Write a number as a label: no trailing zeros."""
    return f"{value:.6g}"
