"""Wildcards in captions."""

import random

import pytest

from lora_atelier.dataset.wildcards import drawn, has_wildcards


def forms(text: str) -> set[str]:
    return {drawn(text, random.Random(seed).random) for seed in range(200)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a {red|blue} ball", {"a red ball", "a blue ball"}),
        ("{a|b} {c|d}", {"a c", "a d", "b c", "b d"}),
        ("{a|{b|c} d}", {"a", "b d", "c d"}),
        ("{a|}", {"a", ""}),
        ("no words", {"no words"}),
        ("{one}", {"{one}"}),
        ("a | b", {"a | b"}),
        ("{a|b", {"{a|b"}),
        ("a|b}", {"a|b}"}),
        ("\\{a|b\\}", {"{a|b}"}),
        ("{a\\|b|c}", {"a|b", "c"}),
        ("{{x|y}}", {"{x}", "{y}"}),
        ("{long hair, red|short hair}", {"long hair, red", "short hair"}),
    ],
)
def test_forms(text: str, expected: set[str]) -> None:
    assert forms(text) == expected
    assert has_wildcards(text) == (len(expected) > 1)


def test_a_thousand_braces_end() -> None:
    assert drawn("{a|" * 3000 + "b" + "}" * 3000, random.Random(0).random)
