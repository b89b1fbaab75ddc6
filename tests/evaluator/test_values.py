"""The value mini-language."""

import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.evaluator.values import parse_floats, parse_ints, split_lines, split_list


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1-5", [1, 2, 3, 4, 5]),
        ("5-1", [5, 4, 3, 2, 1]),
        ("1-10 (+2)", [1, 3, 5, 7, 9]),
        ("10-1 (-3)", [10, 7, 4, 1]),
        ("1-9 [3]", [1, 5, 9]),
        ("-2-1", [-2, -1, 0, 1]),
        ("1, 7-8\n20", [1, 7, 8, 20]),
        ("7", [7]),
        ("3-3", [3]),
    ],
)
def test_whole_numbers(text, values):
    assert parse_ints(text, what="seed") == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.1-1 [5]", [0.1, 0.325, 0.55, 0.775, 1.0]),
        ("0-1 (+0.1)", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("1-0 (+0.25)", [1.0, 0.75, 0.5, 0.25, 0.0]),
        ("-1--0.5 (+0.5)", [-1.0, -0.5]),
        ("1e-4", [1e-4]),
        (".5, 1.", [0.5, 1.0]),
        ("1-3", [1.0, 2.0, 3.0]),
    ],
)
def test_fractions(text, values):
    assert parse_floats(text, what="CFG") == pytest.approx(values, abs=1e-12)
    assert len(parse_floats(text, what="CFG")) == len(values)


def test_lists():
    assert split_list('a, "b, c" ,d\ne,,', what="x") == ["a", "b, c", "d", "e"]
    assert split_lines("a, b\n\n c \n", what="x") == ["a, b", "c"]


@pytest.mark.parametrize(
    ("parse", "text", "said"),
    [
        (parse_ints, "", "no value"),
        (parse_ints, " ,\n", "no value"),
        (parse_ints, "1.5", "'1.5'.*whole number"),
        (parse_ints, "a-b", "'a-b'"),
        (parse_ints, "1-5 (+0)", "step 0"),
        (parse_ints, "1-1000000", "at most 1000"),
        (parse_ints, "1-5 [0]", "asks for 0"),
        (parse_floats, "nan", "'nan'"),
        (parse_floats, "1e999", "'1e999'"),
        (parse_floats, "0-1 (+0.0001)", "at most 1000"),
    ],
)
def test_refused(parse, text, said):
    with pytest.raises(InputError, match=said):
        parse(text, what="seed")
