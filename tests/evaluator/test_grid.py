"""Grids on disk: order, resume, reuse, metadata."""

import json
from pathlib import Path

import pytest
from PIL import Image

from atelier_tests.helpers.lora_stub import stub_lora
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import SilentProgress
from lora_atelier.evaluator.axes._spec import AxisValue, AxisValues
from lora_atelier.evaluator.cells import ADD_LORAS, LORA_STRENGTH, Cell, drawing_order
from lora_atelier.evaluator.grid import GridRef, open_grid, plan_grid, run_grid

BASE = Cell(prompt="red circle", negative="blurry", seed=7, steps=4, width_px=32, height_px=24)
A, B = stub_lora("a.safetensors"), stub_lora("b.safetensors")


def axis(name, *values):
    return AxisValues(name=name, values=tuple(AxisValue(label=label, changes=changes) for label, changes in values))


LORA_AXIS = axis("LoRA", ("no LoRA", {ADD_LORAS: ()}), ("a", {ADD_LORAS: (A,)}), ("b", {ADD_LORAS: (B,)}))
PROMPTS = axis("Prompt", ("one", {"prompt": "one"}), ("two", {"prompt": "two"}))


class Painter:
    def __init__(self, fail_at=None):
        self.cells = []
        self.fail_at = fail_at

    def __call__(self, cell):
        if len(self.cells) == self.fail_at:
            raise KeyboardInterrupt
        self.cells.append(cell)
        colour = (len(cell.loras) * 60, len(cell.prompt) * 10 % 255, cell.seed % 255)
        return Image.new("RGB", (cell.width_px, cell.height_px), colour)


def metadata(cell):
    return {"prompt": {"1": {"inputs": {"text": "日本"}}}, "workflow": '{"nodes": []}'}


def draw(folder, painter, *, x=LORA_AXIS, y=PROMPTS, base=BASE, progress=None, meta=metadata, **kwargs):
    return run_grid(
        base,
        x,
        y,
        folder=folder,
        generate=painter,
        cell_metadata=meta,
        progress=progress or SilentProgress(),
        identity=kwargs.pop("identity", "base"),
        **kwargs,
    )


def texts(path):
    with Image.open(path) as image:
        return dict(image.text)


def test_a_grid_from_plan_to_sheet(tmp_path):
    painter, progress = Painter(), RecordingProgress()
    ref = draw(tmp_path, painter, progress=progress, title="mine")
    grid = open_grid(ref)
    assert len(painter.cells) == 6
    assert progress.num_previews == 6
    assert progress.updates[-1][:2] == (6, 6)
    assert grid.x_labels == ("no LoRA", "a", "b")
    assert [(cell.column, cell.row, cell.prompt) for cell in grid.cells] == [
        (0, 0, "one"), (1, 0, "one"), (2, 0, "one"), (0, 1, "two"), (1, 1, "two"), (2, 1, "two"),
    ]  # fmt: skip
    assert grid.cells[4].image().getpixel((0, 0)) == (60, 30, 7)
    assert grid.sheet_image().width > 3 * 32


def test_loras_change_slowest_then_texts(tmp_path):
    painter = Painter()
    draw(tmp_path, painter)
    assert [(len(cell.loras) and cell.loras[0].name[0], cell.prompt) for cell in painter.cells] == [
        (0, "one"), (0, "two"), ("a", "one"), ("a", "two"), ("b", "one"), ("b", "two"),
    ]  # fmt: skip


def test_drawing_order_of_all_levels():
    cells = [
        Cell(prompt=prompt, seed=seed, cfg=cfg, loras=(stub_lora(name, strength_model=strength),))
        for seed in (1, 2)
        for cfg in (3.0, 4.0)
        for prompt in ("p", "q")
        for strength in (0.5, 1.0)
        for name in ("a", "b")
    ]
    ordered = [cells[index] for index in drawing_order(cells)]
    levels = [(cell.loras[0].name, cell.loras[0].strength_model, cell.prompt, cell.cfg, cell.seed) for cell in ordered]
    assert levels == sorted(levels)


def test_the_same_grid_returns_at_once(tmp_path):
    ref = draw(tmp_path, Painter())
    painter = Painter()
    assert draw(tmp_path, painter) == ref
    assert painter.cells == []
    assert len(list(tmp_path.glob("xy_grid-*.png"))) == 1


@pytest.mark.parametrize("num_drawn", range(6))
def test_an_interrupted_grid_goes_on(tmp_path, num_drawn):
    with pytest.raises(KeyboardInterrupt):
        draw(tmp_path, Painter(fail_at=num_drawn))
    rest = Painter()
    ref = draw(tmp_path, rest)
    assert len(rest.cells) == 6 - num_drawn
    whole = open_grid(draw(tmp_path / "other", Painter()))
    assert [c.path.read_bytes() for c in open_grid(ref).cells] == [c.path.read_bytes() for c in whole.cells]


def test_cancel_passes_through_unchanged(tmp_path):
    class HostStop(BaseException):
        pass

    with pytest.raises(HostStop):
        draw(tmp_path, Painter(), progress=CancelAfter(3, HostStop()))
    rest = Painter()
    draw(tmp_path, rest)
    assert len(rest.cells) == 4


@pytest.mark.parametrize(
    "change",
    [
        {"identity": "another base"},
        {"base": Cell(prompt="x", negative="sharp", seed=7, steps=4, width_px=32, height_px=24)},
        {"base": Cell(prompt="x", negative="blurry", seed=8, steps=4, width_px=32, height_px=24)},
    ],
)
def test_other_inputs_are_drawn_anew(tmp_path, change):
    first = draw(tmp_path, Painter())
    painter = Painter()
    assert draw(tmp_path, painter, **change).key != first.key
    assert len(painter.cells) == 6


def test_a_retrained_file_of_the_same_name_is_drawn_anew(tmp_path):
    draw(tmp_path, Painter())
    newer = axis(
        "LoRA",
        *((v.label, v.changes) for v in LORA_AXIS.values[:2]),
        ("b", {ADD_LORAS: (type(B)(name=B.name, sha256="f" * 64),)}),
    )
    painter = Painter()
    draw(tmp_path, painter, x=newer)
    assert len(painter.cells) == 2


def test_an_extended_axis_draws_only_what_is_new(tmp_path):
    draw(tmp_path, Painter())
    longer = axis("Prompt", *((v.label, v.changes) for v in PROMPTS.values), ("three", {"prompt": "three"}))
    painter = Painter()
    draw(tmp_path, painter, y=longer)
    assert [cell.prompt for cell in painter.cells] == ["three"] * 3


def test_a_cell_of_another_grid_gets_the_texts_of_this_one(tmp_path):
    first = open_grid(draw(tmp_path, Painter(), model_name="old"))
    renamed = axis("LoRA", ("moved", {ADD_LORAS: (type(A)(name="moved.safetensors", sha256=A.sha256),)}))
    for meta in (lambda cell: {"workflow": '{"mine": 1}'}, lambda cell: None):
        painter = Painter()
        title = "with" if meta(None) else "without"
        grid = open_grid(draw(tmp_path, painter, x=renamed, meta=meta, model_name="new", title=title))
        assert painter.cells == []
        assert [cell.image().tobytes() for cell in grid.cells] == [first.cells[i].image().tobytes() for i in (1, 4)]
        for cell in grid.cells:
            found = texts(cell.path)
            assert found.get("workflow") == ('{"mine": 1}' if meta(None) else None)
            assert ("<lora:moved:1>" in found.get("parameters", "")) == bool(meta(None))
            assert "old" not in found.get("parameters", "")
    assert texts(first.cells[1].path)["workflow"] == '{"nodes": []}'


def test_cells_that_differ_in_nothing_are_drawn_once(tmp_path):
    strengths = axis("LoRA strength", ("0.5", {LORA_STRENGTH: 0.5}), ("1", {LORA_STRENGTH: 1.0}))
    painter = Painter()
    grid = open_grid(draw(tmp_path, painter, y=strengths))
    assert len(painter.cells) == 5  # the column without a LoRA is the same at every strength
    assert len(grid.cells) == 6
    assert all(cell.path.is_file() for cell in grid.cells)


def test_damaged_and_missing_cells_are_drawn_again(tmp_path):
    ref = draw(tmp_path, Painter())
    grid = open_grid(ref)
    grid.cells[1].path.write_bytes(grid.cells[1].path.read_bytes()[:50])
    grid.cells[2].path.unlink()
    painter = Painter()
    draw(tmp_path, painter)
    assert len(painter.cells) == 2
    assert grid.cells[1].image().size == (32, 24)


def test_damaged_index_is_written_again(tmp_path):
    ref = draw(tmp_path, Painter())
    (ref.folder / "cells.json").write_text("{", encoding="utf-8")
    painter = Painter()
    assert draw(tmp_path, painter) == ref
    assert painter.cells == []


def test_png_texts_of_a_cell(tmp_path):
    grid = open_grid(draw(tmp_path, Painter(), model_name="sub/base.safetensors", model_hash="ab" * 32))
    found = texts(grid.cells[1].path)
    assert json.loads(found["prompt"]) == metadata(None)["prompt"]
    assert found["workflow"] == '{"nodes": []}'
    prompt, negative, pairs = found["parameters"].split("\n")
    assert prompt == "one <lora:a:1>"
    assert negative == "Negative prompt: blurry"
    assert pairs.startswith("Steps: 4, Sampler: Euler, Schedule type: Normal, CFG scale: 7, Seed: 7, Size: 32x24")
    assert "Model hash: ababababab, Model: sub/base" in pairs
    raw = grid.cells[1].path.read_bytes()
    assert b"tEXtprompt\x00" in raw
    assert b"tEXtworkflow\x00" in raw


def test_png_texts_of_the_sheet(tmp_path):
    grid = open_grid(draw(tmp_path, Painter()))
    found = texts(grid.sheet_path)
    assert "Script: X/Y/Z plot, X Type: LoRA" in found["parameters"]
    assert 'X Values: "no LoRA, a, b", Y Type: Prompt, Y Values: "one, two"' in found["parameters"]
    assert found["workflow"] == '{"nodes": []}'


def test_no_metadata_at_all_when_it_is_switched_off(tmp_path):
    grid = open_grid(draw(tmp_path, Painter(), meta=lambda cell: None))
    assert texts(grid.cells[0].path) == {}
    assert texts(grid.sheet_path) == {}


def test_sheet_names_count_up_per_folder(tmp_path):
    first = open_grid(draw(tmp_path, Painter()))
    second = open_grid(draw(tmp_path, Painter(), base=Cell(prompt="x", seed=9, width_px=32, height_px=32)))
    assert first.sheet_path.name == "xy_grid-0001-7-one.png"
    assert second.sheet_path.name == "xy_grid-0002-9-one.png"


def test_single_axis_and_no_axis(tmp_path):
    one = open_grid(draw(tmp_path, Painter(), y=None))
    assert (one.x_labels, one.y_labels, len(one.cells)) == (("no LoRA", "a", "b"), (), 3)
    none = open_grid(draw(tmp_path, Painter(), x=None, y=None))
    assert len(none.cells) == 1
    rows = open_grid(draw(tmp_path, Painter(), x=None))
    assert [(cell.column, cell.row) for cell in rows.cells] == [(0, 0), (0, 1)]


def test_everything_is_checked_before_the_first_cell(tmp_path):
    painter = Painter()
    bad = axis("Prompt S/R", ("x", {"prompt_replace": (("absent", "y"),)}))
    with pytest.raises(InputError, match="absent"):
        draw(tmp_path, painter, y=bad)

    def refuse(cell):
        if cell.loras and cell.loras[0].name.startswith("b"):
            raise InputError("b does not fit")

    with pytest.raises(InputError, match="b does not fit"):
        draw(tmp_path, painter, check_cell=refuse)
    many = AxisValues(name="Seed", values=tuple(AxisValue(label=str(n), changes={"seed": n}) for n in range(200)))
    steps = AxisValues(name="Steps", values=tuple(AxisValue(label=str(n), changes={"steps": n}) for n in range(1, 200)))
    with pytest.raises(InputError, match="at most 10000"):
        draw(tmp_path, painter, x=many, y=steps)
    assert painter.cells == []


def test_key_ignores_where_a_lora_lies():
    moved = axis("LoRA", ("a", {ADD_LORAS: (stub_lora("a.safetensors", path=Path("/elsewhere")),)}))
    here = axis("LoRA", ("a", {ADD_LORAS: (A,)}))
    assert plan_grid(BASE, moved, None, identity="b").key == plan_grid(BASE, here, None, identity="b").key


def test_a_grid_whose_folder_moved_can_be_read(tmp_path):
    ref = draw(tmp_path / "a", Painter())
    (tmp_path / "a").rename(tmp_path / "b")
    grid = open_grid(GridRef(folder=tmp_path / "b" / ref.folder.name, key=ref.key))
    assert grid.cells[0].image().size == (32, 24)
    assert grid.sheet_image().width > 0
