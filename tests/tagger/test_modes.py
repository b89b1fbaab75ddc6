"""Tagger tags beside captions that are there: overwrite, append, prepend, only missing."""

from dataclasses import replace

import numpy as np
import pytest

from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.dataset.columns import CATEGORIES, SOURCES, TagColumn
from lora_atelier.dataset.table import CAPTION_FOLDER, CAPTION_METADATA, CAPTION_NONE, CAPTION_SITE
from lora_atelier.tagger.ensemble import Member, calibrated, combine, member_lines
from lora_atelier.tagger.modes import MODES, Tags, rows_for, with_tagger_tags
from lora_atelier.tagger.picking import PickParams, floor_note, pick_rows, tags_of
from lora_atelier.tagger.scores import SparseScores, Vocabulary, joined, sparse_of
from lora_atelier.tagger.tag import EnsembleParams

VOCABULARY = Vocabulary(
    names=("general", "long_hair", "red_eyes", "miku_(vocaloid)", "big_hat", "Long Hair"),
    categories=("rating", "general", "general", "character", "general", "general"),
    thresholds={"general": 0.4, "character": 0.5},
)


def tags(*rows, scores):
    parts = [sparse_of(np.array(row, np.float32), VOCABULARY) for row in scores]
    table = joined(parts)
    return Tags(
        rows=np.array(rows, np.int64), picked=pick_rows(table, VOCABULARY, PickParams()), scores=table,
        vocabulary=VOCABULARY,
    )  # fmt: skip


TAGS = ((0.9, 0.8, 0.1, 0.9, 0.2, 0.0), (0.9, 0.0, 0.7, 0.0, 0.3, 0.6))


def apply(column, mode, found=None):
    return with_tagger_tags(column, found or tags(0, 2, scores=TAGS), PickParams(), mode)


@pytest.fixture
def column():
    return TagColumn.from_rows([("trigger", "Long_Hair", "big hat"), ("kept",), ()])


def test_append_keeps_what_is_there_and_adds_the_rest(column):
    result, rules = apply(column, "append")
    assert result.row(0) == ("trigger", "Long_Hair", "big hat", "miku (vocaloid)")
    assert result.row(1) == ("kept",)
    assert result.row(2) == ("red eyes", "Long Hair")
    assert {rule.rule: (rule.touched, rule.added) for rule in rules} == {
        "general tags": (1, 2),
        "character tags": (1, 1),
    }


def test_prepend_puts_the_taggers_first(column):
    result, _ = apply(column, "prepend")
    assert result.row(0) == ("miku (vocaloid)", "long hair", "trigger", "big hat")


def test_overwrite_replaces_only_pictures_that_were_tagged(column):
    result, rules = apply(column, "overwrite")
    assert [result.row(row) for row in range(3)] == [
        ("miku (vocaloid)", "long hair"), ("kept",), ("red eyes", "Long Hair"),
    ]  # fmt: skip
    assert next(rule for rule in rules if rule.removed).removed == 2


@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "only missing"])
def test_twice_is_once(column, mode):
    once, _ = apply(column, mode)
    twice, _ = apply(once, mode)
    assert [once.row(row) for row in range(3)] == [twice.row(row) for row in range(3)]
    np.testing.assert_array_equal(once.sources, twice.sources)


def test_scores_sources_and_categories_travel_with_the_tags(column):
    result, _ = apply(column, "append")
    row = result.row(0)
    scores = dict(zip(row, result.scores[: len(row)].tolist(), strict=True))
    sources = dict(zip(row, [SOURCES[n] for n in result.sources[: len(row)]], strict=True))
    assert scores["miku (vocaloid)"] == pytest.approx(0.9, abs=1e-3)
    assert scores["Long_Hair"] == pytest.approx(0.8, abs=1e-3)  # the site's tag gets the tagger's word
    assert scores["big hat"] == pytest.approx(0.2, abs=1e-3)  # also below the threshold: an arbiter needs it
    assert np.isnan(scores["trigger"])
    assert sources == {
        "trigger": "caption", "Long_Hair": "caption", "big hat": "caption", "miku (vocaloid)": "tagger",
    }  # fmt: skip
    assert CATEGORIES[result.categories[result.id_of("miku (vocaloid)")]] == "character"
    assert CATEGORIES[result.categories[result.id_of("big hat")]] == "general"
    assert result.categories[result.id_of("trigger")] == 0


def test_scores_that_are_there_are_kept(column):
    scored = column.with_scores(np.array([np.nan, 0.25, np.nan, np.nan], np.float16))
    result, _ = apply(scored, "append")
    assert result.scores[1] == np.float16(0.25)


def test_only_missing_are_pictures_without_a_caption_of_their_own(make_dataset):
    dataset = make_dataset(4, captions={1: "a tag", 2: ""})
    assert rows_for(dataset, "only missing").tolist() == [0, 2, 3]
    assert rows_for(dataset, "append").tolist() == [0, 1, 2, 3]
    tagged, _ = with_tagger_tags(dataset.tags, tags(0, 2, scores=TAGS), PickParams(), "only missing")
    again = dataset.with_tag_column(tagged, note="tagged")
    assert rows_for(again, "only missing").tolist() == [3]
    with pytest.raises(UnknownNameError, match="append"):
        rows_for(dataset, "appned")


@pytest.mark.parametrize(
    ("source", "missing"), [(CAPTION_FOLDER, [0]), (CAPTION_SITE, []), (CAPTION_METADATA, []), (CAPTION_NONE, [0])]
)
def test_captions_of_sites_and_metadata_files_are_not_missing(make_dataset, source, missing):
    dataset = make_dataset(2, captions={0: "of somebody", 1: "a tag"})
    sources = dataset.caption_source.copy()
    sources[0] = source
    assert rows_for(replace(dataset, caption_source=sources), "only missing").tolist() == missing


def test_nothing_said_changes_nothing(column):
    empty = tags(0, 1, 2, scores=np.zeros((3, 6)))
    result, rules = apply(column, "append", empty)
    assert [result.row(row) for row in range(3)] == [column.row(row) for row in range(3)]
    assert rules == []


# several taggers -----------------------------------------------------------------------------------------------
def member(name, names, categories, rows, thresholds, weight=1.0):
    vocabulary = Vocabulary(names=names, categories=categories, thresholds=thresholds)
    table = joined([sparse_of(np.array(row, np.float32), vocabulary) for row in rows])
    return Member(name=name, scores=table, vocabulary=vocabulary, weight=weight)


def test_calibration_puts_a_models_threshold_at_one_half():
    scores = np.array([0.2653, 0.53, 0.9, 0.05], np.float32)
    limits = np.array([0.2653, 0.53, 0.26, 0.5], np.float32)
    result = calibrated(scores, limits)
    np.testing.assert_allclose(result[:2], 0.5, atol=1e-6)
    odds = lambda p: np.log(p / (1 - p))  # noqa: E731
    np.testing.assert_allclose(odds(result), odds(scores) - odds(limits), atol=1e-5)
    assert np.all((result > 0.5) == (scores > limits + 1e-6))


@pytest.fixture
def members():
    return [
        member("a", ("long_hair", "red_eyes", "only_a"), ("general",) * 3, [(0.5, 0.3, 0.9)], {"general": 0.3}),
        member("b", ("Long Hair", "red eyes"), ("general", "general"), [(0.5, 0.9)], {"general": 0.6}),
    ]


def values_of(scores, vocabulary):
    ids, values = scores.row(0)
    return {vocabulary.names[place]: float(value) for place, value in zip(ids, values, strict=True)}


def test_mean_max_and_vote(members):
    high, low = (
        float(calibrated(np.float32([0.5]), np.float32([0.3]))[0]),
        float(calibrated(np.float32([0.5]), np.float32([0.6]))[0]),
    )
    mean = values_of(*combine(members, "mean"))
    assert mean["long_hair"] == pytest.approx((high + low) / 2, abs=1e-6)
    assert mean["only_a"] > 0.9  # the other model does not know it, so it has no say
    assert values_of(*combine(members, "max"))["long_hair"] == pytest.approx(high, abs=1e-6)
    assert values_of(*combine(members, "vote")) == {"long_hair": 0.5, "red_eyes": 1.0, "only_a": 1.0}


def test_weights_count(members):
    heavy = [members[0], Member(name="b", scores=members[1].scores, vocabulary=members[1].vocabulary, weight=3.0)]
    assert values_of(*combine(heavy, "vote"))["long_hair"] == 0.25
    assert values_of(*combine(heavy, "max")) == values_of(*combine(members, "max"))


def test_a_model_that_says_nothing_of_a_tag_it_knows_lowers_the_mean():
    both = [
        member("a", ("x",), ("general",), [(0.9,)], {"general": 0.5}),
        member("b", ("x",), ("general",), [(0.01,)], {"general": 0.5}),
    ]
    assert values_of(*combine(both, "mean"))["x"] == pytest.approx(0.45, abs=1e-6)


@pytest.mark.parametrize("how", ["mean", "max", "vote"])
def test_two_spellings_in_one_model_have_one_voice(how):
    twice = [
        member("a", ("long_hair", "Long hair"), ("general",) * 2, [(0.9, 0.6)], {"general": 0.5}),
        member("b", ("long hair",), ("general",), [(0.9,)], {"general": 0.5}),
    ]
    once = [
        member("a", ("long_hair",), ("general",), [(0.9,)], {"general": 0.5}),
        member("b", ("long hair",), ("general",), [(0.9,)], {"general": 0.5}),
    ]
    assert values_of(*combine(twice, how)) == pytest.approx(values_of(*combine(once, how)))
    assert max(values_of(*combine(twice, how)).values()) <= 1.0


def test_other_names_of_the_same_thing_are_counted_together():
    both = [
        member("a", ("hooded_sweatshirt", "cat"), ("general",) * 2, [(0.9, 0.4)], {"general": 0.5}),
        member("b", ("hoodie", "kitty"), ("general",) * 2, [(0.9, 0.8)], {"general": 0.5}),
    ]
    assert set(values_of(*combine(both, "mean"))) == {"hooded_sweatshirt", "cat", "hoodie", "kitty"}
    same = EnsembleParams(aliases="hooded sweatshirt -> hoodie, kitty -> cat").same_tags()
    found = values_of(*combine(both, "mean", same))
    assert found == pytest.approx({"hoodie": 0.9, "cat": 0.6}, abs=1e-6)
    with pytest.raises(InputError, match="circle"):
        EnsembleParams(aliases="a -> b, b -> a")


def test_thresholds_below_the_lowest_score_are_told(members):
    vocabulary = members[0].vocabulary
    assert floor_note(vocabulary, PickParams()) == ""
    note = floor_note(vocabulary, PickParams(general_threshold=0.02, thresholds="red eyes = 0.01\nlong hair = 0.3"))
    assert note == (
        "thresholds below 0.05 act as 0.05, because lower scores are not kept: "
        "general_threshold = 0.02, red eyes = 0.01"
    )
    assert "1 of the model's own" in floor_note(replace(vocabulary, tag_thresholds={0: 0.01}), PickParams())
    assert floor_note(vocabulary, PickParams(general_threshold=0.02, mcut=True)) == ""


def test_one_slider_serves_all_after_calibration(members):
    scores, vocabulary = combine(members, "max")
    params = PickParams()
    names = [tag.name for tag in tags_of(pick_rows(scores, vocabulary, params), 0, vocabulary, params)]
    assert set(names) == {"long hair", "red eyes", "only a"}


def test_ratings_are_combined_among_ratings():
    rows = [(0.9, 0.2, 0.8)]
    words = ("rating", "rating", "general")
    both = [
        member("a", ("general", "explicit", "general_store"), words, rows, {"general": 0.3}),
        member("b", ("general", "x", "general"), words, rows, {"general": 0.3}),
    ]
    scores, vocabulary = combine(both, "mean")
    assert vocabulary.names.count("general") == 2
    params = PickParams(include_rating=True)
    tags_found = tags_of(pick_rows(scores, vocabulary, params), 0, vocabulary, params)
    assert (tags_found[0].name, tags_found[0].category) == ("general", "rating")


def test_names_as_typed():
    assert member_lines("a\n\n b = 0.5 ") == [("a", 1.0), ("b", 0.5)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (" \n", "no tagger is named"),
        ("a\na = 2", "given twice"),
        ("a = much", "read like"),
        ("a = 0", "weight above 0"),
        ("= 2", "read like"),
    ],
)
def test_bad_names_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        member_lines(text)


def test_unknown_ways_are_refused(members):
    with pytest.raises(UnknownNameError, match="mean"):
        combine(members, "median")
    with pytest.raises(InputError, match="at least one"):
        combine([], "mean")


def test_empty_scores_combine_to_nothing():
    vocabulary = Vocabulary(names=("x",), categories=("general",))
    empty = SparseScores(offsets=np.zeros(4, np.int64), ids=np.zeros(0, np.int32), values=np.zeros(0, np.float32))
    scores, _ = combine([Member(name="a", scores=empty, vocabulary=vocabulary)], "mean")
    assert len(scores) == 3
