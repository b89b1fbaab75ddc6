"""Draws with the trained base: DDIM with classifier-free guidance, in a few lines, for judging and for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import sizes
from .tokenizer import Vocabulary, encode

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

TRAIN_TIMESTEPS = 1000


def alphas_cumprod() -> Tensor:
    """[1000] abar_t of Stable Diffusion's scaled-linear schedule, beta 0.00085 to 0.012 (float64)."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, TRAIN_TIMESTEPS, dtype=torch.float64) ** 2
    return (1.0 - betas).cumprod(0)


def tensor_to_pictures(pictures: Tensor) -> list[Image.Image]:
    """RGB pictures from [n, 3, height, width] in -1..1."""
    pixels = ((pictures.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return [Image.fromarray(np.ascontiguousarray(p)) for p in pixels]


class Painter:
    """The base's three networks with the one thing they are here for: pictures from prompts."""

    def __init__(
        self, unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel, vocabulary: Vocabulary
    ) -> None:
        """Keep the networks; they should be in evaluation mode."""
        self._unet, self._vae, self._text, self._vocabulary = unet, vae, text, vocabulary

    @torch.no_grad()
    def paint(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        size_px: tuple[int, int] = (96, 96),
        steps: int = 16,
        guidance: float = 6.0,
    ) -> list[Image.Image]:
        """One picture per prompt.

        Args:
            prompts: what to draw.
            seeds: one per prompt; a picture depends on its own prompt and seed only.
            size_px: (width, height), multiples of 8.
            steps: DDIM steps (Song et al. 2021, eq. 12 with eta 0), evenly spaced and ending at t = 0.
            guidance: classifier-free guidance scale (Ho and Salimans 2022); 1 is without.
        """
        wide, high = (side // sizes.LATENT_FACTOR_PX for side in size_px)
        noise = [torch.randn(4, high, wide, generator=torch.Generator().manual_seed(s)) for s in seeds]
        latents = torch.stack(noise)
        context = self._context(["", *prompts])
        empty, asked = context[:1].expand(len(prompts), -1, -1), context[1:]
        bars = alphas_cumprod()
        times = torch.linspace(TRAIN_TIMESTEPS - 1, 0, steps + 1).round().long().tolist()[:-1]
        for now, then in zip(times, [*times[1:], -1], strict=True):
            bar, next_bar = float(bars[now]), float(bars[then]) if then >= 0 else 1.0
            both = self._unet(latents.repeat(2, 1, 1, 1), now, torch.cat([empty, asked])).sample
            without, with_prompt = both.chunk(2)
            noise_seen = without + guidance * (with_prompt - without)
            clean = (latents - (1 - bar) ** 0.5 * noise_seen) / bar**0.5
            latents = next_bar**0.5 * clean + (1 - next_bar) ** 0.5 * noise_seen
        return tensor_to_pictures(self._vae.decode(latents / sizes.VAE_SCALE).sample)

    def _context(self, prompts: Sequence[str]) -> Tensor:
        hidden: Tensor = self._text(encode(prompts, self._vocabulary)).last_hidden_state
        return hidden
