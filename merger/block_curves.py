"""The named curves of block-weighted merging as formulas over the way through the UNet.

Source: the preset list that SuperMerger and merge-block-weighted-gui share (26 numbers each: the base, then 25). There
they are digits for SD1.x; here x runs from 0 at the first block to 1 at the last, so they fit every architecture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

Curve = Callable[[float], float]


def _smooth(x: float) -> float:
    return x * x * (3.0 - 2.0 * x)


def _folded(x: float) -> float:
    """A way that goes up and down again between 0 and 1."""
    return 1.0 - abs(1.0 - x % 2.0)


def _cubic(first: float, *factors: float) -> Curve:
    """0 at the first block, then a cubic: its constant and the factors of x, x^2, x^3."""
    return lambda x: first + sum(factor * x ** (power + 1) for power, factor in enumerate(factors)) if x > 0.0 else 0.0


def _steps_folded(count: int) -> Curve:
    """One step of ``count`` times the height, folded back into 0..1."""
    return lambda x: _folded(count * _smooth(x))


def _steps_repeated(count: int) -> Curve:
    """As many steps, up and down in turn."""
    return lambda x: _smooth(_folded(count * x))


def _reverse(curve: Curve) -> Curve:
    return lambda x: 1.0 - curve(x)


def _inside(ranges: Sequence[tuple[int, int]], value: float = 1.0) -> Curve:
    """``value`` where the block, counted 0..24, lies in one of the ranges, ends included."""

    def curve(x: float) -> float:
        place = round(x * 24)
        return value if any(first <= place <= last for first, last in ranges) else 0.0

    return curve


def _table(values: Mapping[int, float]) -> Curve:
    return lambda x: values.get(round(x * 24), 0.0)


_TRUE_HERMITE = _cubic(1 / 24, 25 / 6, -77 / 8, 77 / 12)
_FAKE_HERMITE = _cubic(0.0, 25 / 6, -19 / 2, 19 / 3)
_SMOOTHS: dict[str, Curve] = {
    "SMOOTHSTEP": _smooth,
    **{f"SMOOTHSTEP*{count}": _steps_folded(count) for count in (2, 3, 4)},
    **{f"SMOOTHSTEP/{count}": _steps_repeated(count) for count in (2, 3, 4)},
}

CURVES: Mapping[str, Curve] = {
    "GRAD_V": lambda x: abs(1.0 - 2.0 * x),
    "GRAD_A": lambda x: 1.0 - abs(1.0 - 2.0 * x),
    "FLAT_25": lambda x: 0.25,
    "FLAT_75": lambda x: 0.75,
    **{f"WRAP{2 * n:02d}": _inside([(0, n - 1), (25 - n, 24)]) for n in (4, 6, 7, 8)},
    "MID12_50": _inside([(5, 18)], 0.5),
    "OUT07": _inside([(18, 24)]),
    "OUT12": _inside([(13, 24)]),
    "OUT12_5": _table({12: 0.5, **dict.fromkeys(range(13, 25), 1.0)}),
    "RING08_SOFT": _table(
        {place: 0.5 if place in (5, 9, 15, 19) else 1.0 for place in (*range(5, 10), *range(15, 20))}
    ),
    "RING08_5": _inside([(6, 9), (15, 18)]),
    "RING10_5": _inside([(5, 9), (15, 19)]),
    "RING10_3": _inside([(6, 10), (14, 18)]),
    **_SMOOTHS,
    "REVERSE_SMOOTHSTEP": _reverse(_smooth),
    **{f"R_{name}": _reverse(curve) for name, curve in _SMOOTHS.items() if name != "SMOOTHSTEP"},
    "COSINE": lambda x: (1.0 + math.cos(math.pi * x)) / 2.0,
    "REVERSE_COSINE": lambda x: (1.0 - math.cos(math.pi * x)) / 2.0,
    "TRUE_CUBIC_HERMITE": _TRUE_HERMITE,
    "TRUE_REVERSE_CUBIC_HERMITE": _reverse(_TRUE_HERMITE),
    "FAKE_CUBIC_HERMITE": _FAKE_HERMITE,
    "FAKE_REVERSE_CUBIC_HERMITE": _reverse(_FAKE_HERMITE),
    "ALL_A": lambda x: 0.0,
    "ALL_B": lambda x: 1.0,
}
"""Name -> share of B at the place x of the way through the UNet, from 0 (IN00) to 1 (the last OUT)."""


def curve_values(name: str, count: int) -> list[float]:
    """The curve at ``count`` blocks."""
    curve = CURVES[name]
    return [curve(number / (count - 1)) for number in range(count)]
