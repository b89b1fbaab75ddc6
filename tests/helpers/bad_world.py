"""A working directory with things that must survive, and everything bad that may be put into it."""

import shutil
from pathlib import Path

import pytest
import torch

from atelier_tests.helpers.pictures import png_header_only, save_picture
from lora_atelier.core import files as core_files
from lora_atelier.core.tensors import TensorFile, write_tensors
from lora_atelier.headless.terminal import TerminalHost


class World:
    """A working directory with a base, a data set, a LoRA and a finished run that must stay as they are."""

    def __init__(self, folder: Path) -> None:
        self.host = TerminalHost(folder / "atelier", quiet=True)
        self.base_dir = folder / "atelier"
        self.outside = folder / "outside"
        self.input = self.host.input_dir()
        self.output = self.host.output_dir()
        self.checkpoints = self.base_dir / "models" / "checkpoints"
        self.loras = self.base_dir / "models" / "loras"
        self.taggers = self.base_dir / "models" / "taggers"
        for shade in range(3):
            save_picture(self.input / "good" / f"{shade}.png", (64, 64), shade=shade)
            (self.input / "good" / f"{shade}.txt").write_text("red, circle", encoding="utf-8")
        save_picture(self.outside / "a.png", (64, 64))
        write_tensors(self.loras / "good.safetensors", lora_tensors(), {})
        run = self.output / "atelier" / "runs" / "precious-12345678"
        run.mkdir(parents=True)
        (run / "manifest.json").write_text('{"precious": true}', encoding="utf-8")
        (self.loras / "atelier" / "precious").mkdir(parents=True)
        write_tensors(self.loras / "atelier" / "precious" / "precious.safetensors", lora_tensors(), {})


def lora_tensors(stem="lora_unet_down_blocks_0_attentions_0_proj_in", width=64):
    return {
        f"{stem}.lora_down.weight": torch.ones(2, width, 1, 1),
        f"{stem}.lora_up.weight": torch.ones(width, 2, 1, 1),
        f"{stem}.alpha": torch.tensor(1.0),
    }


def broken_pictures(world):
    (world.input / "broken").mkdir()
    (world.input / "broken" / "a.png").write_bytes(b"not a picture")
    (world.input / "broken" / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (world.input / "broken" / "c.webp").write_bytes(b"")


def empty_folder(world):
    (world.input / "empty").mkdir()


def thin_picture(world):
    save_picture(world.input / "thin" / "a.png", (1, 10000))


def giant_claim(world):
    (world.input / "giant").mkdir()
    (world.input / "giant" / "a.png").write_bytes(png_header_only(60000, 60000))


def caption_folder(world):
    save_picture(world.input / "captioned" / "a.png", (64, 64))
    (world.input / "captioned" / "a.txt").mkdir()


def caption_bytes(world):
    save_picture(world.input / "bytes" / "a.png", (64, 64))
    (world.input / "bytes" / "a.txt").write_bytes(b"\xff\xfe\x00broken\xd8")


def link_outside(world):
    try:
        (world.input / "link").symlink_to(world.outside, target_is_directory=True)
    except OSError:
        pytest.skip("no symbolic links here")


def folder_is_file(world):
    (world.input / "file").write_bytes(b"x")


def truncated_base(world):
    data = (world.checkpoints / "tiny.safetensors").read_bytes()
    (world.checkpoints / "cut.safetensors").write_bytes(data[: len(data) // 2])


def lora_as_base(world):
    shutil.copyfile(world.loras / "good.safetensors", world.checkpoints / "lora.safetensors")


def foreign(name, tensors):
    def make(world):
        write_tensors(world.checkpoints / name, {key: torch.zeros(shape) for key, shape in tensors.items()}, {})

    return make


UNET = "model.diffusion_model."
CONTEXT = f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
vae_as_base = foreign(
    "vae.safetensors", {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)}
)
sd2_as_base = foreign("sd2.safetensors", {f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3), CONTEXT: (320, 1024)})
sdxl_as_base = foreign(
    "sdxl.safetensors",
    {
        f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
        f"{UNET}label_emb.0.0.weight": (1280, 2816),
        f"{UNET}input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight": (640, 2048),
        "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight": (768,),
        "conditioner.embedders.1.model.ln_final.weight": (1280,),
    },
)
flux_as_base = foreign("flux.safetensors", {f"{UNET}double_blocks.0.img_attn.qkv.weight": (8, 8)})


def garbage_base(world):
    (world.checkpoints / "text.safetensors").write_bytes(b"<html>404 not found</html>" * 10)


def empty_base(world):
    (world.checkpoints / "zero.safetensors").write_bytes(b"")


def no_vae_base(world):
    with TensorFile(world.checkpoints / "tiny.safetensors") as file:
        kept = {key: file.tensor(key) for key in file.keys() if not key.startswith("first_stage_model.")}  # noqa: SIM118
        write_tensors(world.checkpoints / "novae.safetensors", kept, dict(file.metadata))


def pickle_file(world):
    (world.checkpoints / "old.ckpt").write_bytes(b"\x80\x04not really")


def disk_full(world):
    class Full:
        total, used, free = 10**9, 10**9, 1000

    world.patch.setattr(core_files.shutil, "disk_usage", lambda path: Full)


def output_blocked(world):
    shutil.rmtree(world.output / "atelier")
    (world.output / "atelier").write_bytes(b"in the way")


def loras_blocked(world):
    shutil.rmtree(world.loras / "atelier")
    (world.loras / "atelier").write_bytes(b"in the way")


def cut_lora(world):
    data = (world.loras / "good.safetensors").read_bytes()
    (world.loras / "cut.safetensors").write_bytes(data[:-20])


def foreign_lora(world):
    write_tensors(world.loras / "sdxl.safetensors", lora_tensors("lora_te2_text_model_encoder_layers_31_mlp_fc1"), {})


def narrow_lora(world):
    write_tensors(world.loras / "narrow.safetensors", lora_tensors(width=32), {})


def base_as_lora(world):
    shutil.copyfile(world.checkpoints / "tiny.safetensors", world.loras / "base.safetensors")


def tagger_without_table(world):
    (world.taggers / "half").mkdir(parents=True)
    (world.taggers / "half" / "model.onnx").write_bytes(b"no onnx")


def bad_settings(world):
    (world.host.user_dir() / "settings.json").write_text('{"roots": "D:/x"', encoding="utf-8")


def bad_roots(world):
    (world.host.user_dir() / "settings.json").write_text('{"roots": 5}', encoding="utf-8")


def broken_image(world):
    (world.input / "broken.png").write_bytes(b"not a picture")


def small_image(world):
    save_picture(world.input / "small.png", (5, 5))
