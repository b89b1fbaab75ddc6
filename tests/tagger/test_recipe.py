"""The text of a recipe: what it says, what it refuses and where, and that it reads back as it was written."""

import random

import pytest

from atelier_tests.helpers.captions import captions_of, dataset_of
from atelier_tests.helpers.sources import ROOT
from lora_atelier.core.errors import AtelierError, FormatError, InputError, UnknownNameError
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.tagger.recipe import RecipeStep, parse_recipe, recipe_text, run_recipe
from lora_atelier.tagger.steps._spec import StepContext, steps


def one(text):
    (part,) = parse_recipe(text)
    return part


class TestReading:
    def test_names_parameters_and_main_text(self):
        part = one('budget limit=150 unit=tags inside="order of the caption": 1girl, solo')
        assert part.step.name == "budget"
        assert (part.params.limit, part.params.unit, part.params.classes) == (150, "tags", "1girl, solo")

    def test_a_block(self):
        part = one("alias:\n    kitty -> cat\n\n    # not a pair\n      kitten -> cat\n\n")
        assert part.params.aliases == "kitty -> cat\n\n# not a pair\n  kitten -> cat"

    def test_comments_blank_lines_and_line_ends(self):
        parts = parse_recipe("\ufeff# first\r\n\r\nnormalise # why\r  # indented\rbudget limit=3 # tokens\n")
        assert [part.step.name for part in parts] == ["normalise", "budget"]
        assert [part.line for part in parts] == [3, 5]

    def test_a_hash_in_the_main_text_belongs_to_it(self):
        assert one("blacklist: #1, c# minor").params.entries == "#1, c# minor"

    @pytest.mark.parametrize(("word", "value"), [("yes", True), ("On", True), ("false", False), ("no", False)])
    def test_truth(self, word, value):
        assert one(f"normalise lower_case={word}").params.lower_case is value

    def test_names_in_any_case_and_with_hyphens(self):
        assert one("Prune-Traits core-share=0.5").params.core_share == 0.5

    def test_colons_inside_values(self):
        assert one("blacklist match=exact entries=category:meta").params.entries == "category:meta"
        assert one("random_drop seed=4: category:general = 0.5").params.rates == "category:general = 0.5"
        assert one("blacklist match=glob: :d, *:3").params.entries == ":d, *:3"

    def test_quotes(self):
        assert one(r'trigger fixed="a \"b\" \\ c\n"').params.fixed == 'a "b" \\ c\n'

    def test_an_empty_recipe_does_nothing(self):
        dataset, diff = run_recipe(dataset_of(["a"]), "# nothing\n", StepContext())
        assert (captions_of(dataset), diff.captions_touched) == (["a"], 0)


def test_the_recipe_of_the_manual_runs():
    text = (ROOT / "docs" / "tags.md").read_text(encoding="utf-8")
    recipe = text.partition("```text\n")[2].partition("```")[0]
    dataset, diff = run_recipe(
        dataset_of(["1girl, horns, skirt, plaid skirt, blush, long_hair"]), recipe, StepContext()
    )
    assert len(parse_recipe(recipe)) == 11
    assert captions_of(dataset) == ["kayoko (blue archive), 1girl"]  # the others are on one picture only
    assert diff.captions_touched == 1
    assert all(f"| `{name}` |" in text for name in steps())


WRONG = {
    "unknown step": ("normalize", UnknownNameError, r"line 1, column 1: unknown step .*; did you mean 'normalise'"),
    "unknown parameter": ("\nbudget limt=3", UnknownNameError, r"line 2, column 8: .* did you mean .limit."),
    "no value": ("budget limit", FormatError, r"line 1, column 8: 'limit' is followed by no '='"),
    "not a number": ("budget limit=many", InputError, r"line 1, column 14: limit is 'many', allowed is a whole number"),
    "number too large": ("budget limit=99999", InputError, r"line 1, column 14: limit is 99999, allowed is 1 to 10000"),
    "not finite": ("prune_traits core_share=nan", InputError, r"line 1, column 25: core_share is nan"),
    "unknown choice": ("order mode=alphabet", UnknownNameError, r"line 1, column 12: unknown value of mode 'alphabet'"),
    "not yes or no": ("normalise lower_case=maybe", InputError, r"column 22: lower_case is 'maybe', allowed is yes"),
    "twice": ("budget limit=3 limit=4", FormatError, r"line 1, column 16: 'limit' is given twice"),
    "main twice": ("blacklist entries=a: b", FormatError, r"'entries' is given twice"),
    "no main text": ("normalise: a", FormatError, r"takes no text after a colon"),
    "open quotes": ('trigger fixed="a', FormatError, r"line 1, column 15: the quotes are never closed"),
    "bad escape": (r'trigger fixed="\q"', FormatError, r"line 1, column 16: '\\q' is not known inside quotes"),
    "indented": ("normalise\n    order", FormatError, r"line 2, column 5: 'order' is indented"),
    "no name": ("= 3", FormatError, r"line 1, column 1: expected the name of a step, found '= 3'"),
    "stray value": ("budget 75", FormatError, r"line 1, column 8: expected a parameter, found '75'"),
    "too many steps": ("normalise\n" * 201, InputError, r"line 201: the recipe has more than 200 steps"),
    "a bomb": ("blacklist: " + "a," * 2_100_000, InputError, r"characters, allowed are 4000000"),
    "a broken character": ("trigger: \ud800", InputError, r"holds a character that no file can hold"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_read_is_placed_and_named(name):
    text, kind, message = WRONG[name]
    with pytest.raises(kind, match=message):
        parse_recipe(text)


def test_an_error_of_a_step_names_its_line():
    with pytest.raises(InputError, match=r"step 2 \(line 3\), blacklist: the blacklist is empty"):
        run_recipe(dataset_of(["a"]), "normalise\n\nblacklist", StepContext())


class TestRoundTrip:
    def test_defaults_are_left_out(self):
        text = "normalise\nbudget limit=150\ntrigger keep_at_front=yes: zwx\nalias:\n    a -> b\n    c -> d\n"
        assert recipe_text(parse_recipe(text)) == text

    @pytest.mark.parametrize("seed", range(40))
    def test_any_values_survive(self, seed):
        draw = random.Random(seed)
        recipe = tuple(self._random_step(draw) for _ in range(draw.randint(1, 6)))
        text = recipe_text(recipe)
        again = parse_recipe(text)
        assert [(part.step, part.params) for part in again] == [(part.step, part.params) for part in recipe], text
        assert recipe_text(again) == text

    def _random_step(self, draw):
        step = draw.choice(list(steps().values()))
        values = {}
        for parameter in step.params.parameters():
            if draw.random() < 0.5:
                continue
            if parameter.choices is not None:
                values[parameter.name] = draw.choice(parameter.choices)
            elif parameter.type is bool:
                values[parameter.name] = draw.random() < 0.5
            elif parameter.type is int:
                values[parameter.name] = draw.randint(int(parameter.minimum), int(parameter.maximum))
            elif parameter.type is float:
                values[parameter.name] = draw.uniform(parameter.minimum, parameter.maximum)
            else:
                letters = 'ab, _:=#"\\\n\r\t->(){}|*\u00e9\u732b\U0001f431  '
                values[parameter.name] = "".join(draw.choice(letters) for _ in range(draw.randint(0, 25)))
        return RecipeStep(step=step, params=step.params(**values))

    @pytest.mark.parametrize("seed", range(60))
    def test_rubbish_is_refused_in_a_sentence(self, seed):
        draw = random.Random(seed)
        words = [*steps(), "limit", "=", ":", '"', "\\", "\n", "    ", "#", "a -> b", "1girl", "\0", "\u2028", "mode=x"]
        text = " ".join(draw.choice(words) for _ in range(draw.randint(1, 12)))
        try:
            parse_recipe(text)
        except AtelierError as refusal:
            assert str(refusal).startswith("line ")  # noqa: PT017


class TestRunning:
    TEXT = "normalise\nblacklist: a, zzz\ntrigger: t\n"

    def test_the_report_has_every_step_and_rule(self):
        dataset, diff = run_recipe(dataset_of(["a, b_c", "d"]), self.TEXT, StepContext())
        assert captions_of(dataset) == ["t, b c", "t, d"]
        assert [rule.rule.strip() for rule in diff.rules] == [
            "1. normalise", "blanks for underscores", "2. blacklist", "a", "3. trigger", "trigger t",
        ]  # fmt: skip
        assert [rule.touched for rule in diff.rules] == [1, 1, 1, 1, 2, 2]
        assert diff.captions_touched == 2
        assert diff.unmatched == ("blacklist: entry 'zzz' matched 0 images",)
        text = diff.text()
        assert "recipe of 3 steps: 2 of 2 captions changed" in text
        assert "before: a, b_c" in text
        assert diff.to_json()["examples"][0]["after"] == "t, b c"

    def test_history_has_a_line_per_step(self):
        dataset, _ = run_recipe(dataset_of(["a, b_c"]), self.TEXT, StepContext())
        assert dataset.history == ("normalise", "blacklist entries='a, zzz'", "trigger trigger='t'")

    def test_nothing_changed_shares_the_columns(self):
        before = dataset_of(["a", "b"])
        after, diff = run_recipe(before, "normalise\ndeduplicate\norder", StepContext())
        assert after.tags is before.tags
        assert diff.captions_touched == 0

    def test_cancel_between_steps(self):
        class Cancelling(SilentProgress):
            def update(self, done, total, text=""):
                if done == 1:
                    raise Cancelled

        before = dataset_of(["a, b_c"])
        with pytest.raises(Cancelled):
            run_recipe(before, self.TEXT, StepContext(progress=Cancelling()))
        assert captions_of(before) == ["a, b_c"]
