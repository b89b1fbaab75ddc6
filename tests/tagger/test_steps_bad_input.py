"""Wrong lists, circles, patterns that would run for ever, bombs: each is refused in a sentence and loses nothing."""

import time

import pytest

from atelier_tests.helpers.captions import captions_of, dataset_of
from lora_atelier.core.errors import AtelierError, FormatError, InputError, UnknownNameError
from lora_atelier.tagger.recipe import run_recipe
from lora_atelier.tagger.steps._regex import safe_pattern
from lora_atelier.tagger.steps._spec import StepContext

FILES = {
    "one column.csv": "a,b\nc\n",
    "three columns.csv": "a,b,c\n",
    "quotes.csv": 'a,"b\n',
    "scores.csv": "name,score\n000000.png,many\n",
    "binary.csv": "a,\0b\n",
}
CASES = {
    "alias in a circle": (
        "alias: a -> b, b -> c, c -> a",
        InputError,
        r"the list of aliases runs in a circle: a -> b -> c -> a; take one of these lines out",
    ),
    "implication in a circle": (
        "implication: lion -> felid, felid -> mammal, mammal -> lion",
        InputError,
        r"the list of implications runs in a circle: lion -> felid -> mammal -> lion",
    ),
    "one tag becomes two": (
        "alias:\n    a -> b\n    a -> c",
        InputError,
        r"aliases, line 2: 'a' is to become 'c', but aliases, line 1 makes it 'b'; keep one of them",
    ),
    "half a pair": ("rename: a ->", FormatError, r"names, line 1: 'a ->' is not a pair; write it as  old tag"),
    "CSV with one column": (
        'alias file="one column.csv"',
        FormatError,
        r"file 'one column.csv', line 2: expected two columns, found 1",
    ),
    "CSV with three columns and no header": (
        'alias file="three columns.csv"',
        FormatError,
        r"line 1: expected two columns, found 3 \('a, b, c'\)",
    ),
    "CSV with open quotes": ('alias file="quotes.csv"', FormatError, r"line 1: .* is not CSV .*; close the quotes"),
    "CSV with a zero byte": ('alias file="binary.csv"', AtelierError, r"file 'binary.csv', line 1: "),
    "scores that are none": (
        'quality file="scores.csv"',
        FormatError,
        r"line 2: expected  file name,score\[,rating\], found '000000.png,many'",
    ),
    "regex that is none": ("blacklist: regex:(a", FormatError, r"is no regular expression \(missing \), unterminated"),
    "regex that runs for ever": (
        "blacklist: regex:(a+)+b",
        InputError,
        r"repeats a group that holds a repetition or '\|', which can take very long",
    ),
    "regex with too many open ends": ("blacklist: regex:.*a.*b.*c.*d", InputError, r"has 4 open repetitions"),
    "regex that looks around": ("blacklist: regex:(?=a)b", InputError, r"uses \(\?\.\.\.\), of which only"),
    "regex that refers back": (r"blacklist: regex:(a)\1", InputError, r"refers back to a group, which is not allowed"),
    "regex that is too long": ("blacklist: regex:" + "a" * 201, InputError, r"has 201 characters, allowed are 200"),
    "a caption for a tag": ("blacklist: " + "word " * 120, InputError, r"a tag has 599 characters, allowed are 500"),
    "unknown category": (
        "blacklist: category:spieces",
        UnknownNameError,
        r"unknown category of tags 'spieces'; did you mean 'species'",
    ),
    "unknown class": ("blacklist: class:outfits", UnknownNameError, r"'outfits'; did you mean 'outfit'"),
    "an entry that names nothing": ("blacklist: glob:", InputError, r"the entry 'glob:' names nothing"),
    "empty blacklist": ("blacklist", InputError, r"the blacklist is empty; write the tags to take out"),
    "too many patterns": (
        "blacklist match=glob: " + ", ".join(f"a{number}*" for number in range(501)),
        InputError,
        r"has 501 globs and regular expressions, allowed are 500",
    ),
    "group without a name": (
        "exclusive groups=\"short hair, long hair\"",
        FormatError,
        r"groups, line 1: 'short hair, long hair' has no name; write it as  name: tag, tag, tag",
    ),
    "group of one": ("exclusive: hair: long hair", FormatError, r"the group 'hair' needs at least two tags"),
    "a tag in two groups": (
        "exclusive:\n    a: x, y\n    b: y, z",
        InputError,
        r"the tag 'y' is in the groups 'a' and 'b'; leave it in one",
    ),
    "a group twice": ("exclusive:\n    a: x, y\n    a: v, z", InputError, r"the group 'a' comes twice"),
    "no rates": ('random_drop rates=""', InputError, r"there are no rates"),
    "a rate above one": ("random_drop: a = 1.5", InputError, r"1.5 is out of range, allowed is 0 to 1"),
    "a rate that is none": ("random_drop: a = often", FormatError, r"'a = often' is not  entry = number"),
    "cuts out of range": (
        'quality mode=percentile percentiles="best = 101"',
        InputError,
        r"101 is out of range, allowed is 0 to 100",
    ),
    "no trigger anywhere": ("trigger", InputError, r"there is no trigger: none is given and no folder's name"),
    "a folder rule that is none": ("trigger by_folder=abc: x", FormatError, r"'abc' is not  folder: trigger"),
    "a category twice": (
        "category_order drop=species",
        InputError,
        r"the category 'species' stands in the order and among those taken out",
    ),
    "a file where none can be opened": (
        "blacklist file=list.txt",
        InputError,
        r"the file 'list.txt' cannot be opened here; paste its lines",
    ),
}  # fmt: skip


def read(name):
    return FILES[name]


@pytest.mark.parametrize("name", CASES)
def test_is_refused_with_the_reason(name):
    text, kind, message = CASES[name]
    dataset = dataset_of(["a, b, x, y", "long hair"])
    context = StepContext(read_file=None if "cannot be opened" in CASES[name][2] else read)
    with pytest.raises(AtelierError, match=message) as caught:
        run_recipe(dataset, text, context)
    assert isinstance(caught.value, InputError)  # with the step's line in front
    assert isinstance(caught.value.__cause__, kind)
    assert captions_of(dataset) == ["a, b, x, y", "long hair"]


@pytest.mark.parametrize(
    "pattern",
    ["(a*)*", "(a|a)*b", "(a|ab)+", "((a?)b?)+", "a?" * 30 + "a" * 30, "(a|b)" * 30, "(?i)a", "(?P<x>a)(?P=x)",
     ".*.*.*.*", "(.{0,9}){9}", "a{3,}b{2,}.*.+"],
)  # fmt: skip
def test_patterns_that_may_run_away_are_refused(pattern):
    with pytest.raises(InputError):
        safe_pattern(pattern, "here")


@pytest.mark.parametrize(
    "pattern",
    [".* hair", "(red|blue|green) (eyes|hair)", r"\d+girls?", "[^ ]+ skirt", "a?b?c?", "(?:very )?long hair", r"\(.*\)",
     "x{2}", "[]]", "a{,3}", "[(*+?]", r"\\d", "v(?:er)?y .+"],
)  # fmt: skip
def test_ordinary_patterns_are_taken(pattern):
    assert safe_pattern(pattern, "here")


@pytest.mark.parametrize("pattern", [".*a.*b.*", "[ab]+[ab]+[ab]+", "(?:x|y).*(?:a|b)z.*"])
def test_what_is_taken_ends_in_time(pattern):
    worst = ["a" * 100, "ab" * 50, "y" * 100, "b" * 10000]
    compiled = safe_pattern(pattern, "here")
    start = time.process_time()
    for name in worst:
        if len(name) <= 100:
            compiled.fullmatch(name)
    assert time.process_time() - start < 2.0


def test_globs_do_not_run_away():
    start = time.process_time()
    run_recipe(dataset_of(["a" * 400, "b"]), "blacklist: glob:" + "*a" * 60 + "*b, b", StepContext())
    assert time.process_time() - start < 2.0


def test_a_bomb_in_a_caption_is_carried_through():
    bomb = ", ".join(f"tag {number}" for number in range(10_000)) + ", " + "x" * 200_000
    after, _ = run_recipe(dataset_of([bomb, "tag 1"]), "normalise\ndeduplicate\nbudget limit=75\norder", StepContext())
    assert 10 < len(after.tags.row(0)) < 75
    assert captions_of(after)[1] == "tag 1"


def test_a_long_chain_of_aliases_and_implications():
    number = 2_000
    chain = "\n".join(f"a{place},a{place + 1}" for place in range(number))
    context = StepContext(read_file={"chain.csv": chain}.__getitem__)
    start = time.process_time()
    after, _ = run_recipe(dataset_of([f"a{number - 5}"]), "alias file=chain.csv", context)
    assert captions_of(after) == [f"a{number}"]
    run_recipe(dataset_of(["a0, a5", f"a{number}"]), "implication file=chain.csv", context)
    assert time.process_time() - start < 10.0
    everything = ", ".join(f"a{place}" for place in range(number))
    with pytest.raises(InputError, match="makes more than 1000000 pairs; shorten its chains"):
        run_recipe(dataset_of([everything]), "implication file=chain.csv", context)


def test_broken_characters_in_captions_survive():
    dataset = dataset_of(["a\udcff b, c_d", "\u0000"])
    after, _ = run_recipe(dataset, "normalise\ndeduplicate\nimplication\norder\nrandom_drop: rest = 0", StepContext())
    assert after.tags.row(0) == ("a\udcff b", "c d")
