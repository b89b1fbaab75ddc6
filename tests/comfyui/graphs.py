"""Graphs in API form, and the pictures they need."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from atelier_tests.helpers.comfy_server import Comfy
from lora_atelier.core.params import Params
from lora_atelier.dataset.scan import DatasetParams
from lora_atelier.networks.lora import LoraParams
from lora_atelier.pico import world

PICO = "pico (built in)"
Graph = dict[str, dict[str, Any]]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """One node; a wire is ["id", output]."""
    return {"class_type": class_type, "inputs": inputs}


def defaults(params: type[Params]) -> dict[str, Any]:
    """The widgets of a node that is made of these parameters, as they stand at first."""
    return {parameter.name: parameter.default for parameter in params.parameters()}


def draw_folder(folder: Path, count: int, *, seed: int = 0) -> None:
    """A plain folder of drawings with captions."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for number in range(count):
        scene = world.CONCEPTS["kest"].apply(world.random_scene(rng, bucket_px=(96, 96), count=1))
        world.draw(scene).save(folder / f"{number:03d}.png")
        (folder / f"{number:03d}.txt").write_text(f"lumo kest, {scene.colour}, {scene.background}", encoding="utf-8")


def training(folder: str, *, base: str = PICO, **settings: Any) -> Graph:
    """Open base (1) and data set (2), network (3), train (4)."""
    train = {
        "run_name": "",
        "steps": 6,
        "batch_size": 2,
        "resolution_px": 96,
        "seed": 0,
        "train_unet": True,
        "train_text_encoder": True,
        "precision": "fp32",
        "mode": "resume",
        "save_every_steps": 0,
        "clip_skip": 1,
        "gradient_checkpointing": False,
        "save_every_epochs": 0,
        "keep_last": 0,
        "save_dtype": "fp16",
        "gradient_accumulation_steps": 1,
        "max_grad_norm": 1.0,
        "prior_loss_weight": 1.0,
        "bucket_step_px": 8,
        "bucket_min_px": 32,
        "bucket_max_px": 128,
        "upscale": True,
        **settings,
    }
    opened = {
        "layout": "auto",
        "repeats": 1,
        "shuffle_captions": True,
        "keep_tokens": 1,
        "caption_prefix": "",
        "caption_dropout": 0.0,
        "flip": False,
        "recursive": True,
        "class_text": "",
        "tag_dropout": 0.0,
        "caption_extension": ".txt",
        "verify_pictures": False,
    }
    return {
        "1": node("AtelierOpenBase", base_name=base, dtype="fp32"),
        "2": node("AtelierOpenDataset", folder=folder, reg_folder="", **{**defaults(DatasetParams), **opened}),
        "3": node("AtelierNetworkLora", **{**defaults(LoraParams), "rank": 4, "alpha": 4.0}),
        "4": node("AtelierTrainLora", base=["1", 0], dataset=["2", 0], network=["3", 0], **train),
    }


def core_drawing(
    model: list[Any], clip: list[Any], vae: list[Any], *, prompt: str, seed: int, size_px: int, steps: int = 4
) -> Graph:
    """Nodes c1 to c6: core nodes that draw one picture and save it."""
    return {
        "c1": node("CLIPTextEncode", clip=clip, text=prompt),
        "c2": node("CLIPTextEncode", clip=clip, text="blurry"),
        "c3": node("EmptyLatentImage", width=size_px, height=size_px, batch_size=1),
        "c4": node(
            "KSampler",
            model=model,
            positive=["c1", 0],
            negative=["c2", 0],
            latent_image=["c3", 0],
            seed=seed,
            steps=steps,
            cfg=6.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
        ),
        "c5": node("VAEDecode", samples=["c4", 0], vae=vae),
        "c6": node("SaveImage", images=["c5", 0], filename_prefix="core"),
    }


def grid(
    model: list[Any],
    clip: list[Any],
    vae: list[Any],
    *,
    prompt: str,
    seed: int,
    size_px: int,
    steps: int = 4,
    **axes: Any,
) -> dict[str, Any]:
    """A grid with the settings of `core_drawing`."""
    return node(
        "AtelierXYGrid",
        model=model,
        clip=clip,
        vae=vae,
        prompt=prompt,
        negative="blurry",
        seed=seed,
        steps=steps,
        cfg=6.0,
        sampler="euler",
        scheduler="normal",
        width_px=size_px,
        height_px=size_px,
        **axes,
    )


def picture(comfy: Comfy, entry: dict[str, Any], node_id: str, index: int = 0) -> np.ndarray:
    """One picture of a node's output, uint8 [h, w, 3]."""
    data = comfy.image(entry["outputs"][node_id]["images"][index])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def run_folders(comfy: Comfy) -> list[Path]:
    """The runs on disk."""
    return sorted(path for path in (comfy.base / "output/atelier/runs").glob("*") if path.is_dir())


def lora_names(comfy: Comfy) -> list[str]:
    """The LoRAs as the core loader lists them."""
    return list(comfy.get("/object_info/LoraLoader")["LoraLoader"]["input"]["required"]["lora_name"][0])
