"""What holds for every step on random captions: twice is once, order stays, nothing is lost that no rule names."""

import random

import numpy as np
import pytest

from atelier_tests.helpers.captions import captions_of, dataset_of, split
from lora_atelier.dataset.normal import normal
from lora_atelier.tagger.recipe import parse_recipe, run_steps
from lora_atelier.tagger.steps._spec import StepContext

RECIPES = {
    "alias": "alias: kitty -> cat, kitten -> kitty",
    "blacklist": "blacklist: long hair, glob:*shirt",
    "budget": "budget limit=4 unit=tags",
    "budget tokens": "budget limit=9",
    "category_order": "category_order",
    "deduplicate": "deduplicate",
    "deduplicate each": "deduplicate one_spelling=no",
    "exclusive": "exclusive",
    "exclusive score": "exclusive arbiter=score several_people=treat: hair: short hair, long hair, very long hair",
    "implication": "implication: kitty -> cat, cat -> animal",
    "implication add": 'implication action="add general": kitty -> cat, cat -> animal',
    "min_frequency": "min_frequency min_images=4",
    "normalise": "normalise lower_case=yes",
    "normalise escaped": 'normalise underscores="from blanks" parentheses=escaped',
    "order": "order: smile",
    "order score": 'order mode="by score"',
    "order shuffled": "order mode=shuffled seed=5",
    "people_guard": "people_guard: 1girl, solo",
    "prune_traits": "prune_traits core_share=0.1",
    "quality": "quality",
    "quality percentile": "quality mode=percentile",
    "random_drop": "random_drop: rest = 0.3",
    "rename": "rename: smile -> grinning face",
    "trigger": "trigger fixed=fanart at_end=last: zwx, b",
}
PUTS_IN = ("alias", "implication add", "quality", "quality percentile", "rename", "trigger", "people_guard",
           "min_frequency", "normalise", "normalise escaped", "deduplicate")  # fmt: skip
COUNTED_IN = ("implication add", "quality", "quality percentile", "people_guard")
"""Steps that put tags in beside the others; what is renamed takes the place of what it was."""
SORTS = ("category_order", "order", "order score", "order shuffled", "trigger")
WORDS = [
    "1girl", "2girls", "1boy", "solo", "no humans", "long hair", "long_hair", "Long Hair", "very long hair",
    "short hair", "horns", "shirt", "white shirt", "white frilled shirt", "kitty", "kitten", "cat", "animal", "smile",
    "^_^", "(o)_(o)", r"kayoko \(blue archive\)", "kayoko (blue archive)", "simple background", "blue sky", "score:7",
    "score:61", "rating:general", "zwx", "fanart", "masterpiece", "looking at viewer", "looking back", "hat", "a b c",
]  # fmt: skip
SEEDS = range(5)
CATEGORIES = {"cat": "species", "kitty": "species", "fanart": "meta", "kayoko (blue archive)": "character"}


def world(seed):
    draw = random.Random(seed)
    captions = [", ".join(draw.choice(WORDS) for _ in range(draw.randint(0, 12))) for _ in range(draw.randint(1, 25))]
    number = sum(len(split(caption)) for caption in captions)
    scores = [draw.choice([np.nan, draw.random()]) for _ in range(number)]
    return dataset_of(captions, categories=CATEGORIES, scores=scores)


def run(dataset, text):
    return run_steps(dataset, parse_recipe(text), StepContext())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RECIPES)
def test_twice_is_once(name, seed):
    once, _ = run(world(seed), RECIPES[name])
    twice, diff = run(once, RECIPES[name])
    assert captions_of(twice) == captions_of(once)
    assert diff.captions_touched == 0


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name in RECIPES if name not in (*PUTS_IN, *SORTS)])
def test_what_stays_keeps_its_order(name, seed):
    before = world(seed)
    after, _ = run(before, RECIPES[name])
    for row in range(len(before)):
        rest = iter(before.tags.row(row))
        assert all(any(tag == other for other in rest) for tag in after.tags.row(row))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [name for name in RECIPES if name != "trigger"])  # it has a test of its own
def test_nothing_is_lost_or_found_that_no_rule_counts(name, seed):
    before = world(seed)
    after, diff = run(before, RECIPES[name])
    rules = [rule for rule in diff.rules if rule.rule.startswith("   ")]
    lost = sum(rule.removed for rule in rules)
    put_in = sum(rule.added for rule in rules) if name in COUNTED_IN else 0
    assert len(after.tags.ids) == len(before.tags.ids) - lost + put_in
    if name in SORTS and not lost:
        for row in range(len(before)):
            assert sorted(before.tags.row(row)) == sorted(after.tags.row(row))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_trigger_step_loses_no_tag(seed):
    before = world(seed)
    after, _ = run(before, RECIPES["trigger"])
    for row in range(len(before)):
        old, new = ({normal(tag) for tag in dataset.tags.row(row)} for dataset in (before, after))
        assert old | {"zwx", "b", "fanart", "last"} == new


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RECIPES)
def test_scores_stay_with_their_tags(name, seed):
    before = world(seed)
    after, _ = run(before, RECIPES[name])
    assert after.tags.scores is not None
    assert len(after.tags.scores) == len(after.tags.ids)
    known = {round(float(score), 4) for score in before.tags.scores if not np.isnan(score)}
    assert {round(float(score), 4) for score in after.tags.scores if not np.isnan(score)} <= known


@pytest.mark.parametrize("name", RECIPES)
def test_the_input_is_not_changed_and_a_line_of_history_is_added(name):
    before = world(0)
    captions, ids = captions_of(before), before.tags.ids.copy()
    after, _ = run(before, RECIPES[name])
    assert captions_of(before) == captions
    assert np.array_equal(before.tags.ids, ids)
    assert len(after.history) == len(before.history) + 1
    assert run(before, RECIPES[name])[0].fingerprint() == after.fingerprint()


@pytest.mark.parametrize("name", RECIPES)
def test_tiny_data_sets(name):
    for captions in ([], [""], ["", ""], ["a"]):
        after, diff = run(dataset_of(captions), RECIPES[name])
        assert len(after) == len(captions)
        assert diff.text()
