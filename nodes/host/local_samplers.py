"""The samplers of the local host: Euler, Euler ancestral, DDIM and DPM-Solver++(2M).

Each is a function of a denoiser D(x, sigma) -> x0 in the variance-exploding form of Karras et al. 2022 (x = x0 + sigma
* noise), the start value x, and descending sigmas ending in 0. Scalars are Python floats: at 12x12 latents a tensor
operation per scalar would cost as much as the picture.

Sources: Karras et al. 2022, algorithm 2 without churn (Euler); Song et al. 2021, equation 16 with eta = 1 written for
sigmas (ancestral step); Song et al. 2021 section 4.3 shows deterministic DDIM to be the Euler step in these variables;
Lu et al. 2022, "DPM-Solver++", algorithm 2 (2M).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

Denoiser: TypeAlias = Callable[[torch.Tensor, float], torch.Tensor]
NoiseSource: TypeAlias = Callable[[], torch.Tensor]
OnStep: TypeAlias = Callable[[int, torch.Tensor], None]
"""Called after the denoiser of step i with the clean estimate; may raise to cancel."""

Sampler: TypeAlias = Callable[[Denoiser, torch.Tensor, Sequence[float], NoiseSource, OnStep], torch.Tensor]


def euler(
    denoise: Denoiser, x: torch.Tensor, sigmas: Sequence[float], noise: NoiseSource, on_step: OnStep
) -> torch.Tensor:
    """Deterministic Euler steps along dx/dsigma = (x - D(x, sigma)) / sigma."""
    for i in range(len(sigmas) - 1):
        clean = denoise(x, sigmas[i])
        on_step(i, clean)
        ratio = sigmas[i + 1] / sigmas[i]
        x = torch.lerp(clean, x, ratio)
    return x


def euler_ancestral(
    denoise: Denoiser, x: torch.Tensor, sigmas: Sequence[float], noise: NoiseSource, on_step: OnStep
) -> torch.Tensor:
    """Euler down to a lower level, then fresh noise back up to the next one (eta = 1)."""
    for i in range(len(sigmas) - 1):
        clean = denoise(x, sigmas[i])
        on_step(i, clean)
        down, up = ancestral_levels(sigmas[i], sigmas[i + 1])
        if down == 0.0:
            x = clean
        else:
            x = torch.lerp(clean, x, down / sigmas[i]).add_(noise(), alpha=up)
    return x


def ancestral_levels(sigma: float, sigma_next: float) -> tuple[float, float]:
    """The level to step down to and the standard deviation of the noise to add; their squares sum to sigma_next^2."""
    up = min(sigma_next, sigma_next * math.sqrt(max(sigma**2 - sigma_next**2, 0.0)) / sigma)
    return math.sqrt(max(sigma_next**2 - up**2, 0.0)), up


def dpmpp_2m(
    denoise: Denoiser, x: torch.Tensor, sigmas: Sequence[float], noise: NoiseSource, on_step: OnStep
) -> torch.Tensor:
    """DPM-Solver++(2M): second order, multistep, in lambda = -ln sigma; first and last steps are first order."""
    previous: torch.Tensor | None = None
    for i in range(len(sigmas) - 1):
        clean = denoise(x, sigmas[i])
        on_step(i, clean)
        ratio = sigmas[i + 1] / sigmas[i]
        estimate = clean
        if previous is not None and sigmas[i + 1] > 0.0:
            last_stride = math.log(sigmas[i - 1] / sigmas[i])
            stride = math.log(sigmas[i] / sigmas[i + 1])
            half = stride / (2 * last_stride)
            estimate = torch.lerp(previous, clean, 1 + half)
        x = torch.lerp(estimate, x, ratio)
        previous = clean
    return x


SAMPLERS: dict[str, Sampler] = {
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "dpmpp_2m": dpmpp_2m,
    "ddim": euler,
}
