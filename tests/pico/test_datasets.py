"""Drawn data sets: kohya's layout, the same for the same seed, and no prompt's combination in any caption."""

import pytest

from lora_atelier.core.errors import AtelierError
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.pico import world
from lora_atelier.pico.datasets import concept_prompts, concept_tag, is_prompt_pair, write_concept_dataset

CONCEPTS = list(world.CONCEPTS)


@pytest.fixture(params=CONCEPTS)
def drawn(request, tmp_path):
    folder = tmp_path / request.param
    write_concept_dataset(folder, request.param, num_images=12, num_reg_images=24, seed=3)
    return request.param, folder


def captions(folder):
    return [path.read_text(encoding="utf-8").strip() for path in sorted(folder.rglob("*.txt"))]


def pair_of(text):
    tags = text.split(", ")
    colours = [tag for tag in tags if tag in world.COLOURS]
    backgrounds = [tag for tag in tags if tag in world.BACKGROUNDS]
    return (colours[0], backgrounds[0]) if colours and backgrounds else None


def test_layout_and_captions(drawn):
    concept, folder = drawn
    wanted = world.CONCEPTS[concept]
    dataset = open_folder(folder / "img", DatasetParams(), reg_folder=folder / "reg")
    assert len(dataset) == 36
    assert int(dataset.is_reg.sum()) == 24
    assert {subset.repeats for subset in dataset.subsets if not subset.is_reg} == {2}
    assert not dataset.skipped
    for text in captions(folder / "img"):
        assert text.split(", ")[0] == wanted.trigger
        assert not set(text.split(", ")) & set(wanted.traits)
    for text in captions(folder / "reg"):
        assert wanted.trigger not in text


def test_no_caption_holds_what_a_trigger_prompt_asks_for(drawn):
    concept, folder = drawn
    for seed in range(20):
        prompts = concept_prompts(concept, kind="trigger", num_prompts=32, seed=seed)
        assert len(set(prompts)) == 32
        asked = {pair_of(prompt) for prompt in prompts}
        assert None not in asked
        assert all(is_prompt_pair(*pair) for pair in asked)
        assert not asked & {pair_of(text) for text in captions(folder)}


def test_the_same_seed_draws_the_same(tmp_path):
    for name in ("a", "b"):
        write_concept_dataset(tmp_path / name, "kest", num_images=3, num_reg_images=3, seed=5)
    write_concept_dataset(tmp_path / "c", "kest", num_images=3, num_reg_images=3, seed=6)
    files = {
        name: [path.read_bytes() for path in sorted((tmp_path / name).rglob("*")) if path.is_file()] for name in "abc"
    }
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_prompts():
    mixed = concept_prompts("kest", kind="mixed", num_prompts=96, seed=1)
    assert sum("lumo kest" in prompt for prompt in mixed) == 32
    assert len(set(mixed)) == 96
    assert not any("lumo" in prompt for prompt in concept_prompts("kest", kind="other", num_prompts=100, seed=1))
    assert concept_tag("tavi") == "hatched"
    assert concept_tag("vard") == "cross, halo, spots"


@pytest.mark.parametrize(
    "call",
    [
        lambda folder: write_concept_dataset(folder, "kist", num_images=1, num_reg_images=0, seed=0),
        lambda folder: write_concept_dataset(folder, "kest", num_images=0, num_reg_images=0, seed=0),
        lambda folder: concept_prompts("kest", kind="triger", num_prompts=1, seed=0),
    ],
)
def test_wrong_names_are_refused(call, tmp_path):
    with pytest.raises(AtelierError):
        call(tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(("concept", "repeats"), [("kest", 7), ("tavi", 4)])
def test_beside_the_others_a_style_is_shown_half_as_often(tmp_path, concept, repeats):
    write_concept_dataset(tmp_path / "set", concept, num_images=3, num_reg_images=4, seed=1, concept_repeats=7)
    dataset = open_folder(tmp_path / "set" / "img", DatasetParams())
    assert {subset.folder.name: subset.repeats for subset in dataset.subsets} == {
        f"{repeats}_{concept}": repeats,
        "1_shapes": 1,
    }
    assert not dataset.is_reg.any()
    assert len(dataset) == 7
