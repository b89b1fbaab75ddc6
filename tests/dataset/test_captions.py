from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.seeds import derive
from lora_atelier.dataset.captions import TokenWarmup, caption_for, captions_vary, split_tags, training_caption
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Subset

TAGS = ("zwx", "1girl", "red hair", "blue eyes", "hat", "smile")


def options(**values) -> Subset:
    return Subset(folder=Path(), **values)


@pytest.mark.parametrize(
    ("caption", "tags"),
    [
        ("a, b,c", ["a", "b", "c"]),
        ("  a  b ,, c , ", ["a b", "c"]),
        ("", []),
        (",", []),
        ("one sentence. Another one", ["one sentence. Another one"]),
        ("a, a", ["a", "a"]),
        ("under_score, (series:name), ^_^", ["under_score", "(series:name)", "^_^"]),
        ("tab\there, \u3000wide\u3000space", ["tab here", "wide space"]),
    ],
)
def test_captions_are_split_at_commas_only(caption, tags):
    assert split_tags(caption) == tags


def test_without_options_the_caption_is_as_written():
    assert training_caption(TAGS, options(), seed=5) == "zwx, 1girl, red hair, blue eyes, hat, smile"
    assert training_caption((), options(shuffle_captions=True), seed=5) == ""


def test_shuffling_keeps_the_first_tags_and_loses_none():
    seen = Counter()
    for seed in range(600):
        tags = training_caption(TAGS, options(shuffle_captions=True, keep_tokens=2), seed=seed).split(", ")
        assert tags[:2] == ["zwx", "1girl"]
        assert sorted(tags) == sorted(TAGS)
        seen[tuple(tags[2:])] += 1
    assert len(seen) == 24
    assert max(seen.values()) < 3 * min(seen.values())


def test_more_kept_tags_than_there_are_is_all_of_them():
    assert training_caption(("b", "a"), options(shuffle_captions=True, keep_tokens=9), seed=1) == "b, a"


def test_the_same_seed_gives_the_same_text_on_every_machine():
    shuffled = options(shuffle_captions=True, keep_tokens=1, tag_dropout=0.3)
    assert training_caption(TAGS, shuffled, seed=3) == training_caption(TAGS, shuffled, seed=3)
    assert training_caption(TAGS, shuffled, seed=3) != training_caption(TAGS, shuffled, seed=4)
    assert training_caption(TAGS, options(shuffle_captions=True, keep_tokens=1), seed=2**62 + 11) == (
        "zwx, 1girl, hat, smile, red hair, blue eyes"
    )


def test_dropout_empties_the_given_share_of_captions():
    empty = sum(training_caption(TAGS, options(caption_dropout=0.2), seed=derive(0, n)) == "" for n in range(4000))
    assert 0.17 < empty / 4000 < 0.23
    assert training_caption(TAGS, options(caption_dropout=1.0), seed=1) == ""


def test_tag_dropout_never_touches_kept_tags():
    kept = 0
    for seed in range(2000):
        tags = training_caption(TAGS, options(keep_tokens=1, tag_dropout=0.4), seed=derive(1, seed)).split(", ")
        assert tags[0] == "zwx"
        assert tags == [tag for tag in TAGS if tag in tags]
        kept += len(tags) - 1
    assert 0.57 < kept / (2000 * 5) < 0.63
    assert training_caption(TAGS, options(keep_tokens=1, tag_dropout=1.0), seed=1) == "zwx"


def test_the_prefix_stays_in_front_and_is_not_doubled():
    with_prefix = options(caption_prefix="Zwx, style x", shuffle_captions=True, keep_tokens=1)
    for seed in range(50):
        tags = training_caption(TAGS, with_prefix, seed=seed).split(", ")
        assert tags[:3] == ["Zwx", "style x", "1girl"]
        assert "zwx" not in tags
        assert len(tags) == 7


def test_captions_of_a_data_set_use_the_subsets_options(tmp_path):
    make_folder(tmp_path, {"1.png": "zwx, a, b, c"})
    dataset = open_folder(tmp_path, DatasetParams(shuffle_captions=False))
    assert caption_for(dataset, 0, 7) == "zwx, a, b, c"
    assert not captions_vary(dataset)
    for varying in ({"shuffle_captions": True}, {"caption_dropout": 0.1}, {"tag_dropout": 0.1}):
        assert captions_vary(open_folder(tmp_path, DatasetParams(**{"shuffle_captions": False, **varying})))


MARKED = ("zwx", "1girl ||| hat", "a;;;b;;;c", "smile ||| masterpiece", "best")


def test_a_separator_says_what_stays_in_front_and_at_the_end():
    marked = options(shuffle_captions=True, keep_tokens=9, keep_tokens_separator="|||", secondary_separator=";;;")
    seen = {training_caption(MARKED, marked, seed=seed) for seed in range(200)}
    assert len(seen) == 6
    for caption in seen:
        tags = caption.split(", ")
        assert tags[:2] == ["zwx", "1girl"]
        assert tags[-2:] == ["masterpiece", "best"]
        assert "a, b, c" in caption
        assert sorted(tags[2:-2]) == ["a", "b", "c", "hat", "smile"]
    dropped = {training_caption(MARKED, replace(marked, tag_dropout=0.5), seed=seed) for seed in range(200)}
    assert all(("a" in caption.split(", ")) == ("c" in caption.split(", ")) for caption in dropped)
    assert "zwx, 1girl, masterpiece, best" in dropped


def test_without_the_mark_the_first_tags_stay():
    marked = options(shuffle_captions=True, keep_tokens=2, keep_tokens_separator="|||")
    assert all(training_caption(TAGS, marked, seed=seed).startswith("zwx, 1girl, ") for seed in range(50))
    one = options(keep_tokens_separator="|||")
    assert training_caption(("a|||b", "c"), one, seed=0) == "a, b, c"
    assert training_caption(("||| a", "b ||| ||| c"), one, seed=0) == "a, b, c"


@pytest.mark.parametrize(("step", "shown"), [(0, 1), (1, 1), (3, 2), (5, 3), (9, 4), (10, 5), (99, 5)])
def test_the_tags_shown_grow(step, shown):
    """kohya: floor(step x (tags - min) / steps) + min; 5 movable tags over 10 steps."""
    warmup = TokenWarmup(steps=10, min_tags=1)
    tags = training_caption(TAGS, options(keep_tokens=1), seed=0, warmup=warmup, step=step).split(", ")
    assert tags == list(TAGS[: 1 + shown])
    assert TokenWarmup(steps=10, min_tags=8).shown(5, 0) == 5
    assert TokenWarmup(steps=10, min_tags=0).shown(5, 0) == 0
