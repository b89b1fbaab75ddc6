"""Training of the UNet and the text encoder, together and from nothing, on encoded drawings and shuffled captions."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from . import sizes, world
from .export import fold_latent_scale, write_base
from .generate import TRAIN_TIMESTEPS, Painter, alphas_cumprod
from .muon import Muon, muon_and_adamw, set_rates
from .progress_file import ProgressLine, load_state, load_tensors, save_state, save_tensors
from .sheets import sample_sheet
from .tokenizer import END, START, Vocabulary, build, encode
from .train_vae import pictures_to_tensor, warm_flat_falling

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel


@dataclass(frozen=True, kw_only=True)
class BaseTraining:
    """What decides the weights of UNet and text encoder."""

    steps: int = 2600
    seed: int = 23
    drawings: int = 16384
    batch: int = 32
    shards: int = 2
    learning_rate: float = 2e-3
    outer_learning_rate: float = 1e-3
    warmup_steps: int = 150
    decay_share: float = 0.4
    weight_decay: float = 0.01
    ema_decay: float = 0.998
    empty_caption_rate: float = 0.1
    nonsense_rate: float = 0.2
    caption_keep: float = 0.65
    snr_gamma: float = 5.0
    least_weight: float = 0.2
    loud_floor: float = 0.01
    save_every_steps: int = 250


@dataclass(frozen=True, kw_only=True)
class Drawings:
    """Scenes and their latents (x 0.18215), grouped by aspect bucket."""

    scenes: dict[tuple[int, int], list[world.Scene]]
    latents: dict[tuple[int, int], Tensor]


def training_scenes(settings: BaseTraining) -> dict[tuple[int, int], list[world.Scene]]:
    """The scenes the base is trained on, none of a held-out triple and none showing a concept."""
    scenes: dict[tuple[int, int], list[world.Scene]] = {bucket: [] for bucket in world.BUCKETS_PX}
    for index in range(settings.drawings):
        rng = random.Random(f"base {settings.seed} {index}")
        bucket = world.NATIVE_PX, world.NATIVE_PX
        if rng.random() >= 0.4:
            bucket = rng.choice(world.BUCKETS_PX)
        scenes[bucket].append(world.random_scene(rng, held_out=False, bucket_px=bucket))
    return scenes


@torch.no_grad()
def _encoded(vae: AutoencoderKL, scenes: list[world.Scene], batch: int = 32) -> Tensor:
    found = []
    for start in range(0, len(scenes), batch):
        pictures = pictures_to_tensor([world.draw(s) for s in scenes[start : start + batch]])
        with torch.autocast("cpu", torch.bfloat16):
            found.append(vae.encode(pictures).latent_dist.mean.float())
    return torch.cat(found)


def normalise_vae(vae: AutoencoderKL, path: Path) -> None:
    """Fold the latents' own mean and deviation into the autoencoder, once; the result is kept in `path`."""
    if load_state(path, {"vae": vae}, ()):
        return
    rng = random.Random("latent scale")
    latents = torch.cat([_encoded(vae, [world.random_scene(rng, bucket_px=(96, 96)) for _ in range(512)])])
    fold_latent_scale(vae, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
    save_state(path, {"vae": vae}, (), 1)


def encoded_drawings(work: Path, vae: AutoencoderKL, settings: BaseTraining) -> Drawings:
    """All training drawings through the encoder, kept in `work/latents.safetensors`."""
    scenes = training_scenes(settings)
    path = work / "latents.safetensors"
    if not path.is_file():
        tensors = {}
        for (width, height), group in scenes.items():
            print(f"latents {width}x{height}: {len(group)} drawings", flush=True)
            tensors[f"{width}x{height}"] = _encoded(vae, group) * sizes.VAE_SCALE
        save_tensors(path, tensors, {})
    tensors, _ = load_tensors(path)
    return Drawings(scenes=scenes, latents={(w, h): tensors[f"{w}x{h}"] for w, h in scenes})


def training_batch(drawings: Drawings, settings: BaseTraining, step: int) -> tuple[Tensor, list[str]]:
    """(latents [n, 4, h, w], captions) of a step: one bucket, drawn by its share, captions shuffled anew."""
    rng = random.Random(f"base step {settings.seed} {step}")
    buckets = list(drawings.scenes)
    bucket = rng.choices(buckets, [len(drawings.scenes[b]) for b in buckets])[0]
    group = drawings.scenes[bucket]
    chosen = [rng.randrange(len(group)) for _ in range(settings.batch)]
    captions = [
        ""
        if rng.random() < settings.empty_caption_rate
        else world.caption(group[i], rng, keep=settings.caption_keep, nonsense_rate=settings.nonsense_rate)
        for i in chosen
    ]
    return drawings.latents[bucket][chosen], captions


def noise_weights(settings: BaseTraining) -> Tensor:
    """[1000] weights of the epsilon loss.

    Where little noise is left, min-SNR (Hang et al. 2023, eq. 6), never below `least_weight`. Where almost all is noise
    (SNR < 1) the weight rises with 1 / sqrt(SNR): on so few latents the background is told from the picture itself
    everywhere else, so that only there the words are needed, and there the plain loss hardly counts.
    """
    bars = alphas_cumprod()
    snr = bars / (1 - bars)
    quiet = (snr.clamp(max=settings.snr_gamma) / snr).clamp(min=settings.least_weight)
    return torch.maximum(quiet, (snr + settings.loud_floor).rsqrt().clamp(min=settings.least_weight)).float()


def _follow(average: nn.Module, live: nn.Module, decay: float) -> None:
    with torch.no_grad():
        torch._foreach_lerp_(list(average.parameters()), list(live.parameters()), 1 - decay)


@dataclass(frozen=True, kw_only=True)
class _Part:
    gradients: list[Tensor]
    loss: float
    plain: float


class BaseTrainer:
    """The networks in training and their running averages, which are what is saved."""

    def __init__(self, work: Path, vae: AutoencoderKL, settings: BaseTraining) -> None:
        """Build the networks from the seed, or continue from `work/unet.safetensors`."""
        self.settings, self.vae, self.work = settings, vae.eval(), work
        self.vocabulary: Vocabulary = build()
        ids = self.vocabulary.vocab
        self.text_config: dict[str, Any] = sizes.text_encoder_config(len(ids), ids[START], ids[END])
        torch.manual_seed(settings.seed)
        self.unet: UNet2DConditionModel = sizes.new_unet()
        self.text: CLIPTextModel = sizes.new_text_encoder(self.text_config)
        self.unet_average, self.text_average = copy.deepcopy(self.unet), copy.deepcopy(self.text)
        self.optimizers = muon_and_adamw(
            (self.unet, self.text), settings.learning_rate, settings.outer_learning_rate, settings.weight_decay
        )
        self._modules: dict[str, nn.Module] = {
            "unet": self.unet,
            "text": self.text,
            "unet_average": self.unet_average,
            "text_average": self.text_average,
        }
        self._bars, self._noise_weights = alphas_cumprod().float(), noise_weights(settings)
        self.step = load_state(self._path, self._modules, self.optimizers)

    @property
    def _path(self) -> Path:
        return self.work / "unet.safetensors"

    def _weights(self) -> list[nn.Parameter]:
        return [*self.unet.parameters(), *self.text.parameters()]

    def losses(self, drawings: Drawings) -> Iterator[tuple[int, float, float]]:
        """Train step by step; yields (steps done, weighted loss, plain epsilon loss).

        A batch is split among threads of one core each: they meet once a step, where the threads inside an operation
        would meet a thousand times and wait whenever another program takes a core.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(self.settings.shards, initializer=torch.set_num_threads, initargs=(1,)) as workers:
                yield from self._steps(drawings, workers)
        finally:
            torch.set_num_threads(threads)

    def _steps(self, drawings: Drawings, workers: ThreadPoolExecutor) -> Iterator[tuple[int, float, float]]:
        for optimizer in self.optimizers:
            if isinstance(optimizer, Muon):
                optimizer.run = workers.map
        everything = self._weights()
        self.unet.train()
        self.text.train()
        while self.step < self.settings.steps:
            ours = self.settings
            set_rates(self.optimizers, warm_flat_falling(self.step, ours.steps, ours.warmup_steps, ours.decay_share))
            clean, captions = training_batch(drawings, self.settings, self.step)
            torch.manual_seed(self.settings.seed * 1_000_003 + self.step)
            noise = torch.randn_like(clean)
            times = torch.randint(0, TRAIN_TIMESTEPS, (len(clean),))
            tokens = encode(captions, self.vocabulary)
            parts = [
                workers.submit(self._gradients, clean[part], noise[part], times[part], tokens[part])
                for part in torch.arange(len(clean)).chunk(self.settings.shards)
            ]
            found = [part.result() for part in parts]
            for place, weight in enumerate(everything):
                weight.grad = torch.stack([part.gradients[place] for part in found]).sum(dim=0)
            loss, plain = sum(part.loss for part in found), sum(part.plain for part in found)
            torch.nn.utils.clip_grad_norm_(everything, 1.0)
            for optimizer in self.optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            self.step += 1
            decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
            _follow(self.unet_average, self.unet, decay)
            _follow(self.text_average, self.text, decay)
            yield self.step, loss, plain

    def _gradients(self, clean: Tensor, noise: Tensor, times: Tensor, tokens: Tensor) -> _Part:
        """What a part of a batch adds to the gradients and to the two losses."""
        bar = self._bars[times][:, None, None, None]
        context = self.text(tokens).last_hidden_state
        seen = self.unet(bar.sqrt() * clean + (1 - bar).sqrt() * noise, times, context).sample
        errors = (seen - noise).square().mean(dim=(1, 2, 3))
        loss = (self._noise_weights[times] * errors).sum() / self.settings.batch
        gradients = torch.autograd.grad(loss, self._weights(), materialize_grads=True)
        plain = errors.sum().item() / self.settings.batch
        return _Part(gradients=list(gradients), loss=loss.item(), plain=plain)

    def save(self) -> None:
        """Write the state a killed run continues from."""
        save_state(self._path, self._modules, self.optimizers, self.step)

    def painter(self) -> Painter:
        """The averaged networks, ready to draw."""
        return Painter(self.unet_average.eval(), self.vae, self.text_average.eval(), self.vocabulary)

    def write_base(self, path: Path) -> None:
        """Write the averaged networks as the single base file."""
        write_base(path, self.unet_average, self.vae, self.text_average, self.text_config, self.vocabulary)


def train_base(work: Path, vae: AutoencoderKL, settings: BaseTraining) -> BaseTrainer:
    """Train, or continue; state, sample sheets and the assembled base file go to `work`."""
    normalise_vae(vae, work / "vae_normalised.safetensors")
    trainer = BaseTrainer(work, vae, settings)
    drawings = encoded_drawings(work, vae, settings)
    progress = ProgressLine("unet", settings.steps, trainer.step)
    for done, loss, plain in trainer.losses(drawings):
        progress.tell(done, loss=loss, plain=plain)
        if done % settings.save_every_steps == 0 or done == settings.steps:
            trainer.save()
            trainer.write_base(work / "pico-base.safetensors")
        if done % (2 * settings.save_every_steps) == 0:
            sample_sheet(trainer.painter(), work / f"samples-{done:05d}.png")
    return trainer
