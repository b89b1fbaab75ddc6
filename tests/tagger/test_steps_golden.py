"""What the users' records say, word for word: the kayoko caption, faces, score cuts, substrings that must not match."""

import numpy as np
import pytest

from atelier_tests.helpers.captions import KAYOKO, captions_of, dataset_of, split
from atelier_tests.helpers.captions import KAYOKO_KEPT as KEPT
from lora_atelier.dataset.normal import KAOMOJI, normal
from lora_atelier.tagger.recipe import run_recipe
from lora_atelier.tagger.steps._classes import trait_of
from lora_atelier.tagger.steps._general import last_word_generals
from lora_atelier.tagger.steps._spec import StepContext

DELETE = (
    "white_hair, horns, black_hair, halo, red_eyes, ponytail, two-tone_hair, bangs, long_hair, hair_between_eyes, "
    "wings, sidelocks, blush, multicolored_hair, halo"
)
FACES = [
    "0_0", "(o)_(o)", "+_+", "+_-", "._.", "<o>_<o>", "<|>_<|>", "=_=", ">_<", "3_3", "6_9", ">_o", "@_@", "^_^",
    "o_o", "u_u", "x_x", "|_|", "||_||",
]  # fmt: skip
DAMAGE = [
    ("tail", "ponytail"), ("bow", "elbow gloves"), ("bra", "bracelet"), ("bra", "braid"), ("ring", "earrings"),
    ("cape", "capelet"), ("ear", "beard"), ("ass", "glasses"), ("ass", "grass"), ("hood", "hoodie"),
    ("skirt", "miniskirt"), ("bag", "backpack"), ("plaid", "plaid skirt"), ("hair", "hairband"), ("cat", "catgirl"),
]  # fmt: skip


def run(text, *captions, **options):
    dataset, diff = run_recipe(dataset_of(captions, **options), text, StepContext())
    return captions_of(dataset), diff


class TestKayoko:
    def test_the_list_takes_37_tags_to_25(self):
        assert len(split(KAYOKO)) == 37
        (after,), diff = run(f"blacklist: {DELETE}", KAYOKO)
        assert after == KEPT
        assert len(split(after)) == 25
        assert sum(rule.removed for rule in diff.rules[1:]) == 12

    def test_what_is_absent_is_named_and_what_comes_twice_is_not(self):
        _, diff = run(f"blacklist: {DELETE}", KAYOKO)
        assert len(diff.unmatched) == 2
        assert "'long_hair' matched 0 images" in diff.unmatched[0]
        assert "'wings' matched 0 images" in diff.unmatched[1]

    @pytest.mark.parametrize("mode", ["character", "character_core"])
    def test_the_trait_rule_differs_from_the_authors_list_by_two_flips(self, mode):
        (after,), _ = run(f"prune_traits mode={mode}", KAYOKO)
        removed = set(split(KAYOKO)) - set(split(after))
        by_hand = set(split(KAYOKO)) - set(split(KEPT))
        assert removed - by_hand == {"medium hair"}
        assert by_hand - removed == {"blush"}

    def test_the_two_flips_give_the_authors_caption(self):
        (after,), _ = run('prune_traits keep="medium hair": blush', KAYOKO)
        assert after == KEPT

    def test_traits_that_are_left_are_hinted(self):
        _, diff = run('prune_traits keep="medium hair": blush', KAYOKO)
        (hint,) = [rule for rule in diff.rules if "still" in rule.rule]
        assert "medium hair (100%)" in hint.note

    def test_escaped_parentheses_compare_equal(self):
        (after,), _ = run(r"blacklist: kayoko_\(blue_archive\)", KAYOKO)
        assert after == ", ".join(split(KAYOKO)[1:])


class TestFaces:
    def test_there_are_nineteen(self):
        assert set(FACES) == KAOMOJI
        assert len(FACES) == 19

    @pytest.mark.parametrize("face", FACES)
    def test_no_step_breaks_a_face(self, face):
        (after,), _ = run("normalise\ndeduplicate\norder", f"{face}, long_hair")
        assert after == f"{face}, long hair"
        assert normal(face) == face
        assert normal(normal(face)) == face

    def test_an_escaped_face_and_a_list_entry_are_the_same(self):
        (after,), _ = run(r"blacklist: \(o\)_\(o\)", "(o)_(o), smile")
        assert after == "smile"


class TestScores:
    def test_the_cuts_of_record_004(self):
        captions = [f"a, score:{score}" for score in (-3, 5, 6, 17, 18, 59, 60, 1000)]
        after, _ = run("quality", *captions)
        high, best, top = "a, high quality", "a, best quality", "a, masterpiece"
        assert after == ["a", "a", high, high, best, best, top, top]

    def test_percentiles_are_taken_inside_a_rating(self):
        captions = [f"a, rating:general, score:{score}" for score in range(10)]
        captions += [f"a, rating:explicit, score:{100 * score}" for score in range(10)]
        after, _ = run("quality mode=percentile", *captions)
        words = [caption.rpartition(", ")[2] for caption in after]
        assert words[:10] == words[10:]
        assert words[9] == "masterpiece"
        assert words[0] == "worst quality"

    def test_scores_of_the_site_metadata(self):
        from dataclasses import replace

        dataset = replace(dataset_of(["a", "a", "a"]), site_scores=np.array([60, np.nan, 7], dtype=np.float32))
        after, diff = run_recipe(dataset, "quality", StepContext())
        assert captions_of(after) == ["a, masterpiece", "a", "a, high quality"]
        assert "1 of 3 captions have no score" in diff.unmatched[0]


class TestSubstrings:
    @pytest.mark.parametrize(("part", "whole"), DAMAGE)
    def test_a_part_of_a_word_never_fires(self, part, whole):
        caption = f"{part}, {whole}"
        (after,), _ = run("implication", caption)
        assert after == caption
        (after,), _ = run(f"blacklist: {part}", caption)
        assert after == whole
        assert part not in last_word_generals(whole)

    @pytest.mark.parametrize("tag", [
        "elbow gloves", "bracelet", "glass", "grass", "capelet", "1girl", "2girls", "multiple girls", "solo", "drill",
        "looking at viewer", "mole on neck", "hat on head", "closed eyes", "parted lips", "hand in own hair",
        "fake tail", "rainbow",
    ])  # fmt: skip
    def test_what_is_no_trait_of_the_body(self, tag):
        trait = trait_of(tag)
        assert trait is None or trait.kind == "worn"

    @pytest.mark.parametrize(("tag", "kind"), [
        ("long hair", "body"), ("blue eyes", "body"), ("cat ears", "body"), ("fox tail", "body"), ("halo", "body"),
        ("horns", "body"), ("wings", "body"), ("ponytail", "body"), ("hair over one eye", "body"), ("fox girl", "body"),
        ("mole under eye", "body"), ("large breasts", "body"), ("hair ribbon", "worn"), ("baseball cap", "worn"),
        ("glasses", "worn"), ("earrings", "worn"), ("blue bow", "worn"),
    ])  # fmt: skip
    def test_body_and_worn_are_apart(self, tag, kind):
        assert trait_of(tag).kind == kind

    @pytest.mark.parametrize(("special", "general"), [
        ("white shirt", "shirt"), ("plaid skirt", "skirt"), ("white frilled shirt", "frilled shirt"),
        ("black footwear", "footwear"), ("holding sword", "sword"),
    ])  # fmt: skip
    def test_whole_last_words_fire(self, special, general):
        (after,), _ = run("implication", f"{general}, x, {special}")
        assert after == f"x, {special}"

    @pytest.mark.parametrize(("special", "general"), [
        ("no hat", "hat"), ("fake tail", "tail"), ("unworn hat", "hat"), ("hot dog", "dog"), ("mole on neck", "neck"),
        ("hair over one eye", "one eye"), ("stuffed bear", "bear"), ("sea lion", "lion"), ("multiple girls", "girls"),
    ])  # fmt: skip
    def test_curated_exceptions_do_not(self, special, general):
        (after,), _ = run("implication", f"{general}, {special}")
        assert after == f"{general}, {special}"
