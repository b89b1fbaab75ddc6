"""What an inspection says of a file, and how two LoRAs and two checkpoints are compared, against dense matrices."""

import json
import math

import pytest
import torch

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.lora_files import random_parts, write_lora
from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.families._spec import Place, get_family
from lora_atelier.merger.lora.differences import RANKS, differences, differences_report, mean_shares
from lora_atelier.merger.lora.extract import CheckpointPair, ExtractParams
from lora_atelier.merger.lora.inspection import inspect_lora
from lora_atelier.merger.lora.inspection_report import as_json, report
from lora_atelier.merger.lora.modules import LoraFile
from lora_atelier.merger.lora.overlap import mean_of, overlap, overlap_report
from lora_atelier.networks._apply import lora_delta

LINEAR = Place(part="unet", path="down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
CONV = Place(part="unet", path="up_blocks.1.resnets.0.conv1")
TEXT = Place(part="text_encoder", path="text_model.encoder.layers.0.mlp.fc1")
SHAPES = {LINEAR: (30, 26), CONV: (18, 14, 3, 3), TEXT: (24, 20)}


def lora(tmp_path, name, algorithm="lora", seed=0, **options):
    modules = {place: random_parts(algorithm, shape, seed=seed + n) for n, (place, shape) in enumerate(SHAPES.items())}
    return write_lora(tmp_path / f"{name}.safetensors", modules, **options)


def inspected(path):
    with LoraFile(path, path.name) as file:
        return inspect_lora(file)


@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr", "full"])
def test_energies_are_those_of_the_dense_changes(tmp_path, algorithm):
    path = lora(tmp_path, "x", algorithm)
    found = inspected(path)
    with LoraFile(path, "x") as file:
        for facts in found.modules:
            parts = file.parts(facts.module)
            dense = float(lora_delta(parts).double().square().sum())
            dense += float(parts["diff_b"].double().square().sum()) if "diff_b" in parts else 0.0
            assert facts.energy == pytest.approx(dense, rel=1e-5)
    assert list(found.energy_by_block()) == ["TE", "IN04", "OUT03"]


def test_used_rank_counts_what_holds_the_energy(tmp_path):
    parts = random_parts("lora", SHAPES[LINEAR], rank=8)
    parts["lora_up.weight"][:, 2:] *= 1e-4
    found = inspected(write_lora(tmp_path / "x.safetensors", {LINEAR: parts}))
    assert found.modules[0].used_rank <= 2
    assert found.modules[0].module.rank == 8


def test_dead_and_broken_modules_are_named_and_words_are_read(tmp_path):
    dead, broken = random_parts("lora", SHAPES[LINEAR]), random_parts("lora", SHAPES[TEXT])
    dead["lora_up.weight"].zero_()
    broken["lora_down.weight"][0, 0] = math.inf
    metadata = {
        "ss_base_model_version": "sd_v1", "ss_sd_model_name": "mine.safetensors", "ss_steps": "400",
        "ss_tag_frequency": json.dumps({"10_kest": {"lumo kest": 28, "hat": 3}, "1_reg": {"red": 56}}),
    }  # fmt: skip
    path = write_lora(
        tmp_path / "x.safetensors",
        {LINEAR: dead, TEXT: broken, CONV: random_parts("lora", SHAPES[CONV])},
        metadata=metadata,
    )
    found = inspected(path)
    assert len(found.dead) == len(found.broken) == 1
    assert found.tags() == [("red", 56), ("lumo kest", 28), ("hat", 3)]
    assert found.triggers() == ["lumo kest", "red"]
    said = report(found)
    for part in ("1 modules hold NaN", "1 modules change nothing", "Trained on mine.safetensors", "steps 400",
                 "Trigger: lumo kest", "red (56), lumo kest (28)", "LoCon", "Rank / alpha: 4 / 2"):  # fmt: skip
        assert part in said, part
    assert json.loads(json.dumps(as_json(found)))["dead"] == found.dead


def test_dora_is_measured_without_its_lengths(tmp_path):
    path = lora(tmp_path, "x", "dora")
    plain = {place: {k: v for k, v in random_parts("dora", shape, seed=n).items() if k != "dora_scale"}
             for n, (place, shape) in enumerate(SHAPES.items())}  # fmt: skip
    other = write_lora(tmp_path / "y.safetensors", plain)
    one, two = inspected(path), inspected(other)
    assert [facts.energy for facts in one.modules] == pytest.approx([facts.energy for facts in two.modules])
    assert "DoRA" in report(one)


def compared(one, two):
    with LoraFile(one, one.name) as first, LoraFile(two, two.name) as second:
        return overlap(first, second)


def test_cosines_and_angles_are_those_of_the_dense_changes(tmp_path):
    one, two = lora(tmp_path, "one"), lora(tmp_path, "two", seed=10)
    rows = {row.name: row for row in compared(one, two)}
    with LoraFile(one, "one") as first, LoraFile(two, "two") as second:
        theirs = second.by_name()
        for module in first.modules:
            a = lora_delta(first.parts(module)).double().flatten(1)
            b = lora_delta(second.parts(theirs[module.name])).double().flatten(1)
            cosine = float((a * b).sum() / (a.norm() * b.norm()))
            assert rows[module.name].cosine == pytest.approx(cosine, abs=1e-6)
            assert 0.0 <= rows[module.name].outputs <= 1.0
    same = compared(one, one)
    assert all(row.cosine == pytest.approx(1.0) for row in same)
    assert all(row.outputs == pytest.approx(1.0, abs=1e-5) for row in same)
    assert mean_of(same, "inputs") == pytest.approx(1.0, abs=1e-5)
    assert "much the same" in overlap_report(same, ("a", "b"))


def test_what_cannot_be_compared(tmp_path):
    one = lora(tmp_path, "one")
    place = Place(part="unet", path="mid_block.attentions.0.proj_in")
    other = write_lora(tmp_path / "o.safetensors", {place: random_parts("lora", (8, 8))}, family="sdxl")
    with pytest.raises(InputError, match="only LoRAs of one kind"):
        compared(one, other)
    lonely = write_lora(tmp_path / "l.safetensors", {place: random_parts("lora", (8, 8, 1, 1))})
    with pytest.raises(InputError, match="no layer in common"):
        compared(one, lonely)


def test_the_spectrum_of_a_difference(tmp_path):
    base = write_tiny_checkpoint(tmp_path / "base.safetensors")
    tensors = read_tensors(base)
    key = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q.weight"
    size = tensors[key].shape[0]
    torch.manual_seed(0)
    tensors = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
    tensors[key] = tensors[key] + torch.randn(size, 3) @ torch.randn(3, size)
    write_tensors(tmp_path / "tuned.safetensors", tensors, read_header(base).metadata)
    with CheckpointPair(base, tmp_path / "tuned.safetensors", get_family("sd15")) as pair:
        rows = differences(pair, ExtractParams())
        assert [row.block for row in rows] == ["MID"]
    shares = mean_shares(rows)
    assert shares == sorted(shares)
    assert shares[RANKS.index(4)] == pytest.approx(1.0, abs=1e-4)
    assert shares[0] < 0.9
    assert "fits in rank" in differences_report(rows, ("base", "tuned"))
    (tmp_path / "same.safetensors").write_bytes(base.read_bytes())
    with (
        CheckpointPair(base, tmp_path / "same.safetensors", get_family("sd15")) as pair,
        pytest.raises(FormatError, match="do not differ"),
    ):
        differences(pair, ExtractParams(), max_layers=5)
