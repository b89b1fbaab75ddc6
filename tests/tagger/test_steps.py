"""Each tag step alone: what it does, what it leaves, what it reports."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atelier_tests.helpers.captions import captions_of, dataset_of
from lora_atelier.dataset.columns import CATEGORIES, SOURCES, TagColumn
from lora_atelier.dataset.table import Subset
from lora_atelier.tagger.recipe import run_recipe
from lora_atelier.tagger.steps._core import classes_of, core_table
from lora_atelier.tagger.steps._spec import StepContext, steps


def run(text, *captions, files=None, count_tokens=None, **options):
    """Runs a recipe over captions; returns the captions and the report."""
    context = StepContext(read_file=(files or {}).__getitem__ if files else None, count_tokens=count_tokens)
    dataset, diff = run_recipe(dataset_of(captions, **options), text, context)
    return captions_of(dataset), diff


def rule(diff, part):
    return next(rule for rule in diff.rules if part in rule.rule)


def test_there_are_sixteen_steps():
    assert set(steps()) == {
        "alias", "blacklist", "budget", "category_order", "deduplicate", "exclusive", "implication", "min_frequency",
        "normalise", "order", "people_guard", "prune_traits", "quality", "random_drop", "rename", "trigger",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["implication", "prune_traits mode=character", "min_frequency min_images=9 use_parent=no", "random_drop: rest = 1",
     "budget limit=1", "exclusive: kind: fox girl, blue fox girl", 'order mode="by name"', "category_order"],
)  # fmt: skip
def test_no_rule_takes_or_moves_the_tags_kept_at_the_front(text):
    subsets = [Subset(folder=Path("a"), keep_tokens=1)]
    (after,), _ = run(text, "fox girl, blue fox girl, a", subsets=subsets)
    assert after.startswith("fox girl")


class TestNormalise:
    def test_writes_tags_one_way(self):
        after, diff = run("normalise", r"long_hair, kayoko \(blue archive\), ^_^", "\uff4c\uff4f\uff4e\uff47  hair")
        assert after == ["long hair, kayoko (blue archive), ^_^", "long hair"]
        assert rule(diff, "blanks for underscores").touched == 1
        assert rule(diff, "plain parentheses").touched == 1

    def test_underscores_can_be_kept_or_put_in(self):
        assert run("normalise underscores=leave", "long_hair, a b")[0] == ["long_hair, a b"]
        assert run('normalise underscores="from blanks"', "long hair, ^_^")[0] == ["long_hair, ^_^"]

    def test_escapes_once(self):
        text = "normalise parentheses=escaped"
        assert run(f"{text}\n{text}", "(o)_(o), a (b)")[0] == [r"\(o\)_\(o\), a \(b\)"]

    def test_spellings_that_become_one_are_merged(self):
        after, diff = run("normalise lower_case=yes", "Long_Hair, smile, long hair, _")
        assert after == ["long hair, smile"]
        assert rule(diff, "had twice").removed == 2


class TestAlias:
    def test_merges_and_keeps_the_first_place(self):
        after, diff = run("alias: kitty -> cat, kitten -> kitty", "a, kitten, b, cat", "kitty")
        assert after == ["a, cat, b", "cat"]
        assert rule(diff, "kitten -> cat").touched == 1

    def test_takes_the_spelling_of_the_data_set(self):
        assert run("alias: kitten -> big cat", "kitten", "big_cat")[0] == ["big_cat", "big_cat"]

    def test_site_csv_with_header_and_dead_rows(self):
        csv = "id,antecedent_name,consequent_name,created_at,status\n1,kitten,cat,x,active\n2,b,zzz,x,deleted\n"
        after, diff = run("alias file=a.csv", "kitten, b", files={"a.csv": csv})
        assert after == ["cat, b"]
        assert diff.unmatched == ()

    def test_a_file_is_summed_up_and_typed_entries_are_named(self):
        _, diff = run("alias file=a.csv: ponytial -> x", "ponytail", files={"a.csv": "p,q\nr,s\n"})
        assert diff.unmatched == (
            "alias: entry 'ponytial' matched 0 images, did you mean 'ponytail'?",
            "alias: 2 of 2 entries of the file matched 0 images",
        )

    def test_the_category_goes_along(self):
        dataset, _ = run_recipe(
            dataset_of(["kitten"], categories={"kitten": "species"}), "alias: kitten -> cat", StepContext()
        )
        assert dataset.tags.categories[dataset.tags.id_of("cat")] == CATEGORIES.index("species")


class TestRename:
    def test_is_kept_for_prompting(self):
        from lora_atelier.tagger.steps.rename import renamed

        dataset, _ = run_recipe(dataset_of(["aiming at viewer, aiming", "aiming"]), "rename", StepContext())
        assert captions_of(dataset) == ["aav, aiming", "aiming"]
        assert renamed(dataset) == {"aiming at viewer": "aav"}


class TestBlacklist:
    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("blacklist: Long_Hair", "red hair, meta thing, (a)"),
            ("blacklist: glob:*_hair", "meta thing, (a)"),
            ("blacklist match=glob: * hair, exact:(a)", "meta thing"),
            ("blacklist: regex:(red|long) .*", "meta thing, (a)"),
            ("blacklist match=regex: (red|long)_hair", "meta thing, (a)"),
            ("blacklist: category:meta", "long hair, red hair, (a)"),
            ("blacklist match=category: meta, general", "long hair, red hair, (a)"),
            ("blacklist: class:body", "meta thing, (a)"),
            ('blacklist match=glob except_for="red hair": *', "red hair"),
        ],
    )
    def test_modes(self, text, left):
        after, _ = run(text, "long hair, red hair, meta thing, (a)", categories={"meta thing": "meta"})
        assert after == [left]

    def test_reports_each_entry(self):
        _, diff = run("blacklist: a, glob:b*, nothing", "a, b1, b2", "a", "c")
        assert (rule(diff, "   a").touched, rule(diff, "   a").removed) == (2, 2)
        assert (rule(diff, "glob:b*").touched, rule(diff, "glob:b*").removed) == (1, 2)
        assert diff.captions_touched == 2
        assert diff.unmatched == ("blacklist: entry 'nothing' matched 0 images",)

    def test_a_category_that_nothing_has(self):
        _, diff = run("blacklist: category:meta", "a")
        assert "no tag of this data set has a category" in diff.unmatched[0]

    def test_entries_from_a_file(self):
        after, _ = run("blacklist file=x.txt", "a, b, c", files={"x.txt": "# list\na\r\nb, z\n"})
        assert after == ["c"]


class TestDeduplicate:
    def test_compares_in_normal_form(self):
        after, diff = run("deduplicate", "long_hair, a, Long hair", "long_hair")
        assert after == ["long_hair, a", "long_hair"]
        assert rule(diff, "came twice").removed == 1

    def test_one_spelling_for_all(self):
        assert run("deduplicate", "A b", "a b", "a b")[0] == ["a b"] * 3
        assert run("deduplicate one_spelling=no", "A b, a_b", "a b")[0] == ["A b", "a b"]


class TestImplication:
    def test_chains_of_pairs(self):
        after, diff = run(
            "implication last_words=no: lion -> felid, felid -> mammal", "mammal, lion", "mammal, felid", "mammal"
        )
        assert after == ["lion", "felid", "mammal"]
        assert rule(diff, "mammal").removed == 2

    def test_adds_what_is_implied(self):
        text = 'implication action="add general" last_words=no: lion -> felid, felid -> mammal'
        after, diff = run(f"{text}\n{text}", "lion, x", "felid, Mammal")
        assert after == ["lion, x, felid, Mammal", "felid, Mammal"]
        assert rule(diff, "felid, implied").added == 1

    def test_counts_of_people_stay(self):
        after, _ = run("implication: fox girl -> 1girl, fox girl -> solo", "fox girl, 1girl, solo, 2girls")
        assert after == ["fox girl, 1girl, solo, 2girls"]

    def test_the_general_tag_can_be_kept(self):
        assert run("implication keep=skirt", "skirt, plaid skirt, shirt, white shirt")[0] == [
            "skirt, plaid skirt, white shirt"
        ]


class TestExclusive:
    GROUP = "exclusive arbiter={}: size: small, medium, large"

    @pytest.mark.parametrize(
        ("arbiter", "left"),
        [
            ("score", "a, small"),
            ('"last of the group"', "a, large"),
            ('"first of the group"', "a, small"),
            ('"first in the caption"', "large, a"),
            ('"drop all"', "a"),
            ("classifier", "medium, a"),
        ],
    )
    def test_arbiters(self, arbiter, left):
        sources = [0, SOURCES.index("classifier"), 0, 0]
        after, diff = run(
            self.GROUP.format(arbiter), "large, medium, a, small", scores=[0.5, 0.6, 0.1, 0.9], sources=sources
        )
        assert set(after[0].split(", ")) == set(left.split(", "))
        assert rule(diff, "size").touched == 1

    @pytest.mark.parametrize("arbiter", ["score", '"last of the group"', '"first in the caption"', "classifier"])
    def test_one_that_is_kept_at_the_front_wins(self, arbiter):
        subsets = [Subset(folder=Path("a"), keep_tokens=1)]
        (after,), _ = run(self.GROUP.format(arbiter), "small, a, large", scores=[0.1, 0.5, 0.9], subsets=subsets)
        assert after == "small, a"

    def test_one_tag_is_no_contest(self):
        for arbiter in ("score", '"drop all"'):
            assert run(self.GROUP.format(arbiter), "large, a", "large, large")[0] == ["large, a", "large, large"]

    def test_several_people_are_left_alone(self):
        after, diff = run("exclusive: hair: short hair, long hair", "2girls, short hair, long hair")
        assert after == ["2girls, short hair, long hair"]
        assert "1 caption with two or more people" in rule(diff, "several people").note
        text = "exclusive several_people=treat: hair: short hair, long hair"
        assert run(text, "1girl, 1boy, short hair, long hair")[0] == ["1girl, 1boy, short hair"]

    def test_says_where_there_is_no_score(self):
        _, diff = run("exclusive: size: small, large", "large, small")
        assert "there was none for 1 choice" in rule(diff, "no score").note

    def test_a_group_that_matches_nothing_and_a_slip(self):
        _, diff = run(
            "exclusive:\n    hair: short hair, longhair\n    tails: one tail, two tails", "long hair, short hair"
        )
        assert "did you mean 'long hair'" in diff.unmatched[0]
        assert "group 'tails' matched 0 images" in diff.unmatched[1]


class TestPruneTraits:
    CAPTIONS = ["1girl, horns, long hair, hat", "1girl, horns, long hair", "1girl, horns, short hair", "1girl, horns"]

    def test_modes(self):
        def after(mode):
            return run(f"prune_traits mode={mode} core_share=0.5", *self.CAPTIONS)[0]

        assert after("none") == self.CAPTIONS
        assert after("minimal") == ["1girl, horns, hat", "1girl, horns", "1girl, horns", "1girl, horns"]
        assert after("character") == ["1girl, hat", "1girl", "1girl", "1girl"]
        assert after("character_core") == ["1girl, hat", "1girl", "1girl, short hair", "1girl"]

    def test_worn_things_go_only_when_asked_and_always_there(self):
        captions = ["1girl, hat, ribbon", "1girl, hat"]
        assert run("prune_traits core_share=0.9 worn=yes", *captions)[0] == ["1girl, ribbon", "1girl"]
        assert run("prune_traits core_share=0.9", *captions)[0] == captions

    def test_statistics_are_of_pictures_with_one_person(self):
        captions = ["1girl, horns", "1girl, horns", *["2girls, wings"] * 20]
        after, _ = run("prune_traits", *captions)
        assert after == ["1girl", "1girl", *["2girls, wings"] * 20]

    def test_classes_and_regularisation(self):
        subsets = [Subset(folder=Path("1_a"), concept="a"), Subset(folder=Path("1_b"), concept="b"),
                   Subset(folder=Path("reg"), is_reg=True)]  # fmt: skip
        captions = ["1girl, horns"] * 3 + ["1girl, horns"] + ["1girl, x"] * 9 + ["1girl, horns"]
        index = [0] * 3 + [1] * 10 + [2]
        after, _ = run("prune_traits", *captions, subsets=subsets, subset_index=index)
        assert after[:3] == ["1girl"] * 3
        assert after[3] == "1girl, horns"
        assert after[-1] == "1girl, horns"

    def test_flips(self):
        after, diff = run('prune_traits keep="long hair": glob:b*, nothing', "1girl, long hair, horns, blush")
        assert after == ["1girl, long hair"]
        assert len(diff.unmatched) == 1


class TestMinFrequency:
    def test_rare_tags_become_general_or_go(self):
        captions = ["shirt, white frilled shirt", "shirt", "frilled shirt, once"]
        after, diff = run("min_frequency", *captions)
        assert after == ["shirt", "shirt", "shirt"]
        assert rule(diff, "rare tags made general").added == 3
        assert rule(diff, "fewer than 2").removed == 1
        assert run("min_frequency use_parent=no", *captions)[0] == ["shirt", "shirt", ""]

    def test_triggers_people_and_the_list_stay(self):
        after, _ = run("min_frequency min_images=5 keep=rare", "zwx, 1girl, rare, x", categories={"zwx": "trigger"})
        assert after == ["zwx, 1girl, rare"]

    def test_counts_pictures_not_occurrences(self):
        assert run("min_frequency", "a, a, b", "b")[0] == ["b", "b"]


class TestBudget:
    def test_the_least_important_go_and_order_stays(self):
        caption = "simple background, white shirt, 1girl, thing, sitting"
        after = [run(f"budget unit=tags limit={limit}", caption)[0][0] for limit in (5, 4, 3, 2, 1)]
        assert after == [
            caption,
            "white shirt, 1girl, thing, sitting",
            "white shirt, 1girl, sitting",
            "white shirt, 1girl",
            "1girl",
        ]

    def test_tokens_are_counted_with_commas(self):
        def count(texts):
            return [len(text.split()) for text in texts]

        # one two , three , four = 2 + 1 + 1 + 1 + 1 = 6 tokens
        caption = "one two, three, four"
        assert run("budget limit=6", caption, count_tokens=count)[0] == [caption]
        after, diff = run("budget limit=5", caption, count_tokens=count)
        assert after == ["one two, three"]
        assert "tokens counted by" in rule(diff, "limit of 5").note

    def test_an_estimate_says_so(self):
        _, diff = run("budget", "a, b")
        assert "ESTIMATE" in rule(diff, "limit").note

    def test_kept_tokens_come_before_all(self):
        subsets = [Subset(folder=Path("a"), keep_tokens=2)]
        after, diff = run("budget unit=tags limit=1", "city, street, 1girl", subsets=subsets)
        assert after == ["city, street"]
        assert "do not fit" in diff.unmatched[0]

    def test_inside_a_class(self):
        text = 'budget unit=tags limit=2 inside={} classes="rest"'
        captions = ["a, b, c", "c", "c, b"]
        assert run(text.format("frequency"), *captions)[0][0] == "b, c"
        assert run(text.format("score"), "a, b, c", scores=[0.1, 0.8, 0.9])[0] == ["b, c"]


class TestCategoryOrder:
    CATEGORIES = {"lion": "species", "felid": "species", "by x": "artist", "blue": "general", "absurd": "meta"}

    def test_species_sorted_then_general(self):
        after, diff = run("category_order", "blue, lion, by x, felid, absurd, walking", categories=self.CATEGORIES)
        assert after == ["felid, lion, blue, walking"]
        assert rule(diff, "category artist").removed == 1

    def test_people_have_a_place(self):
        after, _ = run("category_order: people, general", "blue, 1girl, lion", categories=self.CATEGORIES)
        assert after == ["1girl, blue, lion"]

    def test_says_when_there_are_no_categories(self):
        assert "no tag of this data set has a category" in run("category_order", "a")[1].unmatched[0]


class TestQuality:
    def test_replaces_another_word_and_reads_a_file(self):
        after, diff = run(
            "quality file=s.csv place=front", "a, best_quality", "masterpiece, b", "c",
            files={"s.csv": "name,score\n000000.png,70\n000001.png,61\nx.png,3\n"},
        )  # fmt: skip
        assert after == ["masterpiece, a", "masterpiece, b", "c"]
        assert any("x.png" in sentence for sentence in diff.unmatched)

    def test_favourites(self):
        from dataclasses import replace

        dataset = replace(dataset_of(["a", "b"]), site_favourites=np.array([100, -1], dtype=np.int32))
        after, _ = run_recipe(dataset, "quality measure=favourites", StepContext())
        assert captions_of(after) == ["a, masterpiece", "b"]


class TestTrigger:
    def test_puts_first_moves_and_does_not_double(self):
        after, diff = run("trigger fixed=fanart at_end=end: zwx, girl b", "a", "a, ZWX, b, zwx", "")
        assert after == ["zwx, girl b, fanart, a, end", "zwx, girl b, fanart, a, b, end", "zwx, girl b, fanart, end"]
        assert rule(diff, "trigger zwx").note == "1 moved to the front"

    def test_folders_and_regularisation(self):
        subsets = [
            Subset(folder=Path("10_kayoko"), concept="kayoko"),
            Subset(folder=Path("OyamaMahiro")),
            Subset(folder=Path("reg"), is_reg=True),
        ]
        dataset = dataset_of(["a", "b", "c"], subsets=subsets, subset_index=[0, 1, 2])
        text = 'trigger keep_at_front=yes by_folder="oyama*: mahiro, onii-chan\\nnone: x"'
        after, diff = run_recipe(dataset, text, StepContext())
        assert captions_of(after) == ["kayoko, a", "mahiro, onii-chan, b", "c"]
        assert [subset.keep_tokens for subset in after.subsets] == [1, 2, 0]
        assert [subset.shuffle_captions for subset in after.subsets] == [True, True, False]
        assert "folder 'none' matched 0 images" in diff.unmatched[0]
        assert after.tags.categories[after.tags.id_of("mahiro")] == CATEGORIES.index("trigger")


class TestPeopleGuard:
    def test_contradictions(self):
        after, _ = run("people_guard", "1girl, 2girls, solo, x", "1girl, solo", "no humans, 1boy", "1girl, 1boy, solo")
        assert after == ["2girls, x", "1girl, solo", "1boy", "1girl, 1boy"]

    def test_missing_counts_are_told_or_put_in(self):
        _, diff = run("people_guard", "x", "1girl")
        assert "1 caption without; give" in rule(diff, "no count").note
        assert run("people_guard: 1girl, solo", "x", "2boys")[0] == ["1girl, solo, x", "2boys"]


class TestOrder:
    def test_modes(self):
        def after(mode, **options):
            return run(f"order mode={mode}", "b, 1girl, solo, a", **options)[0][0]

        assert after('"people first"') == "solo, 1girl, b, a"
        assert after('"by name"') == "1girl, a, b, solo"
        assert after('"by score"', scores=[0.1, 0.2, np.nan, 0.9]) == "a, 1girl, b, solo"
        assert after("keep") == "b, 1girl, solo, a"

    def test_front_and_kept_tokens(self):
        subsets = [Subset(folder=Path("a"), keep_tokens=1)]
        after, _ = run('order mode="by name": z, glob:y*', "trig, b, y2, a, z", subsets=subsets)
        assert after == ["trig, z, y2, a, b"]

    def test_shuffling_is_by_picture_and_seed(self):
        caption = ", ".join("abcdefgh")
        one, _ = run("order mode=shuffled seed=1", caption, caption)
        two, _ = run("order mode=shuffled seed=2", caption, caption)
        assert one[0] != one[1]
        assert one != two
        assert one == run("order mode=shuffled seed=1", caption, caption)[0]


class TestRandomDrop:
    def test_is_about_the_rate_and_the_same_again(self):
        captions = [f"zwx, a, b{number % 7}, 1girl" for number in range(2000)]
        text = "random_drop seed=3: glob:b* = 0.25, a = 1"
        after, diff = run(text, *captions, categories={"zwx": "trigger"})
        dropped = sum(caption.count("b") == 0 for caption in after)
        assert 400 < dropped < 600
        assert not any(" a" in caption for caption in after)
        assert after == run(text, *captions)[0]
        assert run("random_drop seed=4: glob:b* = 0.25, a = 1", *captions)[0] != after

    def test_other_pictures_and_order_change_nothing(self):
        one, _ = run("random_drop: rest = 0.5", "a, b, c, d, e, f")
        two, _ = run("random_drop: rest = 0.5", "f, e, d, c, b, a", "x, y, z")
        assert set(one[0].split(", ")) == set(two[0].split(", "))

    def test_the_list_stays(self):
        assert run("random_drop keep=a: rest = 1", "a, b")[0] == ["a"]


class TestCoreTable:
    def test_of_many_folders_takes_memory_by_the_tag_not_by_the_row(self):
        folders, each, vocabulary = 300, 40, 4000
        number = folders * each
        ids = np.random.default_rng(0).integers(0, vocabulary, number * 30).astype(np.int32)
        column = TagColumn(
            tuple(f"tag{n} hair" for n in range(vocabulary)), np.arange(0, 30 * number + 1, 30, dtype=np.int64), ids
        )
        dataset = dataset_of(["a"] * number).with_tag_column(column, note="many")
        subsets = tuple(Subset(folder=Path(f"/x/{n}"), concept=f"c{n}") for n in range(folders))
        dataset = replace(dataset, subsets=subsets, subset_index=(np.arange(number) % folders).astype(np.int32))
        classes = classes_of(dataset, "folder")
        tracemalloc.start()
        table = core_table(dataset, classes, core_share=0.35)
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(table) > 250_000
        assert kept < 60 * len(table)
        assert most < 200 * number * 30
        pairs = {(table.class_names[c], table[row].tag_id) for c in (0, 299) for row in table.class_rows(c)}
        expected = {
            (f"c{c}", tag)
            for c in (0, 299)
            for row in range(c, number, folders)
            for tag in ids[30 * row : 30 * row + 30]
        }
        assert pairs == expected

    def test_rows_are_what_counting_by_hand_gives(self):
        dataset = dataset_of(["1girl, horns, red eyes", "1girl, horns", "2girls, hat", "1girl, horns, smile"])
        table = core_table(dataset, classes_of(dataset, "whole data set"), core_share=0.35)
        assert [(row.tag, row.captions, round(row.share, 2), row.is_core) for row in table] == [
            ("1girl", 3, 1.0, True), ("horns", 3, 1.0, True), ("red eyes", 1, 0.33, False),
            ("smile", 1, 0.33, False), ("2girls", 1, 0.0, False), ("hat", 1, 0.0, False),
        ]  # fmt: skip
        assert table[-1].trait is not None
        assert table[-1].trait.kind == "worn"
        assert table[1:3] == [table[1], table[2]]
        with pytest.raises(IndexError):
            table[6]
