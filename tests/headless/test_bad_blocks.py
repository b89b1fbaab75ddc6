"""Bad block weights, tags, presets and bakes, through the graph runner: each cause ends in one clear sentence."""

import json

import pytest
import torch

from atelier_tests.headless.test_bad_input import check_message, contents, run, tiny_base, world
from atelier_tests.helpers.api_graphs import changed, node
from atelier_tests.helpers.bad_world import lora_tensors
from lora_atelier.core import files as core_files
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.tensors import write_tensors

__all__ = ["tiny_base", "world"]

STEM = "lora_unet_down_blocks_0_attentions_0_proj_in"


def block_map(**changes):
    """A LoRA and the map of its blocks."""
    graph = {
        "lora": node("AtelierOpenLora", lora_name="good.safetensors"),
        "map": node("AtelierLoraBlockMap", lora=["lora", 0]),
    }
    return changed(graph, changes)


def bake(weights="ALL0.5", **changes):
    """A LoRA and its baked file."""
    graph = {
        "lora": node("AtelierOpenLora", lora_name="good.safetensors", block_weights=weights),
        "bake": node("AtelierBakeLora", lora=["lora", 0], file_name="baked"),
    }
    return changed(graph, changes)


def prompt(text):
    """LoRA tags of a prompt, applied and drawn."""
    return {
        "load": node("CheckpointLoaderSimple", ckpt_name="tiny.safetensors"),
        "tags": node("AtelierLoraPrompt", model=["load", 0], clip=["load", 1], prompt=text),
        "text": node("CLIPTextEncode", clip=["tags", 1], text=["tags", 2]),
        "empty": node("EmptyLatentImage", width=64, height=64, batch_size=1),
        "sample": node(
            "KSampler", model=["tags", 0], positive=["text", 0], negative=["text", 0], latent_image=["empty", 0],
            steps=1,
        ),
        "decode": node("VAEDecode", samples=["sample", 0], vae=["load", 2]),
        "save": node("SaveImage", images=["decode", 0]),
    }  # fmt: skip


def weights(text):
    return block_map(lora__block_weights=text)


def owner(name, text):
    """A file of the owner's in the user folder."""

    def write(world):
        world.host.user_dir().mkdir(parents=True, exist_ok=True)
        data = text if isinstance(text, bytes) else text.encode("utf-8")
        (world.host.user_dir() / name).write_bytes(data)

    return write


def lora_file(name, tensors, metadata=None):
    def write(world):
        write_tensors(world.loras / name, tensors, metadata or {})

    return write


def with_dora():
    return {**lora_tensors(), f"{STEM}.dora_scale": torch.ones(1, 64, 1, 1)}


def with_nan():
    tensors = lora_tensors()
    tensors[f"{STEM}.lora_up.weight"][0] = torch.nan
    return tensors


def disk_full(world):
    class Full:
        total, used, free = 10**9, 10**9, 1000

    world.patch.setattr(core_files.shutil, "disk_usage", lambda path: Full)


def two_of_a_name(world):
    for folder in ("a", "b"):
        write_tensors(world.loras / folder / "twin.safetensors", lora_tensors(), {})


nothing = None
XL = {"ss_base_model_version": "sdxl_base_v1-0"}
XL_TENSORS = lora_tensors("lora_unet_input_blocks_4_1_proj_in")
CASES = [
    # id, preparation, graph, what the message must say
    ("17 numbers for SDXL", lora_file("xl.safetensors", XL_TENSORS, XL),
     block_map(lora__lora_name="xl.safetensors", lora__block_weights=",".join("1" * 17)), ["17", "12", "20", "sd15"]),
    ("21 numbers of two tools", lora_file("xl.safetensors", XL_TENSORS, XL),
     block_map(lora__lora_name="xl.safetensors", lora__block_weights=",".join("1" * 21)),
     ["two tools", "form=supermerger", "form=inspire"]),
    ("a preset of another architecture", nothing, weights("ArtStyle"), ["ArtStyle has 12", "17", "sdxl"]),
    ("a preset for Flux", nothing, weights("FLUXALL"), ["61 are for Flux"]),
    ("the shared vector with a number missing", nothing,
     weights("1,1,1,1,1,1,1,1,1,0.2,0.2,0.5,1,1,0,0,0,0.2,0,0,0.8,1,1,1,1"), ["25 numbers where 26"]),
    ("a letter without a value", nothing, weights("AOUT"), ["letter A", "A=0.5"]),
    ("a word among numbers", nothing, weights("1,0,half" + ",1" * 14), ["'half'", "not a number"]),
    ("infinite number", nothing, weights("NIN MID=inf"), ["MID=inf", "no number"]),
    ("unknown block", nothing, weights("IN44=0.5"), ["IN44", "did you mean|allowed"]),
    ("block range backwards", nothing, weights("IN07-04=0"), ["IN07-04", "backwards"]),
    ("two vectors", nothing, weights("NIN:OUTALL"), ["OUTALL", "second vector"]),
    ("unknown form", nothing, weights("NIN form=mine"), ["form=mine", "inspire"]),
    ("blocks of Flux", nothing, weights("double_blocks[0-10]"), ["Flux"]),
    ("Inspire's form beyond the file", nothing, weights("%in9=0"), ["in9", "1 IN"]),
    ("Inspire's form with a strange word", nothing, weights("%up=0"), ["'up=0'", "default="]),
    ("a cell's word without a grid", nothing, block_map(map__block_weights="XYZ"), ["XYZ", "grid"]),
    ("unknown elemental set", nothing, weights("lbwe=ATTNDEEPOF"), ["ATTNDEEPOF", "did you mean 'ATTNDEEPOFF'"]),
    ("an elemental rule without a number", nothing, weights("lbwe=IN05:attn:off"), ["IN05:attn:off", "BLOCKS:"]),
    ("an elemental rule for no block", nothing, weights("lbwe=IN55:attn:0"), ["IN55"]),
    ("a step that is no number", nothing, weights("NIN:start=soon"), ["start=soon", "sampler step"]),
    ("a step range without an end", nothing, weights("step=5"), ["step=5", "5-10"]),
    ("a stop before the start", nothing, weights("step=9-4"), ["step 4", "start 9"]),
    ("a broken line of the owner's presets", owner("block_presets.txt", "MINE:1,0\nBROKEN 1,2\n"), weights("NIN"),
     ["block_presets.txt line 2", "NAME:number"]),
    ("the owner's presets in another encoding", owner("block_presets.txt", b"MINE:\xff\xfe1"), weights("NIN"),
     ["block_presets.txt", "UTF-8"]),
    ("a preset of the owner's of no known length", owner("block_presets.txt", "MINE:1,0,1\n"), weights("MINE"),
     ["MINE has 3", "block_presets.txt line 1", "17"]),
    ("a broken line of the owner's elemental sets", owner("block_elements.txt", "\nMINE:IN:attn:off\n"),
     weights("lbwe=MINE"), ["block_elements.txt line 2", "attn:off"]),
    ("a LoRA with NaN", lora_file("nan.safetensors", with_nan()), block_map(lora__lora_name="nan.safetensors"),
     ["nan.safetensors", "NaN", "lora_up"]),
    ("a module of no layer", lora_file("odd.safetensors", {**lora_tensors(), **lora_tensors("lora_unet_odd_thing")}),
     block_map(lora__lora_name="odd.safetensors"), ["odd_thing", "no layer|no block"]),
    ("unknown theme", nothing, block_map(map__theme="sepia"), ["theme", "dark"]),
    ("a DoRA baked at half", lora_file("dora.safetensors", with_dora()),
     bake(lora__lora_name="dora.safetensors", lora__strength_model=0.5), ["1 DoRA modules", "Give them 0 or 1"]),
    ("steps baked", nothing, bake("NIN:step=2-4"), ["sampler steps", "a file knows no steps"]),
    ("nothing left to bake", nothing, bake("NONE"), ["would hold nothing"]),
    ("baked over its input", nothing, bake(bake__file_name="good"), ["good.safetensors", "never replaced"]),
    ("baked outside the loras folder", nothing, bake(bake__file_name="../../evil"), [r"'\.\.'", "without"]),
    ("baked under a reserved name", nothing, bake(bake__file_name="nul"), ["nul", "reserved"]),
    ("baked as an old file", nothing, bake(bake__file_name="x.pt"), [".pt", ".safetensors"]),
    ("baked onto a full disk", disk_full, bake(), ["disk|space", "free"]),
    ("a tag that is not closed", nothing, prompt("a cat <lora:good:1"), ["<lora:good:1", "not closed"]),
    ("a tag without a name", nothing, prompt("<lora::1>"), ["names no file"]),
    ("a tag whose file is not there", nothing, prompt("<lora:goood:1>"), ["goood", "did you mean 'good'"]),
    ("a tag that climbs out", nothing, prompt("<lora:../../outside/x:1>"), ["LoRA in the prompt", "outside"]),
    ("a tag with an absolute path", nothing, prompt("<lora:/tmp/x.safetensors:1>"), ["LoRA in the prompt"]),
    ("a tag that two files fit", two_of_a_name, prompt("<lora:twin:1>"), ["a/twin", "b/twin", "folder"]),
    ("a tag whose strength is a word", nothing, prompt("<lora:good:te=much>"), ["te=much", "not a number"]),
    ("a tag that is too strong", nothing, prompt("<lora:good:1000>"), ["1000", "from -100 to 100"]),
    ("a tag with a strength per step", nothing, prompt("<lora:good:0.1@1,0.6@6>"), ["step to step", "start="]),
    ("a tag with an unknown lbw", nothing, prompt("<lora:good:1:lbw=NINN>"), ["<lora:good:1:lbw=NINN>", "NIN"]),
    ("a hundred tags", nothing, prompt("<lora:good:1>" * 100), ["100 LoRA tags", "64"]),
]  # fmt: skip


@pytest.mark.parametrize(("prepare", "graph", "said"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_bad_blocks(world, monkeypatch, prepare, graph, said):
    world.patch = monkeypatch
    if prepare is not None:
        prepare(world)
    before = contents(world.base_dir)
    with pytest.raises(AtelierError) as caught:
        run(world, json.loads(json.dumps(graph)))
    check_message(str(caught.value), said)
    monkeypatch.undo()
    after = contents(world.base_dir)
    assert {name: after.get(name) for name in before} == before, "something that was there is lost or changed"
    new = set(after) - set(before)
    assert not [name for name in new if name.endswith(".tmp") or name.startswith(("models", "input"))], new


def test_enough_causes():
    assert len({case[0] for case in CASES}) == len(CASES) >= 45


def test_a_baked_file_is_read_again(world):
    run(world, bake("ALL:lbwe=:proj_in:0.5"))
    run(world, {**block_map(lora__lora_name="good.safetensors")})
    assert (world.loras / "baked.safetensors").is_file()
