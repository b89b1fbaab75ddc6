"""The directions that docs/experiments.md says have shown; what was run already is not run again."""

import os
from pathlib import Path

import pytest
import torch

from atelier_tests.experiments import captions, crops, runner, sizes
from atelier_tests.experiments.world import World
from lora_atelier.pico import world as pico

FOLDER = Path(os.environ.get("ATELIER_EXPERIMENTS", runner.DEFAULT_FOLDER))


@pytest.fixture
def world(tmp_path):
    return World(tmp_path / "work")


def test_arms_of_captions_differ_in_nothing_but_captions(world):
    sets = {arm: captions.prepared(world, "kest", arm, 5) for arm in captions.ARMS}
    assert len({tuple(map(str, one.names)) for one in sets.values()}) == 1
    rows = range(captions.NUM_IMAGES)
    traits = {"ring", "hat", "eyes"}
    for row in rows:
        assert sets["none"].tags.row(row) == ("lumo kest",)
        full, pruned = sets["all"].tags.row(row), sets["pruned"].tags.row(row)
        assert full[0] == pruned[0] == "lumo kest"
        assert set(full) - set(pruned) == traits
        assert "lumo_kest" not in full[1:]
    for row in range(captions.NUM_IMAGES, len(sets["all"])):
        assert sets["none"].tags.row(row) == sets["all"].tags.row(row) == sets["pruned"].tags.row(row)


def test_one_size_is_the_true_one(world):
    several, one = sizes.prepared(world, "several", 5), sizes.prepared(world, "one", 5)
    words = set(sizes.WORDS.values())
    assert all(len(words.intersection(one.tags.row(row))) == 1 for row in range(len(one)))
    both = sum(words.issubset(several.tags.row(row)) for row in range(len(several)))
    assert abs(both / len(several) - sizes.CONTRADICTED) < 0.15
    assert [tuple(sorted(words.intersection(one.tags.row(row)))) for row in range(4)] == [
        (sizes.WORDS["small"],), (sizes.WORDS["large"],), (sizes.WORDS["small"],), (sizes.WORDS["large"],)
    ]  # fmt: skip


def test_person_crops_are_regularisation_twins(world):
    heads, both = crops.prepared(world, "heads", 5), crops.prepared(world, "heads and persons", 5)
    count = len(heads)
    assert count >= 0.9 * crops.NUM_IMAGES
    assert len(both) == 2 * count
    assert both.is_reg.tolist() == [False] * count + [True] * count
    assert [both.names[row] for row in range(count)] == [both.names[count + row] for row in range(count)]
    plain = crops.prepared(world, "heads and plain persons", 5)
    assert plain.is_reg.tolist() == both.is_reg.tolist()
    trigger = pico.CONCEPTS[crops.CONCEPT].trigger
    for row in range(2 * count):
        assert set(both.tags.row(row)) - set(plain.tags.row(row)) == (set() if row < count else {trigger})
    framed = crops.prepared(world, "framed heads and persons", 5)
    for row in range(2 * count):
        assert set(framed.tags.row(row)) - set(both.tags.row(row)) == ({crops.FRAMING} if row < count else set())
        assert framed.tags.row(row)[0] == trigger


def test_lines_are_kept_and_a_cut_one_is_not_taken(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text('{"protocol": 1, "experiment": "b", "arm": "one", "seed": 0, "figures": {"x": 1.0}}\n{"protoc')
    lines = list(runner.read_lines(path))
    assert [line["arm"] for line in lines] == ["one"]
    assert runner.means(lines, "b", "x") == {"one": 1.0}
    assert "100%" in runner.table(lines)
    runner._append(path, {**lines[0], "arm": "several"})
    assert [line["arm"] for line in runner.read_lines(path)] == ["one", "several"]


SHOWN = (
    ("a-character", "all_traits", "all", "pruned", (0, 1, 2)),
    ("a-character", "traits", "none", "all", (0, 1, 2)),
    ("a-style", "both", "none", "all", (0, 1, 2)),
    ("a-style", "both", "none", "pruned", (0, 1, 2)),
    ("b-known", "size_right", "several", "one", (0, 1, 2)),
)
"""(experiment, figure, lower arm, higher arm, seeds that were run in both), as docs/experiments.md reports it."""


@pytest.mark.slow
@pytest.mark.parametrize(("experiment", "figure", "lower", "higher", "seeds"), SHOWN)
def test_direction_shows_with_every_seed(experiment, figure, lower, higher, seeds):
    torch.set_num_threads(1)
    lines = runner.run_missing([experiment], seeds, folder=FOLDER, arms=(lower, higher))
    found = runner.by_seed(lines, experiment, figure)
    assert set(found) == set(seeds)
    for seed, arms in found.items():
        assert arms[lower] < arms[higher], f"seed {seed}: {arms}"
