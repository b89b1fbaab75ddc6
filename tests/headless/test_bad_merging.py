"""Bad input of merges through the graph runner: one clear sentence each, inputs untouched, no half file left."""

import errno
import json
import shutil
import struct

import pytest
import torch

from atelier_tests.headless.test_bad_input import check_message, contents, run, tiny_base, world
from atelier_tests.helpers.api_graphs import node
from atelier_tests.helpers.full_size import write_tiny_checkpoint
from lora_atelier.core import stream
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors

__all__ = ["tiny_base", "world"]

UNET = "model.diffusion_model."
OUT = f"{UNET}out.2.weight"


def pair(method="WeightedSum", first="tiny.safetensors", second="other.safetensors", out="out", extra=None, **values):
    """Two bases into one method, saved."""
    graph = {
        "a": node("AtelierOpenBase", base_name=first, dtype="fp32"),
        "b": node("AtelierOpenBase", base_name=second, dtype="fp32"),
        "merge": node(f"AtelierMerge{method}", **{"a": ["a", 0], "b": ["b", 0], **values}),
        "save": node("AtelierSaveMerge", model=["merge", 0], name=out),
    }
    graph.update(extra or {})
    return graph


def recipe(text, name="out", **values):
    """A recipe, saved."""
    save = {key[6:]: value for key, value in values.items() if key.startswith("save__")}
    rest = {key: value for key, value in values.items() if not key.startswith("save__")}
    return {
        "merge": node("AtelierMergeRecipe", recipe=text, **rest),
        "save": node("AtelierSaveMerge", model=["merge", 0], name=name, **save),
    }


def blocks(weights="", elements=""):
    """Block weights on a weighted sum."""
    extra = {"w": node("AtelierMergeBlocks", weights=weights, elements=elements, family="sd15")}
    return pair(extra=extra, weights=["w", 0])


def edited(name, edit, source="tiny.safetensors"):
    """A checkpoint with some tensors changed."""

    def make(world):
        path = world.checkpoints / source
        tensors = read_tensors(path)
        edit(tensors)
        write_tensors(world.checkpoints / name, tensors, read_header(path).metadata)

    return make


def infinite(tensors):
    tensors[OUT] = tensors[OUT].clone()
    tensors[OUT][0, 0, 0, 0] = float("inf")


def broken(tensors):
    tensors[OUT] = torch.full_like(tensors[OUT], float("nan"))


def huge(tensors):
    tensors[OUT] = torch.full_like(tensors[OUT], 40000.0)


def without_blocks(tensors):
    for key in [key for key in tensors if f"{UNET}middle_block.0." in key]:
        del tensors[key]


def without_text(tensors):
    for key in [key for key in tensors if key.startswith("cond_stage_model.")]:
        del tensors[key]


def cut(world):
    data = (world.checkpoints / "other.safetensors").read_bytes()
    (world.checkpoints / "cut.safetensors").write_bytes(data[: len(data) * 2 // 3])


def cut_in_the_header(world):
    (world.checkpoints / "head.safetensors").write_bytes((world.checkpoints / "other.safetensors").read_bytes()[:500])


def junk_header(world):
    with open(world.checkpoints / "junk.safetensors", "wb") as file:
        file.write(struct.pack("<Q", 3 * 2**30))
        file.truncate(3 * 2**30 + 8)


def overlapping(world):
    header = {"x": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]},
              "y": {"dtype": "F16", "shape": [4], "data_offsets": [4, 12]}}  # fmt: skip
    text = json.dumps(header).encode()
    (world.checkpoints / "overlap.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(12))


def sdxl(world):
    write_tiny_checkpoint(world.checkpoints / "xl.safetensors", family="sdxl")


def other_sizes(world):
    write_tiny_checkpoint(world.checkpoints / "small.safetensors")


def old_file(world):
    (world.checkpoints / "old.ckpt").write_bytes(b"PK\x03\x04rest")


def lora_there(world):
    shutil.copyfile(world.loras / "good.safetensors", world.checkpoints / "lora.safetensors")


def stranger_there(world):
    shutil.copyfile(world.checkpoints / "other.safetensors", world.checkpoints / "out.safetensors")


def folder_there(world):
    (world.checkpoints / "out.safetensors").mkdir()
    (world.checkpoints / "out.safetensors" / "x").write_bytes(b"x")


def full_in_the_middle(world):
    real, calls = stream.os.pwrite, []

    def pwrite(descriptor, data, position):
        calls.append(position)
        if len(calls) > 30:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, position)

    world.patch.setattr(stream.os, "pwrite", pwrite)


def no_space(world):
    from lora_atelier.core import files as core_files

    class Full:
        total, used, free = 10**9, 10**9, 1000

    world.patch.setattr(core_files.shutil, "disk_usage", lambda path: Full)


def vanishing(world):
    """The file becomes shorter after its header was read."""
    shutil.copyfile(world.checkpoints / "other.safetensors", world.checkpoints / "brief.safetensors")
    real = stream.TensorReader._file_now

    def file_now(self):
        if self.path.name == "brief.safetensors" and self.path.stat().st_size > 10000:
            with open(self.path, "r+b") as file:
                file.truncate(9000)
        return real(self)

    world.patch.setattr(stream.TensorReader, "_file_now", file_now)


def no_recipe(world):
    return {"read": node("AtelierReadMergeRecipe", base_name="other.safetensors")}


nothing = None
delta = {"d": node("AtelierMergeDifference", a=["a", 0], b=["b", 0])}
CASES = [
    # id, preparation, graph, what the message must say
    ("SDXL into SD1.x", sdxl, pair(second="xl.safetensors"),
     ["Stable Diffusion 1.x", "Stable Diffusion XL", "one kind"]),
    ("other sizes", other_sizes, pair(second="small.safetensors"), ["shape", "not versions of one model"]),
    ("truncated file", cut, pair(second="cut.safetensors"), ["cut.safetensors is truncated", "download"]),
    ("cut in the header", cut_in_the_header, pair(second="head.safetensors"), ["ends inside its header"]),
    ("3 GB of junk header", junk_header, pair(second="junk.safetensors"), ["junk.safetensors is not a safetensors"]),
    ("overlapping tensors", overlapping, pair(second="overlap.safetensors"), ["broken header", "does not fit"]),
    ("missing keys", edited("holes.safetensors", without_blocks), pair(second="holes.safetensors"),
     ["holes.safetensors lacks", "UNet", "incomplete"]),
    ("no text encoder anywhere", edited("mute.safetensors", without_text),
     pair(first="mute.safetensors", second="mute.safetensors"), ["mute.safetensors has no text encoder"]),
    ("NaN tensors", edited("nan.safetensors", broken), pair(second="nan.safetensors"),
     ["nan.safetensors holds NaN or infinite numbers in model.diffusion_model.out.2.weight", "leave it out"]),
    ("infinite tensor seen whole", edited("inf.safetensors", infinite), pair("Slerp", second="inf.safetensors"),
     ["inf.safetensors holds NaN or infinite"]),
    ("too large for fp16", edited("huge.safetensors", huge),
     {**pair("AddDifference", first="huge.safetensors", c=["b", 0], b=["a", 0], alpha=4.0),
      "save": node("AtelierSaveMerge", model=["merge", 0], name="out", dtype="fp16")}, ["F16 cannot hold", "bf16"]),
    ("old checkpoint in a recipe", old_file, recipe("x = tiny + old.ckpt, 0.5"), ["old.ckpt is an old", "Convert"]),
    ("a LoRA as a model", lora_there, recipe("x = tiny + lora, 0.5"), ["lora.safetensors is a LoRA", "checkpoint"]),
    ("a file that shrinks", vanishing, pair(second="brief.safetensors"), ["brief.safetensors became shorter"]),
    ("output is an input", nothing, pair(out="tiny"), ["is the file of tiny.safetensors", "another name"]),
    ("output is a stranger", stranger_there, pair(), ["out.safetensors is there already", "replace"]),
    ("output is a folder", folder_there, pair(), ["out.safetensors", "folder|cannot|read"]),
    ("output climbs out", nothing, pair(out="../../evil"), [r"'\.\.'", "without"]),
    ("output with an absolute path", nothing, lambda w: pair(out=str(w.outside / "x")), ["outside"]),
    ("output as ckpt", nothing, pair(out="x.ckpt"), ["asks for a .ckpt file", "leave the ending out"]),
    ("reserved name", nothing, pair(out="aux"), ["reserved"]),
    ("disk full in mid-write", full_in_the_middle, pair(), ["disk is full"]),
    ("not enough space", no_space, pair(), ["needs .* MiB of disk space", "free some space"]),
    ("a difference saved", nothing, {**pair(), **delta, "save": node("AtelierSaveMerge", model=["d", 0], name="out")},
     ["difference of two models, not a model", "add_delta"]),
    ("a difference as a model", nothing, pair(extra=delta, b=["d", 0]),
     ["a difference of two models", "cannot be mixed"]),
    ("a model as a difference", nothing, pair("AddDelta", b=None, delta=["b", 0]), ["needs a difference", "delta"]),
    ("models without an ancestor", nothing, pair("Ties", a=None, b=None, model_1=["a", 0], model_2=["b", 0]),
     ["common ancestor", "base"]),
    ("alpha out of range", nothing, pair(alpha=7.0), ["alpha is 7", "2"]),
    ("alpha is a text", nothing, pair(alpha="half"), ["alpha is 'half'", "number"]),
    ("unknown number format", nothing,
     {**pair(), "save": node("AtelierSaveMerge", model=["merge", 0], name="out", dtype="int4")}, ["dtype", "fp16"]),
    ("wrong vector length", nothing, blocks("0.5 " * 17), ["17 numbers", "25", "26"]),
    ("unknown curve", nothing, blocks("GRAD_W"), ["GRAD_W", "did you mean 'GRAD_"]),
    ("unknown row", nothing, blocks("IN15=1"), ["IN15"]),
    ("row too large", nothing, blocks("MID=30"), ["MID has the weight 30", "0 keeps A"]),
    ("malformed rule", nothing, blocks("", "IN04;attn"), ["IN04;attn", "BLOCKS:ELEMENTS:WEIGHT|elemental set"]),
    ("undefined name", nothing, recipe("x = tiny + othr, 0.5"), ["line 1", "'othr'", "did you mean 'other'"]),
    ("undefined variable", nothing, recipe("x = tiny + __BASE__, 0.5"), ["__BASE__, which has no value"]),
    ("cyclic reference", nothing, recipe("x = y + tiny, 0.5\ny = x + tiny, 0.5"),
     ["line 2, a later one", "into itself"]),
    ("reference to itself", nothing, recipe("x = __O1__ + tiny, 0.5"), ["__O1__ to itself"]),
    ("reference forward", nothing, recipe("x = __O2__ + tiny, 0.5\ny = tiny + other, 0.5"), ["line 2, which does not"]),
    ("recipe line without M", nothing, recipe("x = tiny + other"), ["line 1 of the recipe is not of the form"]),
    ("M is no number", nothing, recipe("x = tiny + other, a lot"), ["'a lot' where the number M belongs"]),
    ("M out of range", nothing, recipe("x = tiny + other, 12"), ["line 1", "alpha is 12", "-2 to 2"]),
    ("unknown option", nothing, recipe("x = tiny + other, 0.5, fp4"), ["option 'fp4'", "fp16"]),
    ("empty recipe", nothing, recipe("# nothing"), ["no line that makes a model", "OUT = A"]),
    ("unknown result", nothing, recipe("x = tiny + other, 0.5", result="y"), ["result of the recipe", "'y'"]),
    ("unknown lane to write", nothing, recipe("x = tiny + other, 0.5", save__lanes="z"),
     ["result of the recipe", "'z'"]),
    ("malformed variables", nothing, recipe("x = tiny + other, 0.5", variables="A B"), ["line 1 of the variables"]),
    ("unknown method in a recipe", nothing,
     recipe('{"version": 1, "nodes": [{"model": "tiny"}, {"merge": "sum", "inputs": [0, 0], "params": {}}]}'),
     ["unknown merge method 'sum'"]),
    ("parameter that the method lacks", nothing,
     recipe('{"version": 1, "nodes": [{"model": "tiny"}, {"merge": "slerp", "inputs": [0, 0], "params": {"k": 1}}]}'),
     ["unknown parameter", "'k'"]),
    ("broken JSON", nothing, recipe('{"version": 1'), ["not valid JSON"]),
    ("sd-mecha method without counterpart", nothing,
     recipe('version 0.1.0\nmodel "tiny"\nmodel "other"\nmerge "rotate" &0 &1'), ["line 4", "'rotate'"]),
    ("file without a recipe", nothing, no_recipe, ["other.safetensors carries no recipe"]),
    ("vae of another model", sdxl,
     {**pair(), "fix": node("AtelierRepairMerge", model=["merge", 0], vae="none.safetensors", ema="drop"),
      "save": node("AtelierSaveMerge", model=["fix", 0], name="out")}, ["vae|VAE", "none.safetensors"]),
]  # fmt: skip


@pytest.fixture(scope="module")
def second_base(tmp_path_factory, tiny_base):
    path = tmp_path_factory.mktemp("second") / "other.safetensors"
    sizes = json.loads(read_header(tiny_base).metadata["atelier.sizes"])
    return write_tiny_checkpoint(path, sizes=sizes, seed=1)


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_merging(world, second_base, monkeypatch, prepare, graph, said):
    shutil.copyfile(second_base, world.checkpoints / "other.safetensors")
    world.patch = monkeypatch
    if prepare is not None:
        prepare(world)
    before = contents(world.base_dir)
    data = graph(world) if callable(graph) else graph
    for entry in data.values():
        entry["inputs"] = {name: value for name, value in entry["inputs"].items() if value is not None}
    with pytest.raises(AtelierError) as caught:
        run(world, data)
    check_message(str(caught.value), said)
    monkeypatch.undo()
    after = contents(world.base_dir)
    brief = "models/checkpoints/brief.safetensors"  # the test cut it itself
    assert {name: after.get(name) for name in before if name != brief} == {
        name: value for name, value in before.items() if name != brief
    }, "something that was there is lost or changed"
    new = set(after) - set(before)
    assert not [name for name in new if name.endswith(".tmp") or name.startswith(("models", "input"))], new


def test_a_good_merge_passes(world, second_base):
    shutil.copyfile(second_base, world.checkpoints / "other.safetensors")
    run(world, pair(alpha=0.25))
    assert (world.checkpoints / "out.safetensors").is_file()
    assert not list(world.checkpoints.glob(".*"))


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 50
