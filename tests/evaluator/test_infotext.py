"""The parameters text and file names by the web UI's rules."""

import json
import re

import pytest

from atelier_tests.helpers.lora_stub import stub_lora
from lora_atelier.evaluator.cells import Cell
from lora_atelier.evaluator.infotext import infotext, lora_tag, next_counter, script_keys, sheet_name

# How the web UI reads the line of pairs (its re_param): a key, then either a quoted or a bare value.
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')


def pairs_of(text):
    found = {key: value for key, value in PAIR.findall(text.split("\n")[-1])}
    return {key: json.loads(value) if value.startswith('"') else value for key, value in found.items()}


def test_pairs_are_read_back_as_the_web_ui_reads_them():
    cell = Cell(prompt="a, b", sampler="dpmpp_2m", scheduler="karras", cfg=7.5, seed=2**63, denoise=0.5,
                loras=(stub_lora("x/a b.safetensors"), stub_lora("c.safetensors")))  # fmt: skip
    keys = script_keys(x_name="LoRA, strength", x_labels=("a, b", "c"), y_name="", y_labels=())
    pairs = pairs_of(infotext(cell, model_name="m.safetensors", extra=keys))
    assert pairs["Sampler"] == "DPM++ 2M"
    assert pairs["Schedule type"] == "Karras"
    assert pairs["CFG scale"] == "7.5"
    assert pairs["Seed"] == str(2**63)
    assert pairs["Denoising strength"] == "0.5"
    assert pairs["X Type"] == "LoRA, strength"
    assert pairs["X Values"] == '"a, b", c'
    assert "Y Type" not in pairs
    assert pairs["Lora hashes"].startswith("a b: ")


@pytest.mark.parametrize(
    ("kwargs", "tag"),
    [
        ({}, "<lora:a:1>"),
        ({"strength_model": 0.8, "strength_clip": 0.5}, "<lora:a:0.5:0.8>"),
        ({"block_weights": "NIN"}, "<lora:a:1:lbw=NIN>"),
        ({"block_weights": "1, 0 0.5"}, "<lora:a:1:lbw=1,0,0.5>"),
    ],
)
def test_lora_tag(kwargs, tag):
    assert lora_tag(stub_lora("folder\\a.safetensors", **kwargs)) == tag


def test_sheet_name_rules():
    assert sheet_name(184, 120, "anime,") == "xy_grid-0184-120-anime,.png"
    assert sheet_name(1, 2, ' a<b>:"/\\|?*\nc. ') == "xy_grid-0001-2-a_b________c.png".replace("________", "_" * 9)
    assert len(sheet_name(1, 2, "x" * 500)) == len("xy_grid-0001-2-.png") + 128
    assert len(sheet_name(1, 2, "日" * 200).encode()) <= 255
    assert sheet_name(1, 2, "") == "xy_grid-0001-2.png"


def test_counter_is_one_above_the_highest(tmp_path):
    assert next_counter(tmp_path / "absent") == 1
    for name in ("xy_grid-0003-1-a.png", "xy_grid-0010-1-b.png", "xy_gridless-0099.png", "other.png"):
        (tmp_path / name).touch()
    assert next_counter(tmp_path) == 11
