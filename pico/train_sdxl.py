"""A short training of pico SDXL: enough for tests, not enough to draw shapes that can be recognised.

The autoencoder learns first, then UNet and both text encoders together; the first encoder begins as pico's own.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import sdxl, sizes, world
from .export import fold_latent_scale, load_base
from .generate import TRAIN_TIMESTEPS, alphas_cumprod
from .muon import muon_and_adamw, set_rates
from .progress_file import ProgressLine, load_state, save_state
from .tokenizer import END, START, Vocabulary, encode
from .train_vae import VaeTraining, pictures_to_tensor, reconstruction_loss, training_batch, warm_flat_falling


@dataclass(frozen=True, kw_only=True)
class SdxlTraining:
    """What decides the weights."""

    seed: int = 31
    vae_steps: int = 300
    vae_learning_rate: float = 3e-3
    steps: int = 250
    drawings: int = 1024
    batch: int = 16
    learning_rate: float = 3e-3
    outer_learning_rate: float = 1.5e-3
    warmup_steps: int = 40
    vae_decay_share: float = 0.5
    weight_decay: float = 0.01
    empty_caption_rate: float = 0.1
    snr_gamma: float = 5.0
    least_weight: float = 0.2
    ema_decay: float = 0.99
    save_every_steps: int = 50


def train_sdxl(work: Path, first_base: Path, settings: SdxlTraining) -> Path:
    """Train, or continue, and write `work/pico-sdxl.safetensors`.

    Args:
        work: folder for the states.
        first_base: the finished pico base, whose text encoder and vocabulary are taken over.
        settings: see there.
    """
    _, _, text, vocabulary = load_base(first_base)
    config = sizes.text_encoder_config(len(vocabulary.vocab), vocabulary.vocab[START], vocabulary.vocab[END])
    torch.manual_seed(settings.seed)
    networks = sdxl.new_networks(config)
    networks.first.load_state_dict(text.state_dict())
    _train_vae(work / "sdxl_vae.safetensors", networks, settings)
    average = _train_unet(work / "sdxl_unet.safetensors", networks, vocabulary, settings)
    path = work / "pico-sdxl.safetensors"
    sdxl.write_base(path, average, config, vocabulary)
    return path


def _train_vae(path: Path, networks: sdxl.Networks, settings: SdxlTraining) -> None:
    """The autoencoder, on crops; at the end its latents are brought to SDXL's scale."""
    vae, steps = networks.vae, settings.vae_steps
    with torch.no_grad():
        vae.quant_conv.bias[sizes.LATENT_CHANNELS :] = -4.0
    optimizers = muon_and_adamw((vae,), settings.vae_learning_rate, settings.outer_learning_rate)
    first_step = load_state(path, {"vae": vae}, optimizers)
    batches = VaeTraining(seed=settings.seed, steps=2 * steps, crop_px=48)
    progress = ProgressLine("sdxl vae", steps, first_step)
    for step in range(first_step, steps):
        set_rates(optimizers, warm_flat_falling(step, steps, settings.warmup_steps, settings.vae_decay_share))
        pictures = training_batch(batches, step)
        torch.manual_seed(settings.seed * 1_000_003 + step)
        posterior = vae.encode(pictures).latent_dist
        made = vae.decode(posterior.sample()).sample
        loss = reconstruction_loss(made, pictures, batches.edge_weight)
        spread = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        (loss + batches.kl_weight * spread).backward()
        _update(optimizers, vae)
        progress.tell(step + 1, loss=loss.item())
        if (step + 1) % settings.save_every_steps == 0 or step + 1 == steps:
            save_state(path, {"vae": vae}, optimizers, step + 1)
    vae.eval()
    latents = _latents(vae, [scene for scene, _ in _drawings(settings)[:256]], scale=1.0)
    fold_latent_scale(vae, latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)), scale=sdxl.LATENT_SCALE)


def _drawings(settings: SdxlTraining) -> list[tuple[world.Scene, random.Random]]:
    found = []
    for index in range(settings.drawings):
        rng = random.Random(f"sdxl {settings.seed} {index}")
        found.append((world.random_scene(rng, held_out=False, bucket_px=(world.NATIVE_PX, world.NATIVE_PX)), rng))
    return found


@torch.no_grad()
def _latents(vae: Any, scenes: list[world.Scene], *, scale: float) -> Tensor:
    found = [
        vae.encode(pictures_to_tensor([world.draw(scene) for scene in scenes[start : start + 32]])).latent_dist.mean
        for start in range(0, len(scenes), 32)
    ]
    return torch.cat(found) * scale


def _update(optimizers: list[torch.optim.Optimizer], *modules: nn.Module) -> None:
    torch.nn.utils.clip_grad_norm_([weight for module in modules for weight in module.parameters()], 1.0)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def noise_weights(settings: SdxlTraining) -> Tensor:
    """[1000] min-SNR weights of the epsilon loss (Hang et al. 2023, eq. 6), more where almost all is noise."""
    bars = alphas_cumprod()
    snr = bars / (1 - bars)
    quiet = (snr.clamp(max=settings.snr_gamma) / snr).clamp(min=settings.least_weight)
    return torch.maximum(quiet, (snr + 0.01).rsqrt().clamp(min=settings.least_weight)).float()


def _train_unet(path: Path, networks: sdxl.Networks, vocabulary: Vocabulary, settings: SdxlTraining) -> sdxl.Networks:
    """UNet and text encoders; returns their running averages with the autoencoder."""
    import copy

    parts: dict[str, Any] = {"unet": networks.unet, "first": networks.first, "second": networks.second}
    averages = {name: copy.deepcopy(module) for name, module in parts.items()}
    states = {**parts, **{f"{name}_average": module for name, module in averages.items()}}
    optimizers = muon_and_adamw(
        tuple(parts.values()), settings.learning_rate, settings.outer_learning_rate, settings.weight_decay
    )
    first_step = load_state(path, states, optimizers)
    drawings = _drawings(settings)
    latents = _latents(networks.vae, [scene for scene, _ in drawings], scale=sdxl.LATENT_SCALE)
    bars, weights = alphas_cumprod().float(), noise_weights(settings)
    progress = ProgressLine("sdxl unet", settings.steps, first_step)
    for step in range(first_step, settings.steps):
        rng = random.Random(f"sdxl step {settings.seed} {step}")
        set_rates(optimizers, min(1.0, (step + 1) / settings.warmup_steps))  # the running average takes the noise out
        chosen = [rng.randrange(len(drawings)) for _ in range(settings.batch)]
        empty = [rng.random() < settings.empty_caption_rate for _ in chosen]
        captions = ["" if bare else world.caption(drawings[i][0], rng) for i, bare in zip(chosen, empty, strict=True)]
        torch.manual_seed(settings.seed * 1_000_003 + step)
        clean, times = latents[chosen], torch.randint(TRAIN_TIMESTEPS, (settings.batch,))
        noise = torch.randn_like(clean)
        bar = bars[times][:, None, None, None]
        seen = _answer(networks, vocabulary, bar.sqrt() * clean + (1 - bar).sqrt() * noise, times, captions)
        errors = (seen - noise).square().mean(dim=(1, 2, 3))
        torch.autograd.backward((weights[times] * errors).mean())
        _update(optimizers, *parts.values())
        decay = min(settings.ema_decay, (1 + step) / (10 + step))
        for name, module in parts.items():
            with torch.no_grad():
                torch._foreach_lerp_(list(averages[name].parameters()), list(module.parameters()), 1 - decay)
        progress.tell(step + 1, loss=errors.mean().item())
        if (step + 1) % settings.save_every_steps == 0 or step + 1 == settings.steps:
            save_state(path, states, optimizers, step + 1)
    return sdxl.Networks(vae=networks.vae, **{name: module.eval() for name, module in averages.items()})


def _answer(
    networks: sdxl.Networks, vocabulary: Vocabulary, noisy: Tensor, times: Tensor, captions: list[str]
) -> Tensor:
    """The UNet's answer to pictures of the world's own size, uncropped."""
    ids = encode(captions, vocabulary)
    hidden, pooled = networks.told(ids, sdxl.filled_with_zeros(ids, vocabulary.vocab[END]))
    px = sizes.LATENT_FACTOR_PX
    high, wide = noisy.shape[2] * px, noisy.shape[3] * px
    told = torch.tensor([[high, wide, 0, 0, high, wide]], dtype=torch.float32).expand(len(noisy), -1)
    answer: Tensor = networks.unet(
        noisy, times, hidden, added_cond_kwargs={"text_embeds": pooled, "time_ids": told}, return_dict=False
    )[0]
    return answer
