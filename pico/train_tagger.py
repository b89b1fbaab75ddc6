"""Training of the tagger on fresh drawings: base scenes, concepts, and bodies with only some of a concept's traits.

It judges generated pictures, so it also learns from blurred, noisy, JPEG-compressed and VAE-decoded drawings.
"""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.nn import functional

from . import tagger_net, world
from .generate import tensor_to_pictures
from .muon import set_rates
from .progress_file import ProgressLine, load_state, load_tensors, save_state, save_tensors
from .train_vae import pictures_to_tensor, warm_flat_falling

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


@dataclass(frozen=True, kw_only=True)
class TaggerTraining:
    """What decides the tagger's weights."""

    steps: int = 1900
    seed: int = 37
    drawings: int = 16000
    decoded: int = 2400
    batch: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 60
    decay_share: float = 0.6
    latent_noise: float = 0.25
    warp_share: float = 0.7
    warp_px: float = 3.5
    save_every_steps: int = 300


def judged_scene(rng: random.Random) -> world.Scene:
    """A scene for training or testing the judge: half base scenes, a quarter concepts, a quarter free mixtures."""
    kind = rng.random()
    bucket = (world.NATIVE_PX, world.NATIVE_PX) if rng.random() < 0.6 else rng.choice(world.BUCKETS_PX)
    if kind < 0.45:
        return world.random_scene(rng, held_out=None, bucket_px=bucket)
    if kind < 0.7:
        return world.concept_scene(rng, rng.choice(list(world.CONCEPTS.values())), bucket_px=bucket)
    return world.free_scene(rng, bucket_px=bucket)


def worn(picture: Image.Image, rng: random.Random) -> Image.Image:
    """The picture as it may look after generation or saving: none, some or all of blur, noise and JPEG."""
    if rng.random() < 0.4:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 1.2)))
    if rng.random() < 0.3:
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(2, 12), (*picture.size[::-1], 3))
        picture = Image.fromarray((np.asarray(picture) + noise).clip(0, 255).astype(np.uint8))
    if rng.random() < 0.2:
        stored = io.BytesIO()
        picture.save(stored, "JPEG", quality=rng.randint(40, 95))
        picture = Image.open(stored).convert("RGB")
    return picture


@torch.no_grad()
def _decoded(vae: AutoencoderKL, scenes: list[world.Scene], noise: float, seed: int) -> list[Image.Image]:
    """The scenes after the autoencoder, their latents disturbed by up to `noise` of a standard deviation."""
    found: list[Image.Image] = []
    for start in range(0, len(scenes), 16):
        pictures = pictures_to_tensor([world.draw(s) for s in scenes[start : start + 16]])
        generator = torch.Generator().manual_seed(seed + start)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latent_dist.mean.float()
            strength = torch.rand(len(latents), 1, 1, 1, generator=generator) * noise * latents.std()
            latents = latents + strength * torch.randn(latents.shape, generator=generator)
            found += tensor_to_pictures(vae.decode(latents).sample.float())
    return found


def tagger_pictures(work: Path, vae: AutoencoderKL, settings: TaggerTraining) -> tuple[Tensor, Tensor]:
    """(uint8 [n, 96, 96, 3] BGR, labels [n, labels]) of all training pictures, kept in `work/tagger_pictures`."""
    path = work / "tagger_pictures.safetensors"
    if not path.is_file():
        rng = random.Random(f"tagger {settings.seed}")
        scenes = [judged_scene(rng) for _ in range(settings.drawings + settings.decoded)]
        pixels = torch.empty((len(scenes), tagger_net.INPUT_PX, tagger_net.INPUT_PX, 3), dtype=torch.uint8)
        for index, scene in enumerate(scenes[: settings.drawings]):
            pixels[index] = _stored(worn(world.draw(scene), rng))
        by_size: dict[tuple[int, int], list[int]] = {}
        for index in range(settings.drawings, len(scenes)):
            by_size.setdefault((scenes[index].width_px, scenes[index].height_px), []).append(index)
        for size, members in by_size.items():
            print(f"tagger: decoding {len(members)} drawings of {size[0]}x{size[1]}", flush=True)
            decoded = _decoded(vae, [scenes[i] for i in members], settings.latent_noise, settings.seed)
            for index, picture in zip(members, decoded, strict=True):
                pixels[index] = _stored(picture)
        labels = torch.stack([tagger_net.label_vector(s) for s in scenes])
        save_tensors(path, {"pixels": pixels, "labels": labels}, {})
    tensors, _ = load_tensors(path)
    return tensors["pixels"], tensors["labels"]


def _stored(picture: Image.Image) -> Tensor:
    return torch.from_numpy(tagger_net.prepare(picture).clip(0, 255).round().astype(np.uint8))


def warped(pictures: Tensor, share: float, deviation_px: float, generator: torch.Generator) -> Tensor:
    """[n, height, width, 3], a `share` of them bent smoothly and blurred, as a generator's unsteady hand draws.

    A judge that only saw exact drawings takes a wobbly outline for another shape.
    """
    number, height, width, _ = pictures.shape
    bends = torch.randn(number, 2, 5, 5, generator=generator) * (2 * deviation_px / width)
    bends = (
        bends
        * (torch.rand(number, 1, 1, 1, generator=generator) < share)
        * torch.rand(number, 1, 1, 1, generator=generator)
    )
    field = functional.interpolate(bends, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = functional.affine_grid(
        torch.eye(2, 3).expand(number, 2, 3), [number, 3, height, width], align_corners=False
    )
    bent = functional.grid_sample(
        pictures.permute(0, 3, 1, 2), still + field, padding_mode="border", align_corners=False
    )
    soft = functional.avg_pool2d(bent, 3, stride=1, padding=1, count_include_pad=False)
    blur = torch.rand(number, 1, 1, 1, generator=generator) * (torch.rand(number, 1, 1, 1, generator=generator) < share)
    return torch.lerp(bent, soft, blur).permute(0, 2, 3, 1)


def train_tagger(work: Path, vae: AutoencoderKL, settings: TaggerTraining) -> tuple[tagger_net.TaggerNet, Tensor]:
    """Train, or continue, the tagger; returns it and how often each label is true in its training pictures."""
    pixels, labels = tagger_pictures(work, vae, settings)
    torch.manual_seed(settings.seed)
    net = tagger_net.TaggerNet()
    optimizer = torch.optim.AdamW(net.parameters(), lr=settings.learning_rate, weight_decay=0.02)
    optimizer.param_groups[0]["full_lr"] = settings.learning_rate
    path = work / "tagger.safetensors"
    first_step = load_state(path, {"net": net}, (optimizer,))
    progress = ProgressLine("tagger", settings.steps, first_step, every_steps=100)
    net.train()
    for step in range(first_step, settings.steps):
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        chosen = torch.randint(0, len(pixels), (settings.batch,), generator=generator)
        shift = torch.randn(settings.batch, 1, 1, 3, generator=generator) * 4
        grain = torch.randn(settings.batch, tagger_net.INPUT_PX, tagger_net.INPUT_PX, 3, generator=generator) * 3
        inputs = warped(pixels[chosen].float(), settings.warp_share, settings.warp_px, generator)
        inputs = (inputs + shift + grain).clamp(0, 255)
        set_rates((optimizer,), warm_flat_falling(step, settings.steps, settings.warmup_steps, settings.decay_share))
        loss = functional.binary_cross_entropy_with_logits(net(inputs), labels[chosen])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        progress.tell(step + 1, loss=loss.item())
        if (step + 1) % settings.save_every_steps == 0 or step + 1 == settings.steps:
            save_state(path, {"net": net}, (optimizer,), step + 1)
    return net.eval(), labels.sum(dim=0).long()


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Micro-averaged counts over all general and character labels at a threshold of 0.5."""

    hits: int
    false_alarms: int
    misses: int

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + false alarms + misses)."""
        return 2 * self.hits / max(1, 2 * self.hits + self.false_alarms + self.misses)


def agreement(probabilities: Tensor, labels: Tensor) -> Agreement:
    """Compare [n, labels] probabilities with the truth, rating labels left out."""
    counted = slice(len(tagger_net.RATINGS), None)
    said, true = probabilities[:, counted] > 0.5, labels[:, counted] > 0.5
    return Agreement(
        hits=int((said & true).sum()), false_alarms=int((said & ~true).sum()), misses=int((~said & true).sum())
    )
