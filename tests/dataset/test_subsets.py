"""Options of some folders: who is meant, what changes, what is said."""

import math
from dataclasses import replace

import pytest

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.parts import options_of
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.subsets import SubsetParams, with_subset_options


@pytest.fixture
def dataset(tmp_path):
    make_folder(tmp_path / "set" / "3_zwx cat", {"1.png": "zwx, cat"})
    make_folder(tmp_path / "set" / "2_dog", {"1.png": "dog"})
    make_folder(tmp_path / "reg" / "1_cat", {"1.png": "cat", "2.png": "cat"})
    return open_folder(tmp_path / "set", DatasetParams(), reg_folder=tmp_path / "reg")


def changed(dataset, **params):
    return with_subset_options(dataset, SubsetParams(**params))


def test_a_regularisation_set_keeps_its_own(dataset):
    result, report = changed(
        dataset, which="regularisation", keep_tokens=0, shuffle_captions="off", caption_dropout=0.1, flip="on"
    )
    dog, cat, reg = result.subsets
    assert (reg.keep_tokens, reg.shuffle_captions, reg.caption_dropout, reg.flip) == (0, False, 0.1, True)
    assert dog == dataset.subsets[0]
    assert cat == dataset.subsets[1]
    assert report.splitlines()[0] == (
        "Changed for 1 of 3 folders: keep_tokens = 0, shuffle_captions = False, flip = True, caption_dropout = 0.1."
    )
    assert "1_cat: 2 pictures for regularisation, 1 repeat, 5 per epoch, keeps 0 tags, in order, flipped" in report
    assert result.fingerprint() != dataset.fingerprint()
    assert result.history[-1].startswith("subset options of 1 folder:")


@pytest.mark.parametrize(
    ("folders", "which", "hit"),
    [
        ("*", "all", [1, 1, 1]),
        ("*", "training", [1, 1, 0]),
        ("2_DOG", "all", [1, 0, 0]),
        ("*cat*", "all", [0, 1, 1]),
        ("zwx cat\n2_dog", "all", [1, 1, 0]),
        ("*cat*", "regularisation", [0, 0, 1]),
    ],
)
def test_folders_are_named_by_name_text_or_pattern(dataset, folders, which, hit):
    result, _ = changed(dataset, folders=folders, which=which, repeats=9)
    assert [subset.repeats == 9 for subset in result.subsets] == [bool(one) for one in hit]


def test_a_pattern_that_matches_none_is_named(dataset):
    _, report = changed(dataset, folders="2_dog, 3_zwx_cat", repeats=2)
    assert "! pattern '3_zwx_cat' matched no folder; did you mean '3_zwx cat'" in report
    with pytest.raises(InputError, match=r"no folder matches '2_dgo'; did you mean '2_dog'.*there are: 2_dog, dog"):
        changed(dataset, folders="2_dgo")
    with pytest.raises(InputError, match="no regularisation folder matches '2_dog'"):
        changed(dataset, folders="2_dog", which="regularisation")


def test_a_prefix_is_set_and_taken_away(dataset):
    prefixed, _ = changed(dataset, caption_prefix=" a ,b")
    assert prefixed.subsets[0].caption_prefix == "a, b"
    assert changed(prefixed, repeats=2)[0].subsets[0].caption_prefix == "a, b"
    assert changed(prefixed, caption_prefix="-")[0].subsets[0].caption_prefix == ""


@pytest.mark.parametrize("wrong", [{"caption_dropout": -0.5}, {"tag_dropout": 2.0}, {"flip": "yes"}, {"repeats": -1}])
def test_values_out_of_range_are_refused(wrong):
    with pytest.raises(InputError):
        SubsetParams(**wrong)


def test_separators_and_a_weight(dataset):
    result, report = changed(
        dataset,
        folders="*cat*",
        which="training",
        keep_tokens_separator="|||",
        secondary_separator=";;;",
        loss_weight=0.5,
    )
    dog, cat, reg = result.subsets
    assert (cat.keep_tokens_separator, cat.secondary_separator, cat.loss_weight) == ("|||", ";;;", 0.5)
    assert (dog.loss_weight, reg.loss_weight) == (1.0, 1.0)
    assert "! keep_tokens_separator '|||' stands in no caption" in report
    assert "separator '|||', secondary separator ';;;', loss times 0.5" in report
    assert result.loss_weights(0.25).tolist() == [1.0, 0.5, 0.25, 0.25]
    assert dataset.loss_weights() is None
    assert options_of(dog) == options_of(replace(dog, loss_weight=1.0, keep_tokens_separator=""))
    assert options_of(cat) != options_of(replace(cat, loss_weight=1.0))
    back, _ = changed(result, keep_tokens_separator="-", secondary_separator="-", loss_weight=1.0)
    assert back.subsets == dataset.subsets


def test_a_mark_that_is_there_is_not_complained_about(dataset):
    other = dataset.with_tags({0: ("zwx ||| cat", "hat")}, note="marks")
    assert "stands in no caption" not in changed(other, keep_tokens_separator="|||")[1]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"loss_weight": -0.5}, "loss_weight is -0.5, allowed is 0 to 100"),
        ({"loss_weight": math.inf}, "loss_weight is inf"),
        ({"keep_tokens_separator": "a, b"}, "a comma parts all tags already"),
        ({"keep_tokens_separator": "||", "secondary_separator": "|||"}, "one holds the other"),
    ],
)
def test_marks_and_weights_that_make_no_sense(params, said):
    with pytest.raises(InputError, match=said):
        SubsetParams(**params)
