"""Operations on interned tags: against the same thing done with lists, and what is shared and carried along."""

import random

import numpy as np
import pytest

from lora_atelier.dataset.columns import CATEGORIES, SOURCES, TagColumn, TagColumnBuilder, TextColumn, new_digest

ROWS = [["zwx", "red", "cat"], [], ["red", "red", "sky"], ["cat"]]


def lists(column):
    return [list(column.row(row)) for row in range(len(column))]


def scored(rows=ROWS):
    column = TagColumn.from_rows(rows)
    scores = (np.arange(len(column.ids)) / 10).astype(np.float16)
    return column.with_scores(scores, np.arange(len(column.ids), dtype=np.uint8) % len(SOURCES))


def random_rows(seed, rows=300, words=40):
    draw = random.Random(seed)
    return [[f"t{draw.randrange(words)}" for _ in range(draw.randrange(12))] for _ in range(rows)]


def test_keep_drops_occurrences_and_carries_scores():
    column = scored()
    kept = column.keep(column.ids != column.id_of("red"))
    assert lists(kept) == [["zwx", "cat"], [], ["sky"], ["cat"]]
    assert np.round(kept.scores.astype(float), 1).tolist() == [0.0, 0.2, 0.5, 0.6]
    assert kept.sources.tolist() == [0, 2, 5, 0]
    assert kept.vocabulary is column.vocabulary
    assert column.keep(np.ones(7, dtype=bool)) is column


def test_translated_merges_drops_and_leaves_the_first_of_doubles():
    column = scored().with_categories({"red": "general", "zwx": "trigger"})
    table = np.array([0, 1, 1, -1], dtype=np.int32)  # zwx, red and cat to one, sky goes
    merged = column.translated(table, ("zwx", "thing"))
    assert lists(merged) == [["zwx", "thing"], [], ["thing"], ["thing"]]
    assert [CATEGORIES[number] for number in merged.categories] == ["trigger", "general"]
    assert np.round(merged.scores.astype(float), 1).tolist() == [0.0, 0.1, 0.3, 0.6]


def test_a_mere_renaming_shares_the_ids():
    column = scored()
    table = np.arange(len(column.vocabulary), dtype=np.int32)
    renamed = column.translated(table, tuple(tag.upper() for tag in column.vocabulary))
    assert renamed.ids is column.ids
    assert renamed.scores is column.scores
    assert renamed.row(0) == ("ZWX", "RED", "CAT")
    assert renamed.id_of("RED") == 1


@pytest.mark.parametrize("seed", range(5))
def test_operations_equal_those_on_lists(seed):
    rows = random_rows(seed)
    column = TagColumn.from_rows(rows)
    assert lists(column.deduplicated()) == [list(dict.fromkeys(row)) for row in rows]
    words = sorted({f"w{int(tag[1:]) // 3}" for tag in column.vocabulary})
    new = {tag: f"w{int(tag[1:]) // 3}" for tag in column.vocabulary if tag != "t7"}
    table = np.array([words.index(new[tag]) if tag in new else -1 for tag in column.vocabulary], dtype=np.int32)
    expected = [list(dict.fromkeys(new[tag] for tag in row if tag in new)) for row in rows]
    assert lists(column.translated(table, tuple(words))) == expected
    ranks = np.array([int(tag[1:]) for tag in column.vocabulary])
    order = np.lexsort((ranks[column.ids], column.row_of_occurrence))
    assert lists(column.reordered(order)) == [sorted(row, key=lambda tag: int(tag[1:])) for row in rows]
    front = column.deduplicated().with_front(column.id_of("t5"))
    assert lists(front) == [["t5", *(tag for tag in dict.fromkeys(row) if tag != "t5")] for row in rows]
    assert column.rows_with(column.id_of("t3")).tolist() == [n for n, row in enumerate(rows) if "t3" in row]
    assert column.lengths.tolist() == [len(row) for row in rows]
    assert column.row_of_occurrence.tolist() == [n for n, row in enumerate(rows) for _ in row]


def test_tags_are_put_at_front_and_back_with_their_source():
    column = scored().with_vocabulary(["new"], category=9)
    added = column.with_tags(
        np.array([3, 1]),
        np.full(2, column.id_of("new"), dtype=np.int32),
        scores=np.array([0.5, 0.25], dtype=np.float16),
    )
    assert lists(added) == [["zwx", "red", "cat"], ["new"], ["red", "red", "sky"], ["cat", "new"]]
    assert added.scores[3] == 0.25
    assert added.scores[-1] == 0.5
    fronted = TagColumn.from_rows(ROWS).with_vocabulary(["new"])
    fronted = fronted.with_front(np.array([-1, 4, 4, -1], dtype=np.int32), source=SOURCES.index("rule"))
    assert lists(fronted) == [["zwx", "red", "cat"], ["new"], ["new", "red", "red", "sky"], ["cat"]]
    assert fronted.sources.tolist() == [0, 0, 0, 4, 4, 0, 0, 0, 0]
    assert fronted.scores is None


def test_replaced_rows_keep_scores_of_tags_that_stay():
    changed = scored().replaced({0: ["cat", "blue"], 1: ["zwx"]}, source=5)
    assert lists(changed) == [["cat", "blue"], ["zwx"], ["red", "red", "sky"], ["cat"]]
    scores = changed.scores.astype(float)
    assert round(scores[0], 1) == 0.2
    assert np.isnan(scores[1:3]).all()
    assert changed.sources.tolist() == [2, 5, 5, 3, 4, 5, 0]


def test_joined_columns_carry_what_one_of_them_has():
    plain = TagColumn.from_rows([["cat", "dog"]])
    both = plain.joined(scored().with_categories({"cat": "species"}))
    assert lists(both) == [["cat", "dog"], *ROWS]
    assert np.isnan(both.scores[:2].astype(float)).all()
    assert both.sources[:2].tolist() == [0, 0]
    assert CATEGORIES[both.categories[both.id_of("cat")]] == "species"


def test_the_builder_gathers_categories_and_sources():
    builder = TagColumnBuilder()
    builder.append(["a", "b"], categories=[0, 4], source=1)
    builder.append(["b", "a"], categories=[2, 3])
    column = builder.build()
    assert column.categories.tolist() == [3, 4]
    assert column.sources.tolist() == [1, 1, 0, 0]


def test_digests_do_not_depend_on_the_vocabulary():
    def digest(column):
        result = new_digest()
        column.update_digest(result)
        return result.hexdigest()

    rows = random_rows(9)
    column = TagColumn.from_rows(rows)
    assert digest(column) == digest(TagColumn.from_rows([["unused"], *rows]).take(np.arange(1, len(rows) + 1)))
    assert digest(column) != digest(column.keep(np.arange(len(column.ids)) > 0))
    annotated = new_digest()
    column.with_categories({"t1": "meta"}).update_annotations_digest(annotated)
    assert annotated.hexdigest() != new_digest().hexdigest()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda column: column.keep(np.ones(3, dtype=bool)),
        lambda column: column.reordered(np.arange(7)[::-1].copy()),
        lambda column: column.translated(np.zeros(2, dtype=np.int32), ("a",)),
        lambda column: column.with_front(np.zeros(2, dtype=np.int32)),
        lambda column: column.with_categories({"red": 99}),
    ],
)
def test_arrays_of_another_size_are_refused(wrong):
    with pytest.raises(ValueError, match="given|permutation|none of"):
        wrong(scored())


def test_text_columns_take_rows_in_any_order():
    column = TextColumn.from_strings(["a", "", "\u00e9\u00e9", "\U0001f600"])
    assert list(column.take(np.array([3, 0, 0, 2, 1]))) == ["\U0001f600", "a", "a", "\u00e9\u00e9", ""]
    assert list(TextColumn.empty(2)) == ["", ""]
