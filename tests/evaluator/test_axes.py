"""Contract over all axes, and what each one is for."""

import dataclasses
import itertools
from pathlib import Path

import pytest

from atelier_tests.helpers.lora_stub import stub_lora
from lora_atelier.core.discovery import discover
from lora_atelier.core.errors import InputError, UnknownNameError
from lora_atelier.evaluator import axes
from lora_atelier.evaluator.axes._spec import Axis, AxisContext, AxisValues
from lora_atelier.evaluator.cells import Cell, changed, combine

AXES: dict[str, Axis] = discover(axes.__name__, "AXIS")
LORAS = ["a.safetensors", "sub/my-000001.safetensors", "sub/my-000002.safetensors", "z.safetensors"]
BASE = Cell(prompt="a red cat", negative="dog")


def context(**inputs):
    return AxisContext(
        inputs=inputs,
        lora_names=lambda: LORAS,
        open_lora=stub_lora,
        open_lora_file=lambda path, name: stub_lora(name, path=path),
        run_checkpoints=lambda run: [(250, Path("250")), (500, Path("500")), (1000, Path("1000"))],
        sampler_names=("euler", "dpmpp_2m"),
        scheduler_names=("normal", "karras"),
    )


def build(name, values=None, **inputs) -> AxisValues:
    axis = AXES[name]
    return axis.build(axis.params.from_json(values or {}), context(**inputs))


EXAMPLES = {
    "lora": ({"files": "a.safetensors"}, {}),
    "run_checkpoints": ({}, {"run": object()}),
    "prompt": ({"prompts": "one\ntwo"}, {}),
    "prompt_replace": ({"words": "red, blue"}, {}),
}


def test_the_axes_of_the_grid_are_there():
    assert set(AXES) == {
        "lora", "run_checkpoints", "strength", "blocks", "prompt", "prompt_replace", "seed", "steps", "cfg", "sampler",
        "scheduler",
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(AXES))
def test_contract(name):
    axis = AXES[name]
    values, inputs = EXAMPLES.get(name, ({}, {}))
    built = build(name, values, **inputs)
    assert built.values
    assert axis.summary.endswith(".")
    for value in built.values:
        assert value.label.strip()
        cell = changed(Cell(prompt="red", loras=(stub_lora("base"),)), combine([value.changes]))
        assert cell.key("base")
    assert all(parameter.doc for parameter in axis.params.parameters())
    assert all(socket.doc and socket.kind.startswith("ATELIER_") for socket in axis.sockets)


@pytest.mark.parametrize("name", ["lora", "prompt", "prompt_replace"])
def test_empty_axis_is_refused(name):
    with pytest.raises(InputError, match="no (value|LoRA)"):
        build(name)


def test_lora_axis_puts_a_column_without_first():
    built = build("lora", {"files": "a.safetensors, sub/my-*.safetensors", "strength": 0.8})
    assert built.labels == ("no LoRA", "a", "my-000001", "my-000002")
    cells = [changed(BASE, value.changes) for value in built.values]
    assert [len(cell.loras) for cell in cells] == [0, 1, 1, 1]
    assert cells[1].loras[0].strength_model == 0.8
    assert build("lora", {"files": "a.safetensors", "include_base": False}).labels == ("a",)


def test_lora_axis_takes_connected_handles_with_their_strengths():
    built = build("lora", lora_1=stub_lora("q.safetensors", strength_model=0.3))
    assert changed(BASE, built.values[1].changes).loras[0].strength_model == 0.3


def test_lora_axis_keeps_what_the_base_cell_carries():
    base = Cell(prompt="x", loras=(stub_lora("lightning"),))
    built = build("lora", {"files": "a.safetensors"})
    assert [len(changed(base, value.changes).loras) for value in built.values] == [1, 2]


def test_lora_pattern_without_a_match():
    with pytest.raises(InputError, match="matches none of the 4"):
        build("lora", {"files": "nothing-*"})


@pytest.mark.parametrize(
    ("steps", "labels"),
    [
        ("all", ["step 250", "step 500", "step 1000"]),
        ("first, last", ["step 250", "step 1000"]),
        ("240, 980", ["step 250", "step 1000"]),
        ("250-500 (+250)", ["step 250", "step 500"]),
    ],
)
def test_checkpoints(steps, labels):
    assert list(build("run_checkpoints", {"steps": steps}, run=1).labels) == ["no LoRA", *labels]


def test_checkpoint_axis_needs_a_run():
    with pytest.raises(InputError, match="'run'"):
        build("run_checkpoints")


def test_strength_acts_on_the_loras_of_the_other_axis_and_not_on_the_base():
    files = build("lora", {"files": "a.safetensors"})
    strengths = build("strength", {"strengths": "0.5"})
    base = Cell(prompt="x", loras=(stub_lora("lightning"),))
    column, row = files.values[1], strengths.values[0]
    for order in itertools.permutations((column, row)):
        cell = changed(base, combine(value.changes for value in order))
        assert [(lora.strength_model, lora.strength_clip) for lora in cell.loras] == [(1.0, 1.0), (0.5, 0.5)]
    without = changed(base, combine([files.values[0].changes, row.changes]))
    assert [lora.strength_model for lora in without.loras] == [1.0]


def test_strength_without_any_lora_is_refused():
    with pytest.raises(InputError, match="connect a LoRA"):
        changed(BASE, build("strength").values[0].changes)
    assert changed(BASE, build("strength", lora=stub_lora("a")).values[1].changes).loras[0].strength_model == 0.5


def test_block_rows_and_names():
    row = ",".join("1" * 17)
    assert build("blocks", {"presets": "ALL, NIN"}, lora=stub_lora("a")).labels == ("ALL", "NIN")
    assert build("blocks", {"presets": row}, lora=stub_lora("a")).labels == (row,)
    assert build("blocks", {"presets": f"NIN\n{row}"}, lora=stub_lora("a")).labels == ("NIN", row)


def test_block_names_are_checked_where_the_presets_are_known():
    axis = AXES["blocks"]
    known = AxisContext(inputs={"lora": stub_lora("a")}, preset_names=lambda: ("ALL", "NIN", "AOUT"))
    for text in ("ALL, nin", "AOUT A=0.5", ",".join("1" * 17), "0.5 " * 17):
        assert axis.build(axis.params(presets=text), known).values
    with pytest.raises(UnknownNameError, match="NIN"):
        axis.build(axis.params(presets="ALL\nNINN"), known)


def test_blocks_by_name_are_switched_off_on_top_of_all():
    axis = AXES["blocks"]
    known = AxisContext(
        inputs={"lora": stub_lora("a")},
        preset_names=lambda: ("ALL", "NIN"),
        vector_blocks=lambda length: ("TE", "IN01", "MID") if length == 17 else (),
    )

    def columns(text):
        values = axis.build(axis.params(presets=text), known).values
        return {value.label: value.changes["lora_block_weights"] for value in values}

    assert columns("17ALL") == {"TE=0": "ALL TE=0", "IN01=0": "ALL IN01=0", "MID=0": "ALL MID=0"}
    assert columns("17ALL=0.5\nNIN")["MID=0.5"] == "ALL MID=0.5"
    assert columns("IN05-OUT05 TE\nNOT MID") == {
        "IN05-OUT05 TE=0": "ALL IN05-OUT05=0 TE=0",
        "NOT MID=0": "ALL NOT MID=0",
    }
    assert columns("NIN MID=0.5\nlbw=NIN:step=2-4") == {
        "NIN MID=0.5": "NIN MID=0.5",
        "lbw=NIN:step=2-4": "lbw=NIN:step=2-4",
    }


def test_two_loras_share_the_blocks_between_them():
    loras = tuple(stub_lora(name, block_weights=words) for name, words in (("a", "XYZ"), ("b", "ZYX"), ("c", "")))
    cell = changed(dataclasses.replace(BASE, loras=loras), {"lora_block_weights": "NIN"})
    assert [lora.block_weights for lora in cell.loras] == ["XYZ=NIN", "ZYX=NIN", ""]
    same = changed(dataclasses.replace(BASE, loras=loras[2:]), {"lora_block_weights": "NIN"})
    assert same.loras[0].block_weights == "NIN"


def test_search_and_replace():
    built = build("prompt_replace", {"words": "red, blue"})
    cells = [changed(BASE, value.changes) for value in built.values]
    assert [cell.prompt for cell in cells] == ["a red cat", "a blue cat"]
    lines = build("prompt_replace", {"words": "dog\ncat, mouse"})
    assert changed(BASE, lines.values[1].changes).negative == "cat, mouse"
    with pytest.raises(InputError, match="'green' occurs neither"):
        changed(BASE, build("prompt_replace", {"words": "green, blue"}).values[0].changes)
    with pytest.raises(InputError, match="only 'red'"):
        build("prompt_replace", {"words": "red"})


def test_two_search_axes_do_not_undo_each_other():
    first = build("prompt_replace", {"words": "red, cat"})
    second = build("prompt_replace", {"words": "cat, red"})
    for order in ((first, second), (second, first)):
        changes = combine([order[0].values[1].changes, order[1].values[1].changes])
        assert changed(BASE, changes).prompt == "a cat red"


def test_two_axes_on_the_same_field_are_refused():
    seeds = build("seed")
    with pytest.raises(InputError, match="Both axes set seed"):
        combine([seeds.values[0].changes, seeds.values[1].changes])


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("seed", {"seeds": "-1"}, "-1"),
        ("seed", {"seeds": str(2**64)}, "seeds are whole"),
        ("steps", {"steps": "0"}, "1 to"),
        ("cfg", {"scales": "-1"}, "0 to 100"),
        ("strength", {"strengths": "1000"}, "-100 to 100"),
    ],
)
def test_out_of_range(name, values, said):
    with pytest.raises(InputError, match=said):
        build(name, values)


def test_names_are_checked_and_spelled():
    assert build("sampler", {"samplers": "Euler"}).labels == ("euler",)
    with pytest.raises(UnknownNameError, match="karras"):
        build("scheduler", {"schedulers": "karas"})


def test_every_prompt_may_have_a_seed_of_its_own():
    prompts = build("prompt", {"prompts": "one\ntwo\nthree", "seed_step": 10})
    seeds = build("seed", {"seeds": "7, 18446744073709551615"})
    drawn = [changed(BASE, combine([row.changes, column.changes])) for row in prompts.values for column in seeds.values]
    assert [(cell.prompt, cell.seed) for cell in drawn] == [
        ("one", 7), ("one", 2**64 - 1), ("two", 17), ("two", 9), ("three", 27), ("three", 19)
    ]  # fmt: skip
    assert build("prompt", {"prompts": "one\ntwo"}).values[1].changes == {"prompt": "two"}
