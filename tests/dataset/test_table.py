import os
from dataclasses import replace

import numpy as np
import pytest

from atelier_tests.helpers.pictures import make_folder, save_picture
from atelier_tests.helpers.progress import CancelAfter
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset.columns import TagColumn, TextColumn
from lora_atelier.dataset.identity import content_fingerprint
from lora_atelier.dataset.images import BadPicture
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    make_folder(tmp_path / "2_cat", {"1.png": "zwx, red", "2.png": "zwx, blue", "3.png": "zwx"})
    make_folder(tmp_path / "1_dog", {"1.png": "dog, red"})
    return open_folder(tmp_path, DatasetParams())


def captions(dataset: Dataset) -> list[str]:
    return [dataset.caption(row) for row in range(len(dataset))]


def test_rows_are_built_when_asked_for(dataset):
    row = dataset.image(1)
    assert row.path.name == "1.png"
    assert (row.width_px, row.height_px) == (96, 64)
    assert row.caption == "zwx, red"
    assert row.tags == ("zwx", "red")
    assert row.repeats == 2
    assert not row.is_reg
    assert row.subset.concept == "cat"
    with pytest.raises(IndexError):
        dataset.image(4)


def test_changing_tags_shares_everything_else(dataset):
    changed = dataset.with_tags({2: ["zwx", "green", "red"], 0: []}, note="test")
    assert captions(changed) == ["", "zwx, red", "zwx, green, red", "zwx"]
    assert captions(dataset) == ["dog, red", "zwx, red", "zwx, blue", "zwx"]
    assert changed.history == (*dataset.history, "test")
    assert changed.names is dataset.names
    assert changed.width_px is dataset.width_px
    only_known = dataset.with_tags({0: ["zwx"]}, note="test")
    assert only_known.tags.vocabulary is dataset.tags.vocabulary
    with pytest.raises(InputError, match="picture 4 is not in the data set, which has 4"):
        dataset.with_tags({4: []}, note="test")


def test_columns_cannot_be_written(dataset):
    for column in (dataset.width_px, dataset.tags.ids, dataset.tags.offsets, dataset.subset_index):
        with pytest.raises(ValueError, match="read-only"):
            column[0] = 0


def test_tags_are_counted(dataset):
    assert dataset.tag_counts() == {"zwx": 3, "red": 2, "blue": 1, "dog": 1}
    without_blue = dataset.with_tags({2: ["zwx"]}, note="")
    assert without_blue.tag_counts() == {"zwx": 3, "red": 2, "dog": 1}


def test_rows_can_be_picked_and_ordered(dataset):
    picked = dataset.take([3, 0], note="picked")
    assert captions(picked) == ["zwx", "dog, red"]
    assert [picked.path(row) for row in range(2)] == [dataset.path(3), dataset.path(0)]
    assert picked.repeats.tolist() == [2, 1]


def test_pictures_found_broken_later_are_left_out_with_their_reason(dataset):
    rest = dataset.without({1: "it is damaged", 3: "the file is gone"})
    assert captions(rest) == ["dog, red", "zwx, blue"]
    assert [str(entry) for entry in rest.skipped] == [
        "2_cat/1.png: it is damaged",
        "2_cat/3.png: the file is gone",
    ]
    assert dataset.without({}) is dataset
    with pytest.raises(InputError, match=r"no picture in .* can be used \(1_dog/1\.png: bad; .*; and 1 more\)"):
        dataset.without(dict.fromkeys(range(4), "bad"))


def test_only_regularisation_pictures_left_is_nothing_left(dataset, tmp_path):
    reg = make_folder(tmp_path / "reg", {"1.png": "x"})
    both = open_folder(tmp_path / "2_cat", DatasetParams(), reg_folder=reg)
    with pytest.raises(InputError, match="can be used"):
        both.without(dict.fromkeys(range(3), "bad"))


def test_the_fingerprint_is_of_everything_that_decides(dataset, tmp_path):
    seen = {dataset.fingerprint(), open_folder(tmp_path, DatasetParams()).fingerprint()}
    assert len(seen) == 1
    seen.add(dataset.with_tags({0: ["dog"]}, note="").fingerprint())
    seen.add(open_folder(tmp_path, DatasetParams(flip=True)).fingerprint())
    seen.add(open_folder(tmp_path, DatasetParams(repeats=2)).fingerprint())
    picture = tmp_path / "1_dog" / "1.png"
    os.utime(picture, ns=(10**18, 10**18))
    seen.add(open_folder(tmp_path, DatasetParams()).fingerprint())
    assert len(seen) == 5
    # The way to a caption does not count, only the caption.
    there_and_back = dataset.with_tags({0: ["new"]}, note="").with_tags({0: ["dog", "red"]}, note="")
    assert there_and_back.fingerprint() == dataset.fingerprint()


def test_the_content_fingerprint_does_not_care_where_pictures_lie(dataset, tmp_path):
    first = content_fingerprint(dataset)
    (tmp_path / "2_cat").rename(tmp_path / "2_moved")
    os.utime(tmp_path / "2_moved" / "1.png", ns=(10**18, 10**18))
    moved = open_folder(tmp_path, DatasetParams())
    assert content_fingerprint(moved) == first
    assert moved.fingerprint() != dataset.fingerprint()
    save_picture(tmp_path / "2_moved" / "1.png", shade=200)
    assert content_fingerprint(open_folder(tmp_path, DatasetParams())) != first
    assert content_fingerprint(open_folder(tmp_path, DatasetParams(keep_tokens=2))) != first
    with pytest.raises(BadPicture, match="the file is gone"):
        content_fingerprint(dataset)
    with pytest.raises(Cancelled):
        content_fingerprint(moved, progress=CancelAfter(0))


def test_options_can_be_changed_per_subset(dataset):
    flipped = dataset.with_subsets([replace(subset, flip=True) for subset in dataset.subsets], note="flip")
    assert all(subset.flip for subset in flipped.subsets)
    with pytest.raises(InputError, match="1 subsets were given for a data set of 2"):
        dataset.with_subsets(dataset.subsets[:1], note="")


def test_joined_tables_keep_rows_and_tags(dataset):
    both = dataset.joined(dataset.with_tags({0: ["new", "red"]}, note=""), note="joined")
    assert captions(both) == [*captions(dataset), "new, red", "zwx, red", "zwx, blue", "zwx"]
    assert both.tags.vocabulary == (*dataset.tags.vocabulary, "new")
    assert [both.path(row) for row in range(8)] == [dataset.path(row) for row in range(4)] * 2
    assert both.repeats.tolist() == [1, 2, 2, 2] * 2


def test_text_columns_hold_any_text():
    values = ["", "a", "\u732b\U0001f431", "x" * 1000, ""]
    column = TextColumn.from_strings(values)
    assert list(column) == values
    assert list(column.take(np.array([3, 2, 2]))) == [values[3], values[2], values[2]]
    assert list(column.joined(column)) == values * 2
    with pytest.raises(IndexError):
        column[5]


def test_tag_columns_match_plain_lists():
    random = np.random.default_rng(5)
    for _ in range(40):
        rows = [[f"t{tag}" for tag in random.integers(0, 9, random.integers(0, 6))] for _ in range(12)]
        column = TagColumn.from_rows(rows)
        assert [list(column.row(row)) for row in range(12)] == rows
        picks = random.integers(0, 12, 7)
        assert [list(column.take(picks).row(row)) for row in range(7)] == [rows[pick] for pick in picks]
        changes = {int(row): [f"t{tag}" for tag in random.integers(0, 14, 3)] for row in random.integers(0, 12, 4)}
        changed = column.replaced(changes)
        expected = [changes.get(row, tags) for row, tags in enumerate(rows)]
        assert [list(changed.row(row)) for row in range(12)] == expected
        both = column.joined(changed)
        assert [list(both.row(row)) for row in range(24)] == rows + expected
        counts = dict(zip(both.vocabulary, both.counts().tolist(), strict=True))
        flat = [tag for tags in rows + expected for tag in tags]
        assert all(counts[tag] == flat.count(tag) for tag in counts)
    assert len(TagColumn.from_rows([])) == 0
