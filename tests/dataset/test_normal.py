"""The form in which tags are compared, and the sentence for an entry that matched nothing."""

import random
import time

import pytest

from lora_atelier.dataset.normal import KAOMOJI, matched_nothing, nearest_tags, normal, places_by_normal


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("white_hair", "White  Hair"),
        (r"kayoko \(blue archive\)", "kayoko_(blue_archive)"),
        ("\uff41\uff42\uff43", "abc"),
        ("e\u0301", "\u00e9"),
        ("stra\u00dfe", "STRASSE"),
        (r"\(o\)_\(o\)", "(o)_(o)"),
        ("a\u3000b", "a b"),
        ("_a__b_", "a b"),
    ],
)
def test_the_same_tag(one, other):
    assert normal(one) == normal(other)


@pytest.mark.parametrize(
    ("one", "other"), [("two-tone hair", "two tone hair"), ("hood", "hoodie"), ("^_^", "^ ^"), ("a", "b")]
)
def test_not_the_same_tag(one, other):
    assert normal(one) != normal(other)


def test_twice_is_once():
    draw = random.Random(0)
    letters = "aB_ \\()\u00df\u0130\uff21\u0301\u3000^o<>|-\u01c5\ufb01"
    for _ in range(3000):
        tag = "".join(draw.choice(letters) for _ in range(draw.randint(0, 8)))
        assert normal(normal(tag)) == normal(tag), ascii(tag)


def test_faces_stay():
    assert all(normal(face) == face for face in KAOMOJI)


def test_places_of_all_spellings():
    assert places_by_normal(("a_b", "c", "A b")) == {"a b": (0, 2), "c": (1,)}


def test_the_nearest_tags():
    assert matched_nothing("long_hiar", ["long hair", "short hair"]) == (
        "entry 'long_hiar' matched 0 images, did you mean 'long hair'?"
    )
    assert matched_nothing("zzz", ["long hair"]) == "entry 'zzz' matched 0 images"
    assert nearest_tags("ponytial", ["ponytail", "tail"]) == ["ponytail"]


def test_looking_for_the_nearest_is_quick_in_a_large_vocabulary():
    known = [f"long hair {number}" for number in range(50_000)]
    start = time.process_time()
    assert nearest_tags("long hiar 77", known)
    assert time.process_time() - start < 2.0
