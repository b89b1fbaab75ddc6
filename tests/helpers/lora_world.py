"""LoRA files and checkpoints, good and bad, in the graph runner's working directory, and graphs of the LoRA tools."""

import errno
import struct

import torch

from atelier_tests.helpers.api_graphs import changed, node
from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.lora_files import linear_places, random_parts, write_lora
from lora_atelier.core import files as core_files
from lora_atelier.core.tensors import read_header, read_tensors, write_tensors
from lora_atelier.families._spec import Place

UNET = "model.diffusion_model."
PLACE = Place(part="unet", path="mid_block.attentions.0.proj_in")


def fill(world):
    """Two LoRAs and a tuned copy of the tiny base."""
    base = world.checkpoints / "tiny.safetensors"
    every = linear_places(base)
    places = {place: every[place] for place in (PLACE, *list(every)[::30])}
    for number, name in enumerate(("one", "two")):
        parts = {
            place: random_parts("lora", shape, seed=9 * number + n) for n, (place, shape) in enumerate(places.items())
        }
        write_lora(world.loras / f"{name}.safetensors", parts, dtype=torch.float16)
    write_lora(world.loras / "dora.safetensors", {p: random_parts("dora", s) for p, s in list(places.items())[:2]})
    tensors = read_tensors(base)
    for key in list(tensors)[::40]:
        if tensors[key].ndim >= 2 and tensors[key].is_floating_point():
            tensors[key] = tensors[key] + 0.1 * torch.randn(tensors[key].shape)
    write_tensors(world.checkpoints / "tuned.safetensors", tensors, read_header(base).metadata)


def opened(name):
    return node("AtelierOpenLora", lora_name=f"{name}.safetensors")


def base_of(name="tiny"):
    return node("AtelierOpenBase", base_name=f"{name}.safetensors", dtype="fp32")


def resize(**changes):
    graph = {"lora": opened("one"), "tool": node("AtelierResizeLora", lora=["lora", 0], rank=2, dry_run=False)}
    return changed(graph, changes)


def merge(**changes):
    graph = {
        "a": opened("one"),
        "b": opened("two"),
        "tool": node("AtelierMergeLoras", lora_1=["a", 0], lora_2=["b", 0], dry_run=False),
    }
    return changed(graph, changes)


def extract(**changes):
    graph = {
        "base": base_of(),
        "tuned": base_of("tuned"),
        "tool": node("AtelierExtractLora", base=["base", 0], tuned=["tuned", 0], rank=2, dry_run=False),
    }
    return changed(graph, changes)


def spectrum(**changes):
    graph = {
        "base": base_of(),
        "tuned": base_of("tuned"),
        "tool": node("AtelierCheckpointDifference", base=["base", 0], tuned=["tuned", 0], max_layers=20),
    }
    return changed(graph, changes)


def bake(**changes):
    graph = {
        "base": base_of(),
        "lora": opened("one"),
        "tool": node("AtelierMergeLorasIntoCheckpoint", base=["base", 0], lora_1=["lora", 0], dry_run=False),
    }
    return changed(graph, changes)


def convert(**changes):
    graph = {"lora": opened("one"), "tool": node("AtelierConvertLora", lora=["lora", 0], dry_run=False)}
    return changed(graph, changes)


def edit(**changes):
    graph = {
        "lora": opened("one"),
        "tool": node("AtelierEditLoraMetadata", lora=["lora", 0], trigger_phrase="lumo", dry_run=False),
    }
    return changed(graph, changes)


def inspect(**changes):
    graph = {"lora": opened("one"), "tool": node("AtelierInspectLora", lora=["lora", 0])}
    return changed(graph, changes)


# --- what is wrong --------------------------------------------------------------------------------------------------


def bad_lora(name, make):
    """A preparation that writes one LoRA file of given tensors."""

    def prepare(world):
        write_tensors(world.loras / f"{name}.safetensors", make(), {"ss_base_model_version": "sd_v1"})

    return prepare


STEM = "lora_unet_mid_block_attentions_0_proj_in"


def kohya(down=(2, 128, 1, 1), up=(128, 2, 1, 1), stem=STEM, fill_with=1.0):
    return {
        f"{stem}.lora_down.weight": torch.full(down, fill_with),
        f"{stem}.lora_up.weight": torch.full(up, fill_with),
    }


nan_lora = bad_lora("bad", lambda: kohya(fill_with=float("nan")))
dead_lora = bad_lora("bad", lambda: kohya(fill_with=0.0))
half_module = bad_lora("bad", lambda: {f"{STEM}.lora_down.weight": torch.ones(2, 128, 1, 1)})
rank_zero = bad_lora("bad", lambda: kohya(down=(0, 128, 1, 1), up=(128, 0, 1, 1)))
unlike_ranks = bad_lora("bad", lambda: kohya(up=(128, 3, 1, 1)))
narrow = bad_lora("bad", lambda: kohya(down=(2, 60, 1, 1), up=(60, 2, 1, 1)))
strange_layer = bad_lora("bad", lambda: kohya(stem="lora_unet_mid_block_dreams_0"))
glora = bad_lora("bad", lambda: {**kohya(), f"{STEM}.a1.weight": torch.ones(2, 2)})
alphas = bad_lora("bad", lambda: {**kohya(), f"{STEM}.alpha": torch.ones(3)})
twice = bad_lora("bad", lambda: {**kohya(), **kohya(stem="lora_unet_middle_block_1_proj_in")})
too_strong = bad_lora("bad", lambda: kohya(fill_with=3e20))
flux_lora = bad_lora("bad", lambda: kohya(stem="lora_unet_double_blocks_0_img_attn_qkv"))


def sdxl_named(world):
    parts = {PLACE: random_parts("lora", (96, 96))}
    write_lora(world.loras / "bad.safetensors", parts, family="sdxl")


def elsewhere(world):
    """A LoRA none of whose layers the tiny base has."""
    place = Place(part="text_encoder", path="text_model.encoder.layers.11.mlp.fc1")
    write_lora(world.loras / "bad.safetensors", {place: random_parts("lora", (64, 64))})


def cut_short(world):
    data = (world.loras / "one.safetensors").read_bytes()
    (world.loras / "bad.safetensors").write_bytes(data[:-100])


def junk_header(world):
    (world.loras / "bad.safetensors").write_bytes(struct.pack("<Q", 3_000_000_000) + b"{" * 4096)


def broken_header(world):
    text = b'{"a":{"dtype":"F16","shape":[2],"data_offsets":[0,400]}}'
    (world.loras / "bad.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * 4)


def web_page(world):
    (world.loras / "bad.safetensors").write_bytes(b"<!DOCTYPE html><html>login</html>" * 20)


def taken(world):
    write_tensors(world.loras / "mine.safetensors", {"x": torch.ones(2)}, {})


def folder_in_the_way(world):
    (world.loras / "mine.safetensors").mkdir()


def full_disk(world):
    """The disk says in the middle of a file that it is full."""
    world.patch.setattr(core_files, "free_bytes", lambda path: 10 * 2**40)

    def refuse(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    world.patch.setattr(core_files, "_sync_tree", refuse)


def no_space(world):
    world.patch.setattr(core_files, "free_bytes", lambda path: 1000)


def same_base(world):
    (world.checkpoints / "tuned.safetensors").unlink()  # a hard link that other tests share
    (world.checkpoints / "tuned.safetensors").write_bytes((world.checkpoints / "tiny.safetensors").read_bytes())


def unlike_base(world):
    write_tiny_checkpoint(world.checkpoints / "xl.safetensors", family="sdxl")


def nan_base(world):
    tensors = read_tensors(world.checkpoints / "tiny.safetensors")
    key = f"{UNET}input_blocks.1.1.proj_in.weight"
    tensors[key] = torch.full_like(tensors[key], float("nan"))
    write_tensors(
        world.checkpoints / "tuned.safetensors", tensors, read_header(world.checkpoints / "tiny.safetensors").metadata
    )


def wide_base(world):
    tensors = read_tensors(world.checkpoints / "tiny.safetensors")
    key = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_v.weight"
    tensors[key] = torch.zeros(tensors[key].shape[0] + 2, tensors[key].shape[1])
    write_tensors(
        world.checkpoints / "tuned.safetensors", tensors, read_header(world.checkpoints / "tiny.safetensors").metadata
    )
