"""Tags out of scores: thresholds, MCut, order; the vectorised way equals the plain one."""

import numpy as np
import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.tagger.labels import written
from lora_atelier.tagger.picking import (
    PickParams,
    mcut_thresholds,
    pick_rows,
    tags_of,
    threshold_entries,
    unmatched_entries,
)
from lora_atelier.tagger.scores import FLOOR, SparseScores, Vocabulary, joined, sparse_of

VOCABULARY = Vocabulary(
    names=("safe", "explicit", "long_hair", "red_eyes", "^_^", "miku_(vocaloid)", "kantoku", "good", "bad", "", "lore"),
    categories=(
        "rating", "rating", "general", "general", "general", "character", "artist", "quality", "quality", "general",
        "model",
    ),
    thresholds={"general": 0.4, "character": 0.8},
    argmax=("rating", "quality"),
)  # fmt: skip


def scores_of(**by_name):
    values = np.zeros(len(VOCABULARY), np.float32)
    for name, value in by_name.items():
        values[VOCABULARY.names.index(name)] = value
    return values


def picked(values, vocabulary=VOCABULARY, **params):
    chosen = PickParams(**params)
    table = joined([sparse_of(values, vocabulary)])
    return [tag.name for tag in tags_of(pick_rows(table, vocabulary, chosen), 0, vocabulary, chosen)]


BASE = scores_of(
    safe=0.02, explicit=0.03, long_hair=0.9, red_eyes=0.5, kantoku=0.45, good=0.2, bad=0.1, lore=0.9,
    **{"miku_(vocaloid)": 0.85, "^_^": 0.41, "": 0.99},
)  # fmt: skip


def test_defaults_order_and_categories():
    assert picked(BASE) == ["miku (vocaloid)", "long hair", "red eyes", "kantoku", "^_^"]
    assert picked(BASE, characters_first=False)[:2] == ["long hair", "miku (vocaloid)"]
    assert picked(BASE, categories="general") == ["long hair", "red eyes", "^_^"]
    assert "lore" in picked(BASE, categories="all")


def test_ratings_and_quality_by_argmax_even_below_every_threshold():
    assert picked(BASE, include_rating=True)[0] == "explicit"
    assert picked(BASE, categories="general, quality")[0] == "good"
    assert picked(BASE, include_rating=True, exclude="explicit")[0] != "explicit"


def test_thresholds_by_slider_category_and_tag():
    assert "red eyes" not in picked(BASE, general_threshold=0.6)
    assert "miku (vocaloid)" not in picked(BASE, character_threshold=0.9)
    assert "kantoku" not in picked(BASE, thresholds="artist = 0.5")
    assert "red eyes" not in picked(BASE, thresholds="Red Eyes: 0.6")
    assert "miku (vocaloid)" not in picked(BASE, thresholds="miku \\(vocaloid\\) = 0.9")
    assert "kantoku" not in picked(BASE, general_threshold=0.46)  # a category without its own takes that of general


def test_max_tags_keeps_the_surest_whatever_their_category():
    assert picked(BASE, max_tags=2) == ["miku (vocaloid)", "long hair"]
    assert picked(BASE, max_tags=1, include_rating=True) == ["explicit", "long hair"]


def test_faces_and_parentheses():
    assert written("(o)_(o)", underscores_to_spaces=True, escape_parentheses=True) == "\\(o\\)_\\(o\\)"
    assert "miku \\(vocaloid\\)" in picked(BASE, escape_parentheses=True)
    assert "long_hair" in picked(BASE, underscores_to_spaces=False)


@pytest.mark.parametrize("text", ["long hair", "long hair = high", "= 0.5", "a = 1.5", "a = -1"])
def test_thresholds_that_are_none_are_refused(text):
    with pytest.raises(InputError, match="must read like"):
        PickParams(thresholds=text)


def test_thresholds_may_hold_signs_in_their_names():
    assert threshold_entries(":d = 0.4\nfoo: 0.5, bar = 1") == {":d": 0.4, "foo": 0.5, "bar": 1.0}


def test_entries_that_match_nothing_are_named_with_the_nearest():
    params = PickParams(exclude="long hairs, red_eyes", thresholds="artist = 0.5\nrdd eyes = 1")
    said = unmatched_entries(VOCABULARY, params)
    assert len(said) == 2
    assert "did you mean 'long hair'" in said[0]
    assert "did you mean 'red eyes'" in said[1]


def naive_mcut(values):
    """Sorted, the middle of the largest gap; below the lowest comes 0."""
    ordered = [*sorted((float(v) for v in values), reverse=True), 0.0]
    gaps = [a - b for a, b in zip(ordered, ordered[1:], strict=False)]
    place = gaps.index(max(gaps))
    return (ordered[place] + ordered[place + 1]) / 2


def test_mcut_against_the_plain_way():
    random = np.random.default_rng(0)
    rows = np.sort(random.integers(0, 50, 400)).astype(np.int32)
    values = random.uniform(0.05, 1.0, 400).astype(np.float32)
    cuts = mcut_thresholds(rows, values, 51, floor=0.0, maximum=1.0)
    for row in range(50):
        assert cuts[row] == pytest.approx(naive_mcut(values[rows == row]), abs=1e-6)
    assert cuts[50] == 0.0


def test_mcut_has_a_floor_and_a_maximum():
    values = scores_of(long_hair=0.99, red_eyes=0.55, **{"^_^": 0.5})
    assert picked(values, mcut=True, mcut_maximum=1.0) == ["long hair", "red eyes", "^_^"]
    values = scores_of(long_hair=0.99, red_eyes=0.45, **{"^_^": 0.4})
    assert picked(values, mcut=True, mcut_maximum=1.0) == ["long hair"]
    assert picked(values, mcut=True, mcut_maximum=0.42) == ["long hair", "red eyes"]
    low = scores_of(long_hair=0.2, red_eyes=0.06)
    assert picked(low, mcut=True, mcut_floor=0.3) == []
    assert picked(scores_of(**{"miku_(vocaloid)": 0.1}), mcut=True, mcut_floor=0.05) == []  # characters: 0.15


def test_all_rows_at_once_equal_one_by_one(monkeypatch):
    random = np.random.default_rng(1)
    table = (random.random((300, len(VOCABULARY))) ** 2).astype(np.float32)
    sparse = joined([sparse_of(row, VOCABULARY) for row in table])
    for params in (
        PickParams(include_rating=True, max_tags=3),
        PickParams(mcut=True, categories="all"),
        PickParams(exclude="long hair", thresholds="red eyes = 0.9"),
    ):
        monkeypatch.setattr("lora_atelier.tagger.picking._ROWS_AT_ONCE", 70)
        together = pick_rows(sparse, VOCABULARY, params)
        for row in range(300):
            alone = pick_rows(joined([sparse_of(table[row], VOCABULARY)]), VOCABULARY, params)
            assert tags_of(together, row, VOCABULARY, params) == tags_of(alone, 0, VOCABULARY, params)


def test_nothing_at_all():
    empty = SparseScores(offsets=np.zeros(1, np.int64), ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))
    assert len(pick_rows(empty, VOCABULARY, PickParams()).ids) == 0
    assert picked(np.zeros(len(VOCABULARY), np.float32)) == []


def test_sparse_keeps_what_counts():
    ids, values = sparse_of(BASE, VOCABULARY)
    assert np.all(np.diff(ids) > 0)
    kept = {VOCABULARY.names[place] for place in ids}
    assert "explicit" in kept  # the best rating, though below the floor
    assert "safe" not in kept
    assert values.dtype == np.float32
    assert sorted(values)[1] >= FLOOR


def test_some_pictures_of_a_table_in_another_order():
    table = np.random.default_rng(0).random((6, len(VOCABULARY)), dtype=np.float32)
    table[3] = 0.0
    sparse = joined([sparse_of(row, VOCABULARY) for row in table])
    rows = np.array([4, 3, 0, 4], dtype=np.int64)
    np.testing.assert_array_equal(sparse.take(rows).dense(len(VOCABULARY)), sparse.dense(len(VOCABULARY))[rows])
    assert len(sparse.take(rows[:0])) == 0
