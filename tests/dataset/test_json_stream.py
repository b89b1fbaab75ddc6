"""JSON read entry by entry: the same as at once, whatever the size of the window."""

import io
import json
import random
import tracemalloc

import pytest

from lora_atelier.core.errors import FormatError
from lora_atelier.dataset import json_stream
from lora_atelier.dataset.json_stream import stream_entries
from lora_atelier.dataset.metadata import read_metadata

WHOLE = {
    "a.png": {"caption": 'one, \\ "two"', "tags": ["x", "\u00e9\U0001f600"], "image_size": [512, 768]},
    "b/\\u.png": "text",
    "": None,
    "n": -12.5e3,
    "t": [True, False, None, {}, []],
}


@pytest.mark.parametrize("window", [1, 2, 3, 5, 17, 1000])
@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_same_as_at_once(monkeypatch, window, indent, ascii_only):
    monkeypatch.setattr(json_stream, "FIRST_CHARS", window)
    text = "  " + json.dumps(WHOLE, indent=indent, ensure_ascii=ascii_only) + "\n "
    assert dict(stream_entries(io.StringIO(text))) == WHOLE
    text = json.dumps(list(WHOLE.values()), indent=indent, ensure_ascii=ascii_only)
    assert [value for _, value in stream_entries(io.StringIO(text))] == list(WHOLE.values())
    for scalar in ("12345", '"abc"', "null"):
        assert list(stream_entries(io.StringIO(scalar))) == [(None, json.loads(scalar))]
    assert list(stream_entries(io.StringIO(" { } "))) == list(stream_entries(io.StringIO("[]"))) == []


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_what_is_no_json_is_refused_wherever_it_is_cut(monkeypatch, window):
    monkeypatch.setattr(json_stream, "FIRST_CHARS", window)
    text = json.dumps(WHOLE)
    for end in range(len(text)):
        with pytest.raises(json.JSONDecodeError):
            list(stream_entries(io.StringIO(text[:end])))
    for wrong in ('{"a" 1}', '{"a": 1,}', '{"a": 1} x', "[1 2]", "{a: 1}", '{"a": tru}', "[1,]", '["\\x"]', "]"):
        with pytest.raises(json.JSONDecodeError, match="character"):
            list(stream_entries(io.StringIO(wrong)))


def test_random_damage_is_refused_as_at_once(monkeypatch):
    monkeypatch.setattr(json_stream, "FIRST_CHARS", 8)
    draw = random.Random(0)
    text = json.dumps(WHOLE)
    for _ in range(300):
        place = draw.randrange(len(text))
        other = text[:place] + draw.choice('{}[]",:\\1a ') + text[place + 1 :]
        try:
            expected = json.loads(other)
        except ValueError:
            expected = None
        if isinstance(expected, dict):
            assert dict(stream_entries(io.StringIO(other))) == expected
        elif expected is None:
            with pytest.raises(ValueError, match=r"."):
                list(stream_entries(io.StringIO(other)))


def test_a_wrong_character_is_found_without_reading_on(monkeypatch):
    monkeypatch.setattr(json_stream, "FIRST_CHARS", 64)
    file = io.StringIO('{"a": {"b" 1}, ' + " " * 10_000)
    with pytest.raises(json.JSONDecodeError, match="character 11"):
        list(stream_entries(file))
    assert file.tell() < 1000


def test_a_large_metadata_file_takes_the_memory_of_its_captions(tmp_path):
    number = 20_000
    entry = {"caption": "a girl", "tags": "x, y", "other": ["filler"] * 200}
    with open(tmp_path / "meta_cap.json", "w", encoding="utf-8") as file:
        file.write("\ufeff{")
        for place in range(number):
            file.write(("," if place else "") + f'"{place}.png": {json.dumps(entry)}')
        file.write("}")
    size = (tmp_path / "meta_cap.json").stat().st_size
    tracemalloc.start()
    found = read_metadata(tmp_path / "meta_cap.json")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == number
    assert found.find(tmp_path, "7.png") == "a girl, x, y"
    assert most < size / 3


def test_a_number_of_thousands_of_digits_is_refused_with_its_file(tmp_path):
    (tmp_path / "metadata.json").write_text('{"a": {"score": ' + "9" * 10_000 + "}}")
    with pytest.raises(FormatError, match=r"metadata\.json is not valid JSON"):
        read_metadata(tmp_path / "metadata.json")
