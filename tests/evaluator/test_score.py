"""The scorecard, counted by hand on small grids."""

import json

import pytest
from PIL import Image

from atelier_tests.helpers.lora_stub import stub_lora
from lora_atelier.core.discovery import discover
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import SilentProgress
from lora_atelier.evaluator import metrics
from lora_atelier.evaluator.axes._spec import AxisValue, AxisValues
from lora_atelier.evaluator.cells import ADD_LORAS, Cell
from lora_atelier.evaluator.grid import run_grid
from lora_atelier.evaluator.metrics.tag_recall import prompt_tags, tag_recall
from lora_atelier.evaluator.score import has_trigger, score_grid

VOCABULARY = ("red", "blue", "circle", "square", "lumo_ring", "blue_background")
PROMPTS = ("lumo, red", "lumo, blue, square", "red, circle", "blue, circle", "square, blue background", "unheard of")
# What the judge sees, per column and prompt; the prompts without a trigger are the last four.
SEEN = (
    ({"red"}, {"blue"}, {"red", "circle"}, {"blue", "circle"}, {"square"}, set()),
    ({"lumo_ring"}, {"blue"}, {"red", "circle"}, {"blue"}, {"square", "blue_background"}, {"lumo_ring"}),
    ({"lumo_ring"}, {"lumo_ring", "square"}, {"red"}, {"blue", "lumo_ring"}, {"square"}, set()),
)


def make_grid(folder, *, prompts_in_rows=True):
    columns = AxisValues(
        name="Checkpoints",
        values=tuple(
            AxisValue(label=label, changes={ADD_LORAS: loras})
            for label, loras in (("no LoRA", ()), ("early", (stub_lora("e"),)), ("final", (stub_lora("f"),)))
        ),
    )
    rows = AxisValues(name="Prompt", values=tuple(AxisValue(label=p, changes={"prompt": p}) for p in PROMPTS))

    def paint(cell):
        column = 0 if not cell.loras else (1 if cell.loras[0].name == "e" else 2)
        return Image.new("RGB", (8, 8), (column, PROMPTS.index(cell.prompt), 0))

    return run_grid(
        Cell(prompt="", width_px=8, height_px=8),
        columns if prompts_in_rows else rows,
        rows if prompts_in_rows else columns,
        folder=folder,
        generate=paint,
        cell_metadata=lambda cell: None,
        progress=SilentProgress(),
        identity="base",
    )


def judge(image):
    column, row, _ = image.getpixel((0, 0))
    return SEEN[column][row]


@pytest.mark.parametrize("prompts_in_rows", [True, False])
def test_counts_by_hand(tmp_path, prompts_in_rows):
    grid = make_grid(tmp_path, prompts_in_rows=prompts_in_rows)
    table = score_grid(grid, judge, VOCABULARY, "Lumo", "lumo ring")
    assert table.axis == "Checkpoints"
    base, early, final = table.columns
    assert [column.label for column in table.columns] == ["no LoRA", "early", "final"]
    assert (base.num_trigger, base.num_other, base.num_judged) == (2, 4, 3)
    assert [column.trigger_recall for column in table.columns] == [0.0, 0.5, 1.0]
    assert [column.num_success for column in table.columns] == [2, 2, 0]
    assert base.other_success == pytest.approx(2 / 3)
    assert [column.kept for column in table.columns] == [1.0, 1.0, 0.0]
    assert [column.false_triggers for column in table.columns] == [0.0, 0.25, 0.25]
    assert (early.num_false, final.num_trigger_seen) == (1, 2)


def test_of_several_concept_tags_all_must_be_seen(tmp_path):
    table = score_grid(make_grid(tmp_path), judge, VOCABULARY, "Lumo", "square, lumo_ring")
    assert [column.num_trigger_seen for column in table.columns] == [0, 0, 1]
    assert [column.num_false for column in table.columns] == [0, 0, 0]
    with pytest.raises(InputError, match="'unheard_of'"):
        score_grid(make_grid(tmp_path / "b"), judge, VOCABULARY, "Lumo", "square, unheard_of")


def test_surfaces(tmp_path):
    table = score_grid(make_grid(tmp_path), judge, VOCABULARY, "lumo", "lumo_ring")
    data = json.loads(json.dumps(table.to_json()))
    assert data["columns"][1]["trigger_recall"] == 0.5
    assert data["columns"][0]["num_judged"] == 3
    assert "0.50 (1 of 2)" in table.text()
    assert table.picture().width > 200


def test_without_trigger_cells_there_is_no_recall(tmp_path):
    table = score_grid(make_grid(tmp_path), judge, VOCABULARY, "absent", "lumo_ring")
    assert table.columns[0].trigger_recall is None
    assert table.columns[0].num_other == 6


def test_kept_is_undefined_when_the_base_never_succeeds(tmp_path):
    table = score_grid(make_grid(tmp_path), lambda image: (), VOCABULARY, "lumo", "lumo_ring")
    assert table.columns[0].kept is None
    assert table.to_json()["columns"][0]["kept"] is None
    assert "-" in table.text()


def test_refused(tmp_path):
    grid = make_grid(tmp_path)
    with pytest.raises(InputError, match="'other_tag'"):
        score_grid(grid, judge, VOCABULARY, "lumo", "other_tag")
    with pytest.raises(InputError, match="No trigger"):
        score_grid(grid, judge, VOCABULARY, " ", "lumo_ring")


@pytest.mark.parametrize(
    ("prompt", "trigger", "found"),
    [
        ("lumo, red", "lumo", True),
        ("a LUMO ring", "lumo", True),
        ("lumos, red", "lumo", False),
        ("zed_ring, red", "zed ring", True),
        ("(lumo:1.2), red", "lumo", True),
        ("oyama mahiro", "oyama mihari", False),
    ],
)
def test_trigger_is_a_whole_word(prompt, trigger, found):
    assert has_trigger(prompt, trigger) is found


def test_prompt_tags():
    assert prompt_tags("Red_Hair, (blue eyes:1.2), ((solo)), <lora:x:1>, kayoko \\(blue archive\\)\nhat,") == [
        "red hair", "blue eyes", "solo", "kayoko (blue archive)", "hat",
    ]  # fmt: skip


def test_tag_recall_counts_only_known_tags():
    found = tag_recall("red, square, unheard", {"red"}, {"red", "square"})
    assert (found.recall, found.missed) == (0.5, frozenset({"square"}))
    assert tag_recall("unheard", {"red"}, {"red"}).recall is None


def test_metrics_contract():
    for metric in discover(metrics.__name__, "METRIC").values():
        assert metric.source
        assert metric.summary.endswith(".")
        assert callable(metric.measure)
