"""The experiments on the trainer's settings: what their arms differ in, how verdicts are reached, what has shown."""

import json
import os
from pathlib import Path

import pytest
import torch

from atelier_tests.experiments import formats, keeping, learning, resolution, runner, settings, verdicts, words
from atelier_tests.experiments.world import World
from lora_atelier.pico.tokenizer import build, tokenize

FOLDER = Path(os.environ.get("ATELIER_EXPERIMENTS", runner.DEFAULT_FOLDER))
LINES = Path(__file__).resolve().parents[2] / "docs" / "experiments.jsonl"


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "work")


def small(monkeypatch):
    """Few pictures, as only their captions are looked at."""
    for module in (learning, keeping, words):
        monkeypatch.setattr(module, "NUM_IMAGES", 3)
        monkeypatch.setattr(module, "NUM_OTHERS", 4)


def config(world, recipe, dataset):
    return world.job(dataset, recipe, name="x", seed=0, steps=learning.STEPS).config()


def differing(one, other, path=""):
    if not isinstance(one, dict) or not isinstance(other, dict):
        return set() if one == other else {path}
    return set().union(
        *(differing(one.get(key), other.get(key), f"{path}/{key}".strip("/")) for key in {*one, *other}), set()
    )


def test_every_arm_changes_what_it_says_and_nothing_else(world, monkeypatch):
    small(monkeypatch)
    dataset = learning.pictures_of(world, 5)
    common = config(world, learning.COMMON, dataset)
    rates = {"optimizer/params/lr_unet", "optimizer/params/lr_text_encoder"}
    expected = {
        "common": set(),
        "low": {"network/params/alpha"},
        "lr up": {"network/params/alpha", *rates},
        "cosine": {"optimizer/params/schedule"},
        "text rate halved": {"optimizer/params/lr_text_encoder"},
        "OUT03-06": {"blocks"},
        "text encoder": {"blocks"},
        "IN04-07 OUT03-06": {"blocks"},
        "OUT03-06 longer": {"blocks"},
    }
    found = {name: differing(config(world, recipe, dataset), common) for name, recipe in settings.RECIPES.items()}
    assert {name: found[name] for name in expected} == expected
    assert all(place.startswith("optimizer") for name in set(found) - set(expected) for place in found[name])
    assert set(found) == {name for arms in settings.ARMS.values() for name in arms.values()}
    up, low = (settings.RECIPES[name].optimizer_choice().params for name in ("lr up", "low"))
    assert (up.lr_unet / low.lr_unet, up.lr_text_encoder / low.lr_text_encoder) == (4.0, 4.0)
    assert settings.RECIPES["common"].alpha / settings.RECIPES["low"].alpha == 4.0


def test_the_middle_resolution_is_nine_eighths(world):
    sides = list(resolution.ARMS.values())
    assert sides[1] / sides[0] == 9 / 8
    assert sides == [512 // 8, 576 // 8, 640 // 8]


def test_the_pack_warns_of_pure_half_precision_and_of_nothing_else(world, monkeypatch):
    small(monkeypatch)
    arms = {**formats.ARMS, **formats.START_ARMS}
    told = {arm for arm, recipe in arms.items() if formats.warned(world, recipe, 5)}
    assert told == {"pure bf16", "pure fp16"}


def test_regularisation_is_all_that_is_added(world, monkeypatch):
    small(monkeypatch)
    alone, both = keeping.prepared(world, "without", 5), keeping.prepared(world, "with", 5)
    count = len(alone)
    assert not alone.is_reg.any()
    assert both.is_reg.tolist() == [False] * count + [True] * (len(both) - count)
    assert [both.tags.row(row) for row in range(count)] == [alone.tags.row(row) for row in range(count)]
    assert all("lumo kest" not in both.tags.row(row) for row in range(count, len(both)))


def test_triggers_differ_in_one_word_of_as_many_tokens(world, monkeypatch):
    small(monkeypatch)
    shared, apart = (words.prepared(world, arm, 5) for arm in words.ARMS)
    assert list(map(str, shared.names)) == list(map(str, apart.names))
    changed = {"lumo vard": "giza vard"}
    for row in range(len(shared)):
        assert tuple(changed.get(tag, tag) for tag in shared.tags.row(row)) == apart.tags.row(row)
    assert {shared.tags.row(row)[0] for row in range(len(shared))} >= {"lumo kest", "lumo vard"}
    vocabulary = build()
    ours, theirs = tokenize("lumo", vocabulary), tokenize("giza", vocabulary)
    assert len(ours) == len(theirs)
    assert not {*ours, *tokenize("kest", vocabulary)} & {*theirs, *tokenize("vard", vocabulary)}


def test_figures_of_a_curve():
    points = {step: learning.Learned(traits=step / 240, recall=step / 480) for step in learning.SEEN_AT}
    figures = learning.figures_of(points)
    assert figures["speed"] == pytest.approx((0.25 + 0.5 + 0.75 + 1.0) / 4)
    assert figures["traits_end"] == pytest.approx(0.875)
    assert figures["recall_end"] == pytest.approx(0.4375)
    assert figures["traits_120"] == 0.5


def test_a_kept_curve_is_not_trained_again(world):
    kept = world.folder / "curves" / "common-5.json"
    learning.keep(kept, {"speed": 0.5})
    assert learning.curve(world, learning.COMMON, "common", 5) == {"speed": 0.5}
    assert settings.run(world, "constant", 5, experiment="e") == {"speed": 0.5}


def lines_of(experiment, figure, **arms):
    return [
        {"experiment": experiment, "arm": arm.replace("_", " "), "seed": seed, "figures": {figure: value}}
        for arm, values in arms.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("constant", "cosine", "word"),
    [
        ((0.6, 0.7, 0.8), (0.5, 0.6, 0.7), "reproduced"),
        ((0.6, 0.7, 0.8), (0.5, 0.6, 0.81), "weak"),
        ((0.6, 0.7, 0.8), (0.7, 0.8, 0.7), "not reproduced"),
        ((0.6,), (0.5,), "not run"),
    ],
)
def test_verdicts(constant, cosine, word):
    lines = lines_of("e", "speed", constant=constant, cosine=cosine)
    assert verdicts.judge(verdicts.CLAIMS["cosine"], lines).word == word
    assert verdicts.judge(verdicts.CLAIMS["text rate"], lines).word == "not run"


def test_alike_is_nearer_to_each_other_than_to_the_start():
    def word(low, alpha, lr):
        lines = lines_of("d", "speed", low=[low] * 3, alpha_up=[alpha] * 3, lr_up=[lr] * 3)
        return verdicts.judge(verdicts.CLAIMS["alpha and lr"], lines).word

    assert word(0.2, 0.7, 0.8) == "reproduced"
    assert word(0.2, 0.4, 0.8) == "not reproduced"
    assert word(0.5, 0.4, 0.45) == "not reproduced"


def test_every_claim_is_about_arms_that_exist():
    for claim in verdicts.CLAIMS.values():
        assert set(claim.arms) <= set(runner.EXPERIMENTS[claim.experiment].arms)


SHOWN = (
    "alpha and lr",
    "cosine",
    "text rate",
    "kept",
    "false",
    "shared word",
    "D-Adaptation Lion",
    "Prodigy",
    "between",
    "mixed",
    "pure fp16",
)
"""Claims that docs/experiments.md calls reproduced."""


def test_the_committed_lines_say_what_the_page_says():
    lines = [json.loads(text) for text in LINES.read_text(encoding="utf-8").splitlines()]
    words_of = {name: verdicts.judge(claim, lines).word for name, claim in verdicts.CLAIMS.items()}
    assert {name for name, word in words_of.items() if word == "reproduced"} == set(SHOWN)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHOWN)
def test_claim_shows_with_every_seed(name):
    torch.set_num_threads(1)
    claim = verdicts.CLAIMS[name]
    lines = runner.run_missing([claim.experiment], folder=FOLDER, arms=claim.arms)
    assert verdicts.judge(claim, lines).word == "reproduced"
