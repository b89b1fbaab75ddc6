"""The LoRA tools through the graph runner: what they make, and one clear sentence for everything that is wrong."""

import json
import math
import os
import re

import pytest
import torch

from atelier_tests.helpers import bad_world
from atelier_tests.helpers import lora_world as tools
from atelier_tests.helpers.api_graphs import filled, node
from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.files import link_or_copy
from lora_atelier.core.tensors import read_header, read_tensors
from lora_atelier.headless.graph import graph_from_json
from lora_atelier.headless.runner import local_specs, run_local
from lora_atelier.headless.terminal import hosting
from lora_atelier.merger.lora.modules import LoraFile


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory):
    return write_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.safetensors")


@pytest.fixture(scope="module")
def filled_world(tmp_path_factory, tiny_base):
    world = bad_world.World(tmp_path_factory.mktemp("world"))
    link_or_copy(tiny_base, world.checkpoints / "tiny.safetensors")
    tools.fill(world)
    return world


@pytest.fixture
def world(tmp_path, filled_world, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    made = bad_world.World(tmp_path)
    for folder in ("loras", "checkpoints"):
        for path in getattr(filled_world, folder).glob("*.safetensors"):
            (getattr(made, folder) / path.name).unlink(missing_ok=True)
            link_or_copy(path, getattr(made, folder) / path.name)
    with hosting(made.host):
        yield made


def run(world, graph):
    """What the node under test gives."""
    _, specs = local_specs()
    data = filled(json.loads(json.dumps(graph)), specs)
    parsed = graph_from_json(data, specs)
    kept = data["tool"]["class_type"]
    results = run_local(parsed, world.host, keep=(kept,)).outcome.results["tool"]
    return tuple(values[0] for values in results)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


nothing = None
BAD = {"lora__lora_name": "bad.safetensors"}
BAD_A = {"a__lora_name": "bad.safetensors"}
CASES = [
    # id, preparation, graph, what the message must say
    ("nan in a lora", tools.nan_lora, tools.resize(**BAD), ["bad", "NaN"]),
    ("nan in a merged lora", tools.nan_lora, tools.merge(**BAD_A), ["bad", "NaN"]),
    ("nan into a checkpoint", tools.nan_lora, tools.bake(**BAD), ["bad", "NaN"]),
    ("dead lora", tools.dead_lora, tools.resize(**BAD), ["changes nothing"]),
    ("up without down", tools.half_module, tools.resize(**BAD), ["none of the known networks|parts"]),
    ("rank 0 in the file", tools.rank_zero, tools.inspect(**BAD), ["rank 0"]),
    ("rank 0 asked for", nothing, tools.resize(tool__rank=0), ["rank is 0", "fixed"]),
    ("ranks of up and down differ", tools.unlike_ranks, tools.resize(**BAD), ["do not fit each other"]),
    ("lora of other sizes", tools.narrow, tools.bake(**BAD), ["another architecture"]),
    ("loras of unlike sizes", tools.narrow, tools.merge(**BAD_A), ["different sizes|change no layer"]),
    ("layer that no model has", tools.strange_layer, tools.inspect(**BAD), ["no layer of"]),
    ("unknown algorithm", tools.glora, tools.resize(**BAD), ["algorithm that is not known"]),
    ("alpha of three numbers", tools.alphas, tools.resize(**BAD), ["alpha is one number"]),
    ("one layer twice", tools.twice, tools.resize(**BAD), ["one layer twice"]),
    ("too strong for fp16", tools.too_strong, tools.bake(**BAD, tool__dtype="fp16"), ["too strong|NaN or infinite"]),
    ("sdxl lora into sd1", tools.sdxl_named, tools.bake(**BAD), ["sdxl", "sd15"]),
    ("sdxl lora with an sd1 lora", tools.sdxl_named, tools.merge(**BAD_A), ["only LoRAs of one kind"]),
    ("flux lora", tools.flux_lora, tools.inspect(**BAD), ["transformer model|no layer"]),
    ("no layer of the checkpoint", tools.elsewhere, tools.bake(**BAD), ["none of the 1 modules", "tiny"]),
    ("truncated lora", tools.cut_short, tools.resize(**BAD), ["truncated"]),
    ("3 GB of junk header", tools.junk_header, tools.resize(**BAD), ["not a safetensors file"]),
    ("places that do not fit shapes", tools.broken_header, tools.resize(**BAD), ["broken header|truncated"]),
    ("web page as lora", tools.web_page, tools.resize(**BAD), ["web page"]),
    ("output is the input", nothing, tools.resize(tool__file_name="one"), ["one of the inputs"]),
    (
        "output is the second input",
        nothing,
        tools.merge(tool__file_name="two.safetensors", tool__if_exists="replace"),
        ["one of the inputs"],
    ),
    ("checkpoint over itself", nothing, tools.bake(tool__file_name="tiny"), ["one of the inputs"]),
    ("name is taken", tools.taken, tools.resize(tool__file_name="mine", tool__if_exists="refuse"), ["there already"]),
    ("folder in the way", tools.folder_in_the_way, tools.resize(tool__file_name="mine"), ["is a folder"]),
    ("name outside", nothing, tools.resize(tool__file_name="../../evil"), [r"'\.\.'"]),
    ("absolute name outside", nothing, tools.resize(tool__file_name="/etc/evil"), ["outside"]),
    ("reserved name", nothing, tools.resize(tool__file_name="sub/nul"), ["reserved"]),
    ("name of an old format", nothing, tools.resize(tool__file_name="mine.ckpt"), [".ckpt", "safetensors"]),
    ("disk full in the middle", tools.full_disk, tools.resize(), ["disk is full"]),
    ("disk full in the middle of a checkpoint", tools.full_disk, tools.bake(), ["disk is full"]),
    ("no space", tools.no_space, tools.bake(), ["free some space"]),
    ("share above 1", nothing, tools.resize(tool__rule="energy", tool__value=2.0), ["value is 2", "share"]),
    ("ratio below 1", nothing, tools.resize(tool__rule="sv_ratio", tool__value=0.5), ["value is 0.5", "1 or more"]),
    ("nan for a number", nothing, tools.resize(tool__value=math.nan), ["value is nan"]),
    ("size that holds nothing", nothing, tools.resize(tool__rule="size", tool__value=1e-5), ["one rank of any module"]),
    ("unknown rule", nothing, tools.resize(tool__rule="sv_fra"), ["rule", "did you mean 'sv_fro'"]),
    ("dora without its base", nothing, tools.resize(lora__lora_name="dora.safetensors"), ["DoRA", "Convert LoRA"]),
    (
        "dora to lora without its base",
        nothing,
        tools.convert(lora__lora_name="dora.safetensors", tool__algorithm="LoRA"),
        ["wire the base model"],
    ),
    (
        "dora with a base of another family",
        tools.unlike_base,
        tools.convert(
            lora__lora_name="dora.safetensors", tool__algorithm="LoRA", base=tools.base_of("xl"), tool__base=["base", 0]
        ),
        ["xl", "Stable Diffusion 1.x"],
    ),
    ("strengths of 0", nothing, tools.merge(a__strength_model=0.0, a__strength_clip=0.0, b__strength_model=0.0,
                                            b__strength_clip=0.0), ["change nothing"]),
    ("lora at some steps only", nothing, tools.merge(a__block_weights="ALL:start=3"), ["sampler steps"]),
    ("wrong block weights", nothing, tools.merge(a__block_weights="1,0,1"), ["3 numbers|3"]),
    ("ratios for another number of loras", nothing, tools.merge(tool__ratios="0.5"), ["1 factors and 2 LoRAs"]),
    ("ratio that is no number", nothing, tools.merge(tool__ratios="0.5, half"), ["'half'", "no number"]),
    ("two checkpoints that are one", nothing, tools.extract(tuned__base_name="tiny.safetensors"), ["both checkpoints"]),
    ("checkpoints that do not differ", tools.same_base, tools.extract(), ["do not differ"]),
    ("spectrum of no difference", tools.same_base, tools.spectrum(), ["do not differ"]),
    ("unlike families", tools.unlike_base, tools.extract(tuned__base_name="xl.safetensors"), ["one kind"]),
    ("checkpoints of unlike sizes", tools.wide_base, tools.extract(), ["unlike kinds", "to_v"]),
    ("checkpoint with nan", tools.nan_base, tools.extract(), ["not finite"]),
    ("comparison of unlike loras", tools.sdxl_named, tools.inspect(
        other=tools.opened("bad"), tool__other=["other", 0]), ["only LoRAs of one kind"]),
    ("nothing in common", tools.elsewhere, tools.inspect(
        other=tools.opened("bad"), tool__other=["other", 0]), ["no layer in common"]),
    ("unknown naming", nothing, tools.convert(tool__naming="kohia"), ["naming", "did you mean 'kohya'"]),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_input(world, monkeypatch, prepare, graph, said):
    world.patch = monkeypatch
    if prepare is not None:
        prepare(world)
    before = contents(world.base_dir)
    with pytest.raises(AtelierError) as caught:
        run(world, graph)
    message = str(caught.value)
    assert "\n" not in message.strip(), message
    assert len(message) < 900, message
    assert "Error:" not in message, message
    for part in said:
        assert re.search(part, message, re.IGNORECASE), f"{part!r} is not said in: {message}"
    monkeypatch.undo()
    after = contents(world.base_dir)
    assert {name: after.get(name) for name in before} == before, "an input is lost or changed"
    assert not [name for name in set(after) - set(before) if name.startswith("models") or name.endswith(".tmp")]


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 50


def delta_norm(path):
    with LoraFile(path, path.name) as file:
        return {module.name: module.rank for module in file.modules}


def test_a_dry_run_keeps_nothing_and_gives_the_result(world):
    before = contents(world.base_dir / "models")
    lora, report = run(world, tools.resize(tool__dry_run=True))
    assert contents(world.base_dir / "models") == before
    assert set(delta_norm(lora.path).values()) == {2}
    assert "Relative error of the cut" in report
    assert "switch dry_run off to save it as atelier/one-dim2.safetensors" in report
    kept, said = run(world, tools.resize())
    assert kept.path == world.loras / "atelier" / "one-dim2.safetensors"
    assert kept.path.read_bytes() == lora.path.read_bytes()
    assert "Saved as atelier/one-dim2.safetensors" in said
    again, said = run(world, tools.resize())
    assert again.path == kept.path
    assert "There already" in said
    other, _ = run(world, tools.resize(tool__rank=3, tool__file_name="atelier/one-dim2"))
    assert other.path.name == "one-dim2-2.safetensors"


def test_strengths_and_block_weights_are_handed_on_by_resize_and_used_by_merge(world):
    opened = {"lora__strength_model": 0.5, "lora__block_weights": "OUTALL"}
    lora, _ = run(world, tools.resize(**opened))
    assert (lora.strength_model, lora.block_weights) == (0.5, "OUTALL")
    lora, report = run(world, tools.merge(a__strength_model=0.5, tool__ratios="2/1, 1"))
    assert (lora.strength_model, lora.block_weights) == (1.0, "")
    assert "layers are changed by all 2 LoRAs" in report
    assert set(delta_norm(lora.path).values()) == {8}


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_merged_checkpoint_is_a_base(world, dry_run):
    base, report = run(world, tools.bake(tool__dry_run=dry_run, lora__strength_model=0.5))
    if dry_run:
        assert [lora.name for lora in base.loras] == ["one.safetensors"]
        assert base.path == world.checkpoints / "tiny.safetensors"
        assert "Dry run: the file would have" in report
        return
    assert base.loras == ()
    assert base.name == "atelier/tiny+one.safetensors"
    merged, before = read_tensors(base.path), read_tensors(world.checkpoints / "tiny.safetensors")
    assert any(not torch.equal(merged[key], value) for key, value in before.items())
    assert "modelspec.merged_from" in read_header(base.path).metadata
    assert "Saved as atelier/tiny+one.safetensors" in report


def test_extract_convert_edit_inspect_and_spectrum(world):
    lora, report = run(world, tools.extract(tool__norms_and_biases=True))
    assert "layers differ" in report
    assert lora.family == "sd15"
    lora, _ = run(world, tools.convert(tool__naming="comfyui"))
    with LoraFile(lora.path, "x") as file:
        assert all("." in module.stem for module in file.modules)
    plain = tools.convert(
        lora__lora_name="dora.safetensors", tool__algorithm="LoRA", base=tools.base_of(), tool__base=["base", 0]
    )
    lora, _ = run(world, plain)
    with LoraFile(lora.path, "x") as file:
        assert not any(module.is_dora for module in file.modules)
    lora, _ = run(world, tools.edit(tool__title="My LoRA", tool__remove_training=True))
    metadata = read_header(lora.path).metadata
    assert (metadata["modelspec.title"], metadata["modelspec.trigger_phrase"]) == ("My LoRA", "lumo")
    both = tools.inspect(other=tools.opened("two"), tool__other=["other", 0])
    report, picture, data = run(world, both)
    assert "mean cosine" in report
    assert picture.shape[-1] == 3
    assert len(json.loads(data)["overlap"]) == len(json.loads(data)["modules"])
    plot, report, data = run(world, tools.spectrum())
    assert "Share of the energy in the first ranks" in report
    assert json.loads(data)["shares"][-1] == pytest.approx(1.0)


def test_a_live_merge_and_a_saved_one_draw_the_same(world):
    def graph(dry_run):
        return {
            **tools.bake(tool__dry_run=dry_run, tool__dtype="fp32"),
            "load": node("AtelierBaseToModel", base=["tool", 0]),
            "pos": node("CLIPTextEncode", clip=["load", 1], text="red"),
            "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
            "sample": node("KSampler", model=["load", 0], positive=["pos", 0], negative=["pos", 0],
                           latent_image=["empty", 0], steps=2),
            "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
            "save": node("PreviewImage", images=["decode", 0]),
        }  # fmt: skip

    pictures = []
    for dry_run in (True, False):
        _, specs = local_specs()
        parsed = graph_from_json(filled(graph(dry_run), specs), specs)
        outcome = run_local(parsed, world.host, keep=("VAEDecode",)).outcome
        pictures.append(outcome.results["decode"][0][0])
    assert torch.allclose(*pictures, atol=1e-5)
