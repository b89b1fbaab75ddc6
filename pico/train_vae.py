"""Training of the 8x autoencoder on drawings of every body and on scribbles.

Like the real one it is a general codec: it meets rings and crosses as mere forms and stripes of every direction and
colour, but no picture of a whole concept. UNet and text encoder meet none of these.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from . import sizes, world
from .muon import muon_and_adamw, set_rates
from .progress_file import ProgressLine, load_state, save_state

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class VaeTraining:
    """What decides the autoencoder's weights."""

    steps: int = 3600
    seed: int = 11
    learning_rate: float = 2e-3
    outer_learning_rate: float = 1e-3
    warmup_steps: int = 50
    decay_share: float = 0.5
    kl_weight: float = 2e-4
    edge_weight: float = 0.5
    scribble_share: float = 0.2
    striped_share: float = 0.25
    crop_px: int = 64
    crop_share: float = 0.5
    crop_batch: int = 8
    full_batch: int = 6
    fp32_share: float = 0.1
    save_every_steps: int = 200


def pictures_to_tensor(pictures: list[Image.Image]) -> Tensor:
    """[n, 3, height, width] in -1..1 from equally sized RGB pictures."""
    pixels = np.stack([np.asarray(p, dtype=np.float32) for p in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous() / 127.5 - 1.0


def training_batch(settings: VaeTraining, step: int) -> Tensor:
    """The pictures of one step; crops of `crop_px` in the first `crop_share` of the run, whole pictures after."""
    rng = random.Random(f"vae {settings.seed} {step}")
    width_px, height_px = rng.choice(world.BUCKETS_PX)
    cropped = step < settings.crop_share * settings.steps
    pictures = []
    for _ in range(settings.crop_batch if cropped else settings.full_batch):
        if rng.random() < settings.scribble_share:
            picture = world.scribble(rng, width_px, height_px)
        else:
            stripes = world.random_stripes(rng) if rng.random() < settings.striped_share else None
            picture = world.draw(_scene(rng, (width_px, height_px)), stripes)
        if cropped:
            left, top = rng.randint(0, width_px - settings.crop_px), rng.randint(0, height_px - settings.crop_px)
            picture = picture.crop((left, top, left + settings.crop_px, top + settings.crop_px))
        pictures.append(picture)
    return pictures_to_tensor(pictures)


def _scene(rng: random.Random, bucket_px: tuple[int, int]) -> world.Scene:
    while True:
        scene = (
            world.free_scene(rng, bucket_px=bucket_px)
            if rng.random() < 0.5
            else world.random_scene(rng, bucket_px=bucket_px)
        )
        if not world.concepts_shown(scene):
            return scene


def warm_flat_falling(step: int, steps: int, warmup_steps: int, decay_share: float) -> float:
    """Factor of a learning rate: linear warmup, constant, then a straight line to zero over the last `decay_share`."""
    return min(1.0, (step + 1) / warmup_steps, (steps - step) / (decay_share * steps))


def reconstruction_loss(made: Tensor, asked: Tensor, edge_weight: float) -> Tensor:
    """Mean absolute error of pixels plus that of the differences between neighbours, which keeps edges crisp."""
    loss = (made - asked).abs().mean() + (made - asked).square().mean()
    for axis in (2, 3):
        loss = loss + edge_weight * (made.diff(dim=axis) - asked.diff(dim=axis)).abs().mean()
    return loss


def train_vae(work: Path, settings: VaeTraining) -> AutoencoderKL:
    """Train, or continue, the autoencoder; state in `work/vae.safetensors`."""
    torch.manual_seed(settings.seed)
    vae = sizes.new_vae()
    with torch.no_grad():
        vae.quant_conv.bias[sizes.LATENT_CHANNELS :] = -4.0
    optimizers = muon_and_adamw((vae,), settings.learning_rate, settings.outer_learning_rate)
    path = work / "vae.safetensors"
    first_step = load_state(path, {"vae": vae}, optimizers)
    progress = ProgressLine("vae", settings.steps, first_step)
    for step in range(first_step, settings.steps):
        set_rates(optimizers, warm_flat_falling(step, settings.steps, settings.warmup_steps, settings.decay_share))
        pictures = training_batch(settings, step)
        half = step < (1 - settings.fp32_share) * settings.steps
        torch.manual_seed(settings.seed * 1_000_003 + step)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            posterior = vae.encode(pictures).latent_dist
            made = vae.decode(posterior.sample()).sample.float()
        rebuilt = reconstruction_loss(made, pictures, settings.edge_weight)
        spread = 0.5 * (posterior.mean.float().square() + posterior.var.float() - 1 - posterior.logvar.float()).mean()
        (rebuilt + settings.kl_weight * spread).backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        done = step + 1
        with torch.no_grad():
            pixel_error = functional.l1_loss(made, pictures).item() * 127.5
        progress.tell(done, loss=rebuilt.item(), kl=spread.item(), pixel_error=pixel_error)
        if done % settings.save_every_steps == 0 or done == settings.steps:
            save_state(path, {"vae": vae}, optimizers, done)
    return vae
