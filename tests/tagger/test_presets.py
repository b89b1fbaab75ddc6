"""Concept presets: what they propose, why, how flips change it, and that the recipe does what the table says."""

from pathlib import Path

import pytest

from atelier_tests.helpers.captions import KAYOKO, KAYOKO_KEPT, captions_of, dataset_of, split
from lora_atelier.core.errors import AtelierError
from lora_atelier.dataset.table import Subset
from lora_atelier.tagger.presets._spec import preset_names
from lora_atelier.tagger.proposal import PresetParams, propose
from lora_atelier.tagger.recipe import parse_recipe, run_recipe
from lora_atelier.tagger.statistics import StatisticsParams, statistics
from lora_atelier.tagger.steps._spec import StepContext

SCENE = "1girl, hatsune miku, vocaloid, long hair, gun, assault rifle, rifle, holding gun, city, cow, highres"
CATEGORIES = {"hatsune miku": "character", "vocaloid": "copyright"}
NAMES = set(CATEGORIES)


def proposal(captions, **values):
    return propose(dataset_of(captions, categories=CATEGORIES), PresetParams(**values))


def test_the_five_presets_of_record_004():
    assert set(preset_names()) == {"background", "character", "composition", "object", "style"}


class TestKayoko:
    def test_the_proposal_is_the_authors_list_but_for_two_flips(self):
        removed = set(proposal([KAYOKO]).removed())
        by_hand = set(split(KAYOKO)) - set(split(KAYOKO_KEPT))
        assert removed - by_hand == {"medium hair"}
        assert by_hand - removed == {"blush"}

    def test_the_flips_make_it_the_authors_list(self):
        found = proposal([KAYOKO], keep="medium_hair", remove="blush")
        assert set(found.removed()) == set(split(KAYOKO)) - set(split(KAYOKO_KEPT))
        after, _ = run_recipe(dataset_of([KAYOKO]), found.recipe_text(), StepContext())
        assert captions_of(after) == [KAYOKO_KEPT]

    def test_the_table_says_why(self):
        text = proposal([KAYOKO], remove="blush, nothing").text()
        assert "- white hair" in text
        assert "trait (body)" in text
        assert "removed by hand" in text
        assert "entry 'nothing' matched 0 images" in text


@pytest.mark.parametrize(
    ("preset", "trigger", "removed"),
    [
        ("character", "zwx", {"long hair", "highres"}),
        ("composition", "", {"hatsune miku", "vocaloid", "highres"}),
        ("style", "", set()),
        (
            "object",
            "zwx rifle",
            {"hatsune miku", "vocaloid", "highres", "gun", "assault rifle", "rifle", "holding gun"},
        ),
        ("object", "assault rifle", NAMES | {"highres", "gun", "rifle", "holding gun"}),
        ("background", "zwx town", {"highres"}),
    ],
)
def test_what_each_would_take_out(preset, trigger, removed):
    found = proposal([SCENE], preset=preset, trigger=trigger)
    assert set(found.removed()) == removed
    after, _ = run_recipe(dataset_of([SCENE], categories=CATEGORIES), found.recipe_text(), StepContext())
    own = {trigger} if trigger else set()
    assert set(split(captions_of(after)[0])) == set(split(SCENE)) - removed | own
    if trigger:
        assert captions_of(after)[0].startswith(trigger)
        assert after.subsets[0].keep_tokens == (0 if preset == "style" else 1)


def test_persons_and_animals_stay_in_a_background_whatever_the_list():
    found = proposal([SCENE], preset="background", remove="glob:*")
    assert {"1girl", "cow", "hatsune miku"}.isdisjoint(found.removed())


def test_regularisation_keeps_its_tags():
    subsets = [Subset(folder=Path("1_a"), concept="a"), Subset(folder=Path("reg"), is_reg=True)]
    dataset = dataset_of(["1girl, horns", "1girl, horns"], subsets=subsets, subset_index=[0, 1])
    after, _ = run_recipe(dataset, propose(dataset, PresetParams(trigger="a")).recipe_text(), StepContext())
    assert captions_of(after) == ["a, 1girl", "1girl, horns"]


def test_entries_of_every_kind_survive_the_recipe():
    found = proposal([SCENE], preset="composition", remove="regex:(gun|city)\nglob:*rifle, cow", keep="class:body")
    assert {"gun", "city", "assault rifle", "rifle", "cow"} <= set(found.removed())
    again = parse_recipe(found.recipe_text())
    assert [part.params for part in again] == [part.params for part in found.recipe]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "object"}, "needs the object's name as trigger"),
        ({"preset": "charakter"}, "did you mean 'character'"),
        ({"remove": "regex:("}, "is no regular expression"),
        ({"core_share": 2.0}, "allowed is 0 to 1"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(AtelierError, match=message):
        proposal([SCENE], **values)


class TestStatistics:
    CAPTIONS = ["zwx, 1girl, horns, white shirt, sitting", "zwx, 1girl, horns, red hat, indoors"]

    def found(self, **values):
        return statistics(dataset_of(self.CAPTIONS), StatisticsParams(**values))

    def test_the_table(self):
        lines = self.found().report.splitlines()
        horns = next(line for line in lines if "horns" in line).split()
        assert horns[1:3] == ["2", "100%"]
        assert "core trait (body): goes into the trigger" in " ".join(horns)
        assert any("count of people" in line for line in lines)

    def test_wildcards_and_document(self):
        found = self.found(core_share=0.9)
        assert found.wildcards == "zwx, 1girl, horns"
        assert "clothes and things worn: red hat (1), white shirt (1)" in found.document

    def test_renamed_tags_are_for_prompting(self):
        dataset, _ = run_recipe(dataset_of(["aiming at viewer"]), "rename", StepContext())
        assert "- aav = aiming at viewer" in statistics(dataset, StatisticsParams()).document

    def test_classes_by_first_tag(self):
        dataset = dataset_of(["a, x", "a", "b", ""])
        report = statistics(dataset, StatisticsParams(class_by="first tag")).report
        assert "3 classes" in report
        assert "(no caption): 1 picture, 0 tags" in report

    def test_an_empty_data_set(self):
        assert statistics(dataset_of([]), StatisticsParams()).wildcards == ""
