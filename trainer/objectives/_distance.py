"""How far an answer is off, element by element: squared error, Huber and smooth L1 with a schedule of their c."""

from collections.abc import Callable, Mapping

import torch

LOSSES = ("mse", "huber", "smooth_l1", "l1")
HUBER_SCHEDULES = ("snr", "exponential", "constant")


def huber(difference: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Returns 2 c (sqrt(d^2 + c^2) - c): d^2 where d is small against c, 2 c |d| where it is large.

    Source: Charbonnier et al. 1997 (pseudo-Huber); Khrapov et al. 2024 (Improving Diffusion Models's Data-Corruption
    Resistance using Scheduled Pseudo-Huber Loss), equation 3.
    """
    return 2.0 * c * _beyond(difference, c)


def smooth_l1(difference: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Returns 2 (sqrt(d^2 + c^2) - c): d^2 / c where d is small against c, 2 |d| where it is large.

    Source: as ``huber``, without the factor c; kohya's scripts.
    """
    return 2.0 * _beyond(difference, c)


def _beyond(difference: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """sqrt(d^2 + c^2) - c as d^2 / (sqrt(d^2 + c^2) + c), which loses no digits where d is small."""
    squared = difference.square()
    return squared / ((squared + c * c).sqrt() + c)


def _constant(c: float, scale: float, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    return torch.full(timesteps.shape, c * scale, device=timesteps.device)


def _exponential(c: float, scale: float, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    share = timesteps.float() / alphas_cumprod.shape[0]
    return torch.full_like(share, c).pow(share) * scale


def _by_snr(c: float, scale: float, timesteps: torch.Tensor, alphas_cumprod: torch.Tensor) -> torch.Tensor:
    abar = alphas_cumprod[timesteps].float()
    # 1 / (1 + sigma)^2 with sigma = sqrt((1 - abar) / abar), written so that abar = 0 is its limit and no division by 0
    share = abar / (abar.sqrt() + (1.0 - abar).sqrt()).square()
    return (1.0 - c) * share + c


SCHEDULES: Mapping[str, Callable[[float, float, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "constant": _constant,
    "exponential": _exponential,
    "snr": _by_snr,
}
"""c of each sample: constant; c^(t/T); (1 - c) / (1 + sigma_t)^2 + c. Source: Khrapov et al. 2024, section 4."""


def huber_c(
    timesteps: torch.Tensor, *, alphas_cumprod: torch.Tensor, c: float, schedule: str, scale: float
) -> torch.Tensor:
    """Returns c of every sample, [b] fp32; ``scale`` multiplies all schedules but "snr", as in kohya's scripts."""
    return SCHEDULES[schedule](c, scale, timesteps, alphas_cumprod)


def element_loss(kind: str, difference: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Returns the loss of every element of ``difference`` [b, c, h, w] fp32.

    Args:
        kind: one of LOSSES.
        difference: prediction - target.
        c: of every sample, [b]; for "huber" and "smooth_l1".
    """
    if kind == "mse":
        return difference.pow(2)
    if kind == "l1":
        return difference.abs()
    return (huber if kind == "huber" else smooth_l1)(difference, c.view(-1, 1, 1, 1))
