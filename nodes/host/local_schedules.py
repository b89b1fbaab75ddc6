"""Noise levels (sigmas) of the local sampler, in the numbers ComfyUI uses for SD1.x, SD2 and SDXL.

A schedule is a descending list of float sigmas that ends in 0.0. The base's own 1,000 training levels are the table
every schedule is read from; values are rounded to float32 where ComfyUI keeps them in float32.

Sources: Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based Generative Models", equation 5 (karras);
Lee et al. 2024, arXiv 2407.12173 (beta); Song et al. 2021, "Denoising Diffusion Implicit Models", section 4.2
(ddim_uniform).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from ...core.errors import InputError, unknown_name

LEAST_SIGNAL = 4.8973451890853435e-08
"""The share of signal ComfyUI leaves where none should be left, so that the largest level stays finite."""


@dataclass(frozen=True)
class NoiseLevels:
    """The training noise levels of a base.

    Attributes:
        sigmas: ``sqrt((1 - a) / a)`` of the cumulative alphas, float32 [levels], ascending.
        log_sigmas: their natural logarithm, float32 [levels].
    """

    sigmas: torch.Tensor
    log_sigmas: torch.Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: torch.Tensor) -> NoiseLevels:
        """Levels of a variance-preserving process; ``alphas_cumprod`` is float64 [levels], descending.

        A last value of 0 (zero terminal SNR) becomes the smallest one that ComfyUI samples with.
        """
        if float(alphas_cumprod[-1]) <= 0.0:
            alphas_cumprod = alphas_cumprod.clone()
            alphas_cumprod[-1] = LEAST_SIGNAL
        sigmas = ((1 - alphas_cumprod) / alphas_cumprod).sqrt()
        return cls(sigmas=sigmas.float(), log_sigmas=sigmas.log().float())

    def __len__(self) -> int:
        return int(self.sigmas.numel())

    @property
    def sigma_min(self) -> float:
        """The smallest training level."""
        return float(self.sigmas[0])

    @property
    def sigma_max(self) -> float:
        """The largest training level."""
        return float(self.sigmas[-1])

    def sigma_at(self, timestep: float) -> float:
        """The level at a possibly fractional timestep: linear between neighbours in log sigma, clamped to the table."""
        clamped = torch.clamp(torch.tensor(timestep, dtype=torch.float32), 0, len(self) - 1)
        low = clamped.floor().long()
        fraction = clamped.frac()
        log_sigma = (1 - fraction) * self.log_sigmas[low] + fraction * self.log_sigmas[clamped.ceil().long()]
        return float(log_sigma.exp())

    def timestep_at(self, sigma: float) -> int:
        """The timestep whose level is nearest in log sigma; the lower one of two equally near."""
        log_sigma = torch.tensor(sigma, dtype=torch.float32).log()
        return int((log_sigma - self.log_sigmas).abs().argmin())


def normal(levels: NoiseLevels, steps: int) -> list[float]:
    """Evenly spaced timesteps from the last to the first, both included."""
    timesteps = torch.linspace(float(len(levels) - 1), 0.0, steps)
    return [*(levels.sigma_at(float(t)) for t in timesteps), 0.0]


def sgm_uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Evenly spaced timesteps from the last towards the first, the first left out."""
    timesteps = torch.linspace(float(len(levels) - 1), 0.0, steps + 1)[:-1]
    return [*(levels.sigma_at(float(t)) for t in timesteps), 0.0]


def simple(levels: NoiseLevels, steps: int) -> list[float]:
    """Every (levels / steps)-th training level counted from the last."""
    stride = len(levels) / steps
    return [*(float(levels.sigmas[-(1 + int(i * stride))]) for i in range(steps)), 0.0]


def ddim_uniform(levels: NoiseLevels, steps: int) -> list[float]:
    """Every (levels // steps)-th training level counted from the second; may have a step more than asked."""
    stride = max(len(levels) // steps, 1)
    return [*(float(levels.sigmas[i]) for i in range(1, len(levels), stride))][::-1] + [0.0]


def karras(levels: NoiseLevels, steps: int, rho: float = 7.0) -> list[float]:
    """Karras et al. 2022, equation 5 with rho = 7."""
    low, high = levels.sigma_min ** (1 / rho), levels.sigma_max ** (1 / rho)
    ramp = torch.linspace(0, 1, steps)
    return [*((high + ramp * (low - high)) ** rho).tolist(), 0.0]


def exponential(levels: NoiseLevels, steps: int) -> list[float]:
    """Evenly spaced in log sigma from the largest level to the smallest."""
    return [*torch.linspace(math.log(levels.sigma_max), math.log(levels.sigma_min), steps).exp().tolist(), 0.0]


def beta(levels: NoiseLevels, steps: int, alpha: float = 0.6, beta_: float = 0.6) -> list[float]:
    """Timesteps at the quantiles of a Beta(0.6, 0.6) distribution; repeated timesteps are used once."""
    quantiles = 1 - np.linspace(0, 1, steps, endpoint=False)
    places = np.array([_beta_quantile(float(q), alpha, beta_) for q in quantiles]) * (len(levels) - 1)
    # The median lies exactly between two timesteps; without this, noise in the last digit would choose.
    timesteps = np.rint(places.round(9)).astype(int)
    distinct = [int(t) for i, t in enumerate(timesteps) if i == 0 or t != timesteps[i - 1]]
    return [*(float(levels.sigmas[t]) for t in distinct), 0.0]


def _beta_quantile(probability: float, alpha: float, beta_: float) -> float:
    """Inverse of the cumulative Beta distribution, from a table of its integral in the variable ``sin^2``."""
    table_x, table_p = _beta_table(alpha, beta_)
    if probability >= 1.0:
        return 1.0
    upper = bisect_left(table_p, probability)
    low_p, high_p = table_p[upper - 1], table_p[upper]
    fraction = (probability - low_p) / (high_p - low_p)
    angle = table_x[upper - 1] + fraction * (table_x[upper] - table_x[upper - 1])
    return (1.0 - math.cos(2.0 * angle)) / 2.0


@lru_cache(maxsize=2)
def _beta_table(alpha: float, beta_: float, points: int = 20001) -> tuple[list[float], list[float]]:
    """Angles 0..pi/2 and the Beta integral up to ``sin(angle)^2``, normalised to 1.

    With x = sin^2(angle) the density x^(a-1) (1-x)^(b-1) dx becomes 2 sin^(2a-1) cos^(2b-1) d(angle), finite at both
    ends for a, b > 1/2, so that the midpoint rule converges.
    """
    edges = np.linspace(0.0, math.pi / 2, points)
    middles = (edges[1:] + edges[:-1]) / 2
    density = np.sin(middles) ** (2 * alpha - 1) * np.cos(middles) ** (2 * beta_ - 1)
    integral = np.concatenate([[0.0], np.cumsum(density)])
    return edges.tolist(), (integral / integral[-1]).tolist()


SCHEDULERS: dict[str, Callable[[NoiseLevels, int], list[float]]] = {
    "simple": simple,
    "sgm_uniform": sgm_uniform,
    "karras": karras,
    "exponential": exponential,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "normal": normal,
}


def sigmas_for(levels: NoiseLevels, scheduler: str, steps: int, denoise: float = 1.0) -> list[float]:
    """The sigmas of one sampling run, as KSampler chooses them.

    Args:
        levels: training levels of the base.
        scheduler: a name of :data:`SCHEDULERS`.
        steps: number of sampler steps, at least 1.
        denoise: share of the process to run; below 1 the schedule of ``steps / denoise`` steps is cut to its last
            ``steps``. 0 gives an empty list (nothing is sampled).

    Returns:
        Descending sigmas ending in 0.0, normally ``steps + 1`` of them.

    Raises:
        UnknownNameError: no such scheduler.
        InputError: steps below 1, or denoise outside 0..1.
    """
    if scheduler not in SCHEDULERS:
        raise unknown_name("scheduler", scheduler, SCHEDULERS)
    if steps < 1:
        raise InputError(f"steps is {steps}; it must be 1 or more.")
    if not 0.0 <= denoise <= 1.0:
        raise InputError(f"denoise is {denoise}; it must lie between 0 and 1.")
    if denoise == 0.0:
        return []
    if denoise > 0.9999:
        return SCHEDULERS[scheduler](levels, steps)
    return SCHEDULERS[scheduler](levels, int(steps / denoise))[-(steps + 1) :]
