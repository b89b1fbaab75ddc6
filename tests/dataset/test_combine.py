"""Combining data sets, and marking pictures for regularisation."""

import numpy as np
import pytest

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.combine import MarkParams, combine, mark_regularisation, only_used_subsets
from lora_atelier.dataset.scan import DatasetParams, open_folder


@pytest.fixture
def sets(tmp_path):
    made = []
    for name, repeats in (("cat", 4), ("dog", 2), ("animals", 1)):
        folder = tmp_path / name
        captions = {f"{number}.png": f"{name}, {'sketch' if number else 'photo'}" for number in range(3)}
        make_folder(folder / f"{repeats}_{name}", captions)
        made.append(open_folder(folder, DatasetParams()))
    return made


def test_concepts_and_regularisation(sets):
    result = combine(sets[:2], sets[2:])
    dataset = result.dataset
    assert [subset.concept for subset in dataset.subsets] == ["cat", "dog", "animals"]
    assert dataset.is_reg.tolist() == [False] * 6 + [True] * 3
    assert not sets[2].is_reg.any()
    assert dataset.caption(4) == "dog, sketch"
    assert "Combined 3 data sets." in result.report
    assert "4_cat: 3 pictures x 4, 12 per epoch" in result.report
    assert "1_animals: 3 pictures x 1, regularisation (weight 1), 18 per epoch" in result.report
    assert dataset.history[-1] == "combined 3 data sets: 9 pictures"
    assert "opened 'dog'" in dataset.history


def test_what_occurs_twice_is_said(sets):
    assert "! 3 pictures more than once, such as 0.png" in combine([sets[0], sets[0], sets[1]]).report
    report = combine([sets[0]], [sets[0]]).report
    assert "! 3 pictures both for training and for regularisation, such as 0.png" in report
    crops = np.tile(np.array([0, 0, 32, 32], dtype=np.int32), (3, 1))
    assert "!" not in combine([sets[0], sets[0].with_crops(crops, note="crop")]).report


def test_nothing_to_combine_or_train(sets):
    with pytest.raises(InputError, match="there is no data set to combine"):
        combine([])
    with pytest.raises(InputError, match="every picture is for regularisation, so there is nothing to train"):
        combine([], sets)


def test_marking_all_and_some(sets):
    everything = mark_regularisation(sets[0], MarkParams(prior_weight=0.4))
    assert everything.dataset.is_reg.all()
    assert everything.dataset.subsets[0].prior_weight == 0.4
    assert "Every picture is now for regularisation: connect" in everything.report
    some = mark_regularisation(sets[0], MarkParams(query="sketch", prior_weight=0.5))
    assert some.dataset.is_reg.tolist() == [False, True, True]
    assert [(subset.is_reg, subset.prior_weight) for subset in some.dataset.subsets] == [(False, 1.0), (True, 0.5)]
    assert some.dataset.history[-1] == "marked 2 pictures for regularisation, weight 0.5"
    assert some.dataset.fingerprint() != sets[0].fingerprint()
    back = mark_regularisation(some.dataset, MarkParams(is_reg=False))
    assert not back.dataset.is_reg.any()
    assert {subset.prior_weight for subset in back.dataset.subsets} == {1.0}


def test_a_query_that_marks_nothing_is_refused(sets):
    with pytest.raises(InputError, match="the query 'painting' is true of no picture, so none can be marked"):
        mark_regularisation(sets[0], MarkParams(query="painting"))
    with pytest.raises(InputError, match="prior_weight is -1.0, allowed is 0 to 10"):
        MarkParams(prior_weight=-1.0)


def test_folders_without_pictures_go(sets):
    both = combine(sets[:2]).dataset
    rest = only_used_subsets(both.take([4, 5], note="some"))
    assert [subset.concept for subset in rest.subsets] == ["dog"]
    assert rest.caption(0) == "dog, sketch"
    assert only_used_subsets(both) is both
