"""Which time steps are drawn: a range, a distribution over it, and a shift."""

from collections.abc import Callable, Mapping

import torch

Distribution = Callable[[torch.Tensor, float, float], torch.Tensor]
"""(draws [3, b] of U(0, 1), bias, scale) -> positions [b] in 0..1, where 1 is the noisiest end."""

_EDGE = 1e-6


def _logit_normal(draws: torch.Tensor, bias: float, scale: float) -> torch.Tensor:
    """sigmoid(bias + scale n) with n ~ N(0, 1), by inversion."""
    normal = torch.special.ndtri(draws[0].clamp(_EDGE, 1.0 - _EDGE).double())
    return torch.sigmoid(bias + scale * normal).float()


def _heavy_tail(draws: torch.Tensor, bias: float, scale: float) -> torch.Tensor:
    """1 - u - s (cos^2(pi u / 2) - 1 + u)."""
    u = draws[0]
    return 1.0 - u - scale * (torch.cos(0.5 * torch.pi * u).square() - 1.0 + u)


def _cosine_map(draws: torch.Tensor, bias: float, scale: float) -> torch.Tensor:
    """1 - 1 / (tan(pi u / 2) + 1)."""
    u = draws[0].clamp(max=1.0 - _EDGE)
    return 1.0 - 1.0 / (torch.tan(0.5 * torch.pi * u) + 1.0)


def _parabola(draws: torch.Tensor, bias: float, scale: float) -> torch.Tensor:
    """Density 6 u (1 - u): the middle one of three uniform draws has it."""
    return draws.median(dim=0).values


DISTRIBUTIONS: Mapping[str, Distribution | None] = {
    "uniform": None,
    "logit_normal": _logit_normal,
    "heavy_tail": _heavy_tail,
    "cosine_map": _cosine_map,
    "inverted_parabola": _parabola,
}
"""Source of the middle three: Esser et al. 2024 (Stable Diffusion 3), equations 19, 20 and 21."""


def shifted(position: torch.Tensor, shift: float) -> torch.Tensor:
    """Returns s t / (1 + (s - 1) t): above 1 moves time steps towards the noisy end.

    Source: Esser et al. 2024 (Stable Diffusion 3), equation 23.
    """
    return shift * position / (1.0 + (shift - 1.0) * position)


def draw_timesteps(
    count: int,
    *,
    generator: torch.Generator,
    first: int,
    end: int,
    distribution: str = "uniform",
    bias: float = 0.0,
    scale: float = 1.0,
    shift: float = 1.0,
) -> torch.Tensor:
    """Returns ``count`` time steps in ``first`` .. ``end`` - 1, int64, on the generator's device."""
    device = generator.device
    place = DISTRIBUTIONS[distribution]
    if place is None and shift == 1.0:
        return torch.randint(first, end, (count,), generator=generator, device=device)
    draws = torch.rand((3, count), generator=generator, device=device)
    position = shifted(draws[0] if place is None else place(draws, bias, scale), shift)
    steps = (first + position * (end - first)).floor().long()
    return steps.clamp(min=first, max=end - 1)
