"""The query language, the filter and the stage split."""

import itertools
import random
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.dataset.columns import CATEGORIES, TagColumn, TextColumn
from lora_atelier.dataset.filter import FilterParams, SplitParams, filter_dataset, split_stages
from lora_atelier.dataset.filter_query import MAX_CHARS, Flag, Glob, Number, Tag, parse_query, terms_of
from lora_atelier.dataset.filter_rows import Facts, filter_rows
from lora_atelier.dataset.table import RATINGS, Dataset, Subset

CAPTIONS = {
    "a/1.png": "1girl, solo, Blue_Hair, simple background",
    "a/2.png": "1girl, red hair, outdoors",
    "a/3.png": "1boy, solo, kayoko (blue archive), ^_^",
    "b/4.png": "2girls, blue hair, sketch, black and white",
    "b/5.png": "",
    "r/6.png": "no humans, simple background",
}
SIZES = [(512, 512), (1024, 768), (300, 600), (2048, 2048), (64, 64), (512, 1024)]


def table(captions=CAPTIONS, sizes=SIZES, scores=None):
    root = Path("/data/set")
    folders = sorted({name.partition("/")[0] for name in captions})
    tags = TagColumn.from_rows([[tag for tag in text.split(", ") if tag] for text in captions.values()])
    if scores is not None:
        tags = TagColumn(tags.vocabulary, tags.offsets, tags.ids, scores=np.array(scores, dtype=np.float16))
    count = len(captions)
    return Dataset(
        root=root,
        subsets=tuple(
            Subset(folder=root / f"10_{name}", concept=f"class {name}", repeats=10, is_reg=name == "r")
            for name in folders
        ),
        names=TextColumn.from_strings(name.partition("/")[2] for name in captions),
        width_px=np.array([size[0] for size in sizes], dtype=np.int32),
        height_px=np.array([size[1] for size in sizes], dtype=np.int32),
        size_bytes=np.arange(count, dtype=np.int64) * 1000,
        mtime_ns=np.zeros(count, dtype=np.int64),
        subset_index=np.array([folders.index(name.partition("/")[0]) for name in captions], dtype=np.int32),
        caption_source=np.ones(count, dtype=np.uint8),
        tags=tags,
        layout="made for a test",
    )


def found(query, dataset=None, **facts):
    dataset = dataset or table()
    answer = filter_rows(dataset, parse_query(query), Facts(**facts))
    return [dataset.names[row].partition(".")[0] for row in np.flatnonzero(answer.rows)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("1girl", "12"),
        ("blue hair", "14"),
        ("BLUE_hair and not sketch", "1"),
        ("solo or outdoors", "123"),
        ("not solo and not outdoors", "456"),
        ("1girl or solo and 1boy", "123"),
        ("(1girl or solo) and 1boy", "3"),
        ("not (1girl or 1boy)", "456"),
        ("not not solo", "13"),
        ("!solo & !outdoors | 1boy", "3456"),
        ("solo and Not 1boy", "1"),
        ("*girl*", "124"),
        ("?girl", "12"),
        ("* hair", "124"),
        ('"kayoko (blue archive)"', "3"),
        ("kayoko \\(blue archive\\)", "3"),
        ("kayoko*", "3"),
        ('"^_^"', "3"),
        ("^_^", "3"),
        ('"black and white"', "4"),
        ('"*girl*"', ""),
        ("hair", ""),
        ("width >= 512", "1246"),
        ("width > 512", "24"),
        ("height<768 and height>100", "13"),
        ("pixels >= 1m", "4"),
        ("pixels = 0.5m..1m", "26"),
        ("width = 512", "16"),
        ("width == 300..600", "136"),
        ("width != 512", "2345"),
        ("aspect > 1.2", "2"),
        ("aspect <= .5", "36"),
        ("shorter < 100", "5"),
        ("longer >= 1k and longer <= 1.1k", "26"),
        ("tags = 0", "5"),
        ("tags >= 4", "134"),
        ("repeats = 10", "123456"),
        ("bytes >= 4k", "56"),
        ("weight = 1", "123456"),
        ("tier = upscaled", "35"),
        ("tier = ok", "126"),
        ("tier >= OK", "1246"),
        ("tier = ideal", "4"),
        ("is:reg", "6"),
        ("not is:reg and is:captioned", "1234"),
        ("is:portrait", "36"),
        ("is:landscape or is:square", "1245"),
        ("is:masked or is:cropped", ""),
        ("folder:10_b", "45"),
        ("folder:set/10_?", "123456"),
        ("folder:*b or folder:10_r", "456"),
        ("name:*.PNG", "123456"),
        ("name:3.*", "3"),
        ("concept:class a", "123"),
        ("concept:*b", "45"),
        ("category:character >= 0", "123456"),
        ("site_score >= 0 or favourites >= 0", ""),
        ("rating:safe", ""),
    ],
)
def test_what_a_query_finds(query, expected):
    assert "".join(found(query)) == expected


def test_categories_scores_lists_and_duplicates():
    scores = [0.9, 0.8, 0.3, 0.5, 0.9, 0.7, np.nan, 0.9, 0.9, 0.9, 0.9, 0.9, 0.6, 0.5, 0.4, 0.3, 0.2]
    dataset = table(scores=scores[: len(table().tags.ids)])
    assert found("score:blue hair >= 0.4", dataset) == ["4"]
    assert found("score:* hair < 0.5", dataset) == ["1"]
    assert found("score:outdoors >= 0", dataset) == []  # it has no score
    categories = np.zeros(len(dataset.tags.vocabulary), dtype=np.uint8)
    categories[dataset.tags.vocabulary.index("kayoko (blue archive)")] = CATEGORIES.index("character")
    tags = TagColumn(dataset.tags.vocabulary, dataset.tags.offsets, dataset.tags.ids, categories=categories)
    assert found("category:character >= 1", dataset.with_tag_column(tags, note="x")) == ["3"]
    assert found("is:listed", names=("1", "2.PNG", "10_b/4.png", "b/5.png")) == ["1", "2", "4"]
    assert found("duplicates >= 1", groups=lambda: [(0, 3), (5, 2, 1)]) == ["1", "2", "3", "4", "6"]
    assert found("is:duplicate", groups=lambda: [(0, 3), (5, 2, 1)]) == ["3", "4", "6"]


def test_what_the_site_says():
    dataset = replace(
        table(),
        site_scores=np.array([5, 20, np.nan, -3, 60, 0], dtype=np.float32),
        site_favourites=np.array([1, -1, 7, 0, 2, 9], dtype=np.int32),
        site_ratings=np.array([RATINGS.index("safe"), 0, RATINGS.index("explicit"), 0, 0, 0], dtype=np.uint8),
    )
    assert found("site_score >= 18", dataset) == ["2", "5"]
    assert found("site_score < 18", dataset) == ["1", "4", "6"]
    assert found("favourites <= 2", dataset) == ["1", "4", "5"]
    assert found("rating:s* or rating:explicit", dataset) == ["1", "3"]


def test_groups_are_asked_once_and_only_where_needed():
    asked = []

    def groups():
        asked.append(1)
        return [(0, 1)]

    found("1girl", groups=groups)
    assert not asked
    found("is:duplicate and duplicates >= 1", groups=groups)
    assert asked == [1]


def test_the_tree_of_a_query():
    terms = terms_of(parse_query('long hair and (score:"a b" < .5 or is:REG) or folder:10_*'))
    assert terms[0] == Tag(text="long hair", is_glob=False, column=1)
    assert isinstance(terms[1], Number)
    assert (terms[1].name, terms[1].high, terms[1].high_open, terms[1].column) == ("a b", 0.5, True, 16)
    assert terms[2:] == (Flag(name="reg", column=36), Glob(field="folder", pattern="10_*", column=47))


def test_random_queries_agree_with_python():
    rng = random.Random(5)
    dataset = table()
    rows = [set(dataset.tags.row(row)) for row in range(len(dataset))]
    tags = [tag for tag in dataset.tags.vocabulary if not any(mark in tag for mark in ("(", "and", "_", "no ", "blue"))]

    def make(depth):
        kind = rng.choice(["tag", "not", "and", "or"]) if depth else "tag"
        if kind == "tag":
            tag = rng.choice(tags)
            return tag, lambda has: tag in has
        first, check = make(depth - 1)
        if kind == "not":
            return f"not ({first})", lambda has: not check(has)
        second, check_too = make(depth - 1)
        if kind == "and":
            return f"({first}) and ({second})", lambda has: check(has) and check_too(has)
        return f"(({first}) or {second})", lambda has: check(has) or check_too(has)

    for _ in range(200):
        query, check = make(4)
        assert filter_rows(dataset, parse_query(query)).rows.tolist() == [check(has) for has in rows], query


BAD = {
    "": "the query is empty",
    "  \n": "the query is empty",
    "1girl and": "column 10: a tag or a condition is missing before the end",
    "and 1girl": "column 1: a tag or a condition is missing before 'and'",
    "1girl or or solo": "column 10: a tag or a condition is missing before 'or'",
    "(1girl and solo": "column 1: ')' is missing for this '('",
    "1girl) and solo": "column 6: ')' has no '(' before it",
    "kayoko (blue archive)": "column 8: 'and' or 'or' is missing before '('; a tag that holds parentheses",
    'hood "solo"': "column 6: 'and' or 'or' is missing before 'solo'",
    "1girl, solo": "column 6: ',' joins nothing; write 'and' or 'or'",
    '"1girl': "column 1: the closing '\"' is missing",
    'solo and ""': "column 10: there is nothing between the quotes",
    "widht >= 512": "column 1: unknown number 'widht'; did you mean 'width'",
    "blue hair >= 0.4": "column 1: unknown number 'blue hair'",
    '"blue hair" >= 0.4': 'for its score write score:"blue hair" >= 0.5',
    "width >= wide": "column 10: 'wide' is not a number; write 512",
    "width >=": "column 9: a number is missing after '>='",
    "width = 900..100": "column 9: the range '900..100' ends before it begins; write 100..900",
    "width > 1..2": "column 9: a range goes with '=' and '!=' only",
    "score:blue hair": "column 1: a comparison is missing after score:blue hair",
    "score: >= 0.4": "column 1: what follows 'score:' is missing",
    "solo and is:regg": "column 10: unknown flag after 'is:' 'regg'; did you mean 'reg'",
    "floder:10_*": "column 1: 'floder:' is not known; did you mean 'folder:'",
    "tier = best": "column 8: unknown tier 'best'",
    "score:blue hair > 0.4": "column 1: no tag of this data set has a score",
    "category:persons >= 1": "column 1: unknown category 'persons'",
    "is:listed": "column 1: is:listed needs the list of names",
    "1girl and is:duplicate": "column 11: duplicates are not known here",
    "(" * 60 + "solo" + ")" * 60: "more than 50 parentheses",
    "not " * 60 + "solo": "more than 50 parentheses",
    "a" * (MAX_CHARS + 1): "characters, allowed are",
}


@pytest.mark.parametrize("query", BAD, ids=range(len(BAD)))
def test_what_is_no_query_says_where(query):
    with pytest.raises(InputError) as refusal:
        found(query)
    assert BAD[query] in str(refusal.value)


def test_garbage_is_refused_and_never_crashes():
    rng = random.Random(1)
    pieces = [
        "1girl",
        "(",
        ")",
        "and",
        "or",
        "not",
        ">=",
        "<",
        '"',
        "width",
        "512",
        ":",
        "score:",
        "is:",
        ",",
        "\\",
        "!",
    ]
    refused = 0
    for _ in range(3000):
        text = " ".join(rng.choice(pieces) for _ in range(rng.randint(1, 9)))
        try:
            found(text)
        except InputError:
            refused += 1
    assert 0 < refused < 3000


def test_filter_gives_both_parts_and_a_report():
    dataset = table()
    parts = filter_dataset(dataset, FilterParams(query="1girl and not blue hiar"))
    assert [len(parts.first), len(parts.second)] == [2, 4]
    assert sorted(itertools.chain(parts.first.names, parts.second.names)) == sorted(dataset.names)
    assert "kept 2 of 6 pictures, rejected 4" in parts.report
    assert "1girl: 2 pictures" in parts.report
    assert "entry 'blue hiar' matched 0 images, did you mean 'blue hair'?" in parts.report
    assert "Kept: 1.png, 2.png" in parts.report
    assert parts.first.history[-1] == "filter '1girl and not blue hiar': kept 2 of 6 pictures"
    assert filter_dataset(dataset, FilterParams(query="1girl", reg_pictures="keep")).first.is_reg.sum() == 1


def test_nothing_rejected_leaves_an_empty_part():
    parts = filter_dataset(table(), FilterParams(query="width > 0"))
    assert [len(parts.first), len(parts.second)] == [6, 0]
    assert parts.second.fingerprint()


def test_a_filter_that_keeps_nothing_to_train_is_refused():
    with pytest.raises(
        InputError, match="keeps no training picture .*entry 'blue hiar' matched 0 images, did you mean"
    ):
        filter_dataset(table(), FilterParams(query="blue hiar"))
    with pytest.raises(InputError, match="keeps no training picture"):
        filter_dataset(table(), FilterParams(query="is:reg"))


def test_stages():
    parts = split_stages(table(), SplitParams(first_query="simple background", drop_query="sketch"))
    assert list(parts.first.names) == ["1.png", "6.png"]
    assert list(parts.second.names) == ["2.png", "3.png", "5.png", "6.png"]
    assert "2 pictures first, 4 pictures after, 1 of them regularisation pictures in both; 1 left out" in parts.report
    assert parts.second.history[-1] == "stage 2 of 2 (simple background): 4 pictures"
    split = split_stages(table(), SplitParams(first_query="simple background", reg_pictures="split"))
    assert list(split.second.names) == ["2.png", "3.png", "4.png", "5.png"]


def test_a_stage_without_pictures_is_refused():
    with pytest.raises(InputError, match="no training picture for the first stage"):
        split_stages(table(), SplitParams(first_query="no humans"))
    with pytest.raises(InputError, match="no training picture for the second stage"):
        split_stages(table(), SplitParams(first_query="tags >= 0"))


@pytest.mark.slow
def test_every_predicate_takes_well_under_a_second_on_200_000_pictures():
    count, words = 200_000, 47_000
    rng = np.random.default_rng(0)
    ids = np.minimum(rng.zipf(1.3, size=count * 30) - 1, words - 1).astype(np.int32)
    tags = TagColumn(
        tuple(f"tag number {number}" for number in range(words)),
        np.arange(count + 1, dtype=np.int64) * 30,
        ids,
        scores=rng.random(count * 30).astype(np.float16),
    )
    dataset = replace(
        table({f"a/{number:06d}.png": "" for number in range(2)}, [(64, 64)] * 2),
        names=TextColumn.from_strings(f"sub{number % 7}/{number:06d}.png" for number in range(count)),
        width_px=rng.integers(256, 3000, count).astype(np.int32),
        height_px=rng.integers(256, 3000, count).astype(np.int32),
        size_bytes=np.ones(count, dtype=np.int64),
        subset_index=np.zeros(count, dtype=np.int32),
        tags=tags,
    )
    facts = Facts(names=tuple(f"{number:06d}" for number in range(0, count, 2)))
    for query in (
        *("tag number 5", "tag_number_*", "score:tag number 3 >= 0.4", "width >= 1k and aspect < 1.5", "tags > 10"),
        *("folder:sub3", "name:*99.png", "concept:class a", "is:listed", "category:artist >= 1", "no such tag"),
    ):
        started = time.process_time()
        filter_rows(dataset, parse_query(query), facts)
        assert time.process_time() - started < 1.0, query
