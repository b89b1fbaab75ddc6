r"""Brackets in captions: weights by hand, plain characters by ``\``, partners that are missing."""

import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.families._emphasis import parse_emphasis

UP, DOWN = 1.1, 1 / 1.1


@pytest.mark.parametrize(
    ("caption", "expected", "unbalanced"),
    [
        ("", [], 0),
        ("red hat, ring", [("red hat, ring", 1.0)], 0),
        ("a (red) hat", [("a ", 1.0), ("red", UP), (" hat", 1.0)], 0),
        ("a [red] hat", [("a ", 1.0), ("red", DOWN), (" hat", 1.0)], 0),
        ("(red:1.2), hat", [("red", 1.2), (", hat", 1.0)], 0),
        ("(red: .5 )", [("red", 0.5)], 0),
        ("(red:-1)", [("red", -1.0)], 0),
        ("((red))", [("red", UP * UP)], 0),
        ("((red:2) hat)", [("red", UP * 2.0), (" hat", UP)], 0),
        ("([red] hat:2)", [("red", 2.0 * DOWN), (" hat", 2.0)], 0),
        (r"kest \(blue\) (hat:1.5)", [("kest (blue) ", 1.0), ("hat", 1.5)], 0),
        (r"\[a\] \\ \n", [("[a] \\ \\n", 1.0)], 0),
        ("(red:high)", [("red:high", UP)], 0),
        ("(:3)", [(":3", UP)], 0),
        ("(red:1.2.3)", [("red:1.2.3", UP)], 0),
        ("red (hat, ring", [("red (hat, ring", 1.0)], 1),
        ("red) hat]", [("red) hat]", 1.0)], 2),
        ("(a [b) c]", [("a [b", UP), (" c]", 1.0)], 2),
        (":), (:1.2)", [(":), ", 1.0), (":1.2", UP)], 1),
        ("()", [], 0),
    ],
)
def test_weights(caption: str, expected: list[tuple[str, float]], unbalanced: int) -> None:
    found = parse_emphasis(caption)
    assert [text for text, _ in found.segments] == [text for text, _ in expected]
    assert [weight for _, weight in found.segments] == pytest.approx([weight for _, weight in expected])
    assert found.num_unbalanced == unbalanced


@pytest.mark.parametrize("weight", ["nan", "inf", "-Infinity", "11", "1" * 400])
def test_weights_without_sense_are_refused(weight: str) -> None:
    with pytest.raises(InputError, match=r"holds the weight .*, allowed is -10 to 10"):
        parse_emphasis(f"hat, (red:{weight})")


def test_deep_and_long_brackets_are_no_trouble() -> None:
    assert parse_emphasis("(" * 5000 + "a" + ")" * 20).num_unbalanced == 4980
    assert parse_emphasis("(" * 5000).text == "(" * 5000
