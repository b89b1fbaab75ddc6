"""What a report says, and which captions count as changed."""

import json
import random

import pytest

from atelier_tests.helpers.captions import dataset_of
from lora_atelier.dataset.diff import RuleCount, changed_rows, compare


def test_changed_rows_against_a_plain_reading():
    draw = random.Random(1)

    def captions():
        return [", ".join(draw.choice("abc") for _ in range(draw.randint(0, 3))) for _ in range(30)]

    for _ in range(200):
        one, two = dataset_of(captions()), dataset_of(captions())
        expected = [row for row in range(30) if one.tags.row(row) != two.tags.row(row)]
        assert changed_rows(one.tags, two.tags).tolist() == expected
        assert changed_rows(one.tags, one.tags).tolist() == []


def test_another_number_of_captions_is_refused():
    with pytest.raises(ValueError, match="1 captions cannot be compared with 2"):
        changed_rows(dataset_of(["a"]).tags, dataset_of(["a", "b"]).tags)


def test_the_report():
    before, after = dataset_of(["a, b", "c", ""]), dataset_of(["a", "c", "x\n"])
    rules = [RuleCount(rule="b goes", touched=1, removed=1, note="why"), RuleCount(rule="x", touched=1, added=1)]
    diff = compare(before, after, title="Test", rules=rules, unmatched=["entry 'q' matched 0 images"])
    lines = diff.text().splitlines()
    assert lines[0] == "Test: 2 of 3 captions changed"
    assert lines[2].split() == ["b", "goes", "1", "1", "0", "why"]
    assert "  ! entry 'q' matched 0 images" in lines
    assert "    before: a, b" in lines
    assert "    after:  a" in lines
    assert json.loads(json.dumps(diff.to_json()))["captions_touched"] == 2


def test_long_reports_are_shortened():
    rules = [RuleCount(rule=f"rule {number}", touched=number) for number in range(500)]
    unmatched = [f"entry {number}" for number in range(500)]
    before, after = dataset_of(["a" * 9000] * 50), dataset_of(["b" * 9000] * 50)
    text = compare(before, after, title="Test", rules=rules, unmatched=unmatched).text()
    assert "rule 499" in text
    assert "and 440 more rules" in text
    assert "and 460 more that matched nothing" in text
    assert len(text) < 20_000
