"""Ways to put several changes of one weight together that look at single elements: TIES, DARE and both.

They work on whole matrices, so the result has no rank of its own and is cut afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...core.seeds import derive


def trimmed(change: Tensor, density: float) -> Tensor:
    """The share `density` of the elements that are largest by magnitude, the others 0.

    Source: Yadav et al. 2023 (TIES, arXiv 2306.01708), section 4, step 1.
    """
    keep = round(density * change.numel())
    if keep >= change.numel():
        return change
    if keep == 0:
        return torch.zeros_like(change)
    limit = change.abs().flatten().kthvalue(change.numel() - keep + 1).values
    return torch.where(change.abs() >= limit, change, torch.zeros((), dtype=change.dtype))


def dropped(change: Tensor, density: float, *, seed: int, parts: Sequence[str | int]) -> Tensor:
    """Each element kept with probability `density` and divided by it, else 0.

    Source: Yu et al. 2023 (DARE, arXiv 2311.03099), equation 3 with p = 1 - density.
    """
    generator = torch.Generator().manual_seed(derive(seed, "dare", *parts))
    kept = torch.rand(change.shape, generator=generator) < density
    return torch.where(kept, change / density, torch.zeros((), dtype=change.dtype))


def elected_mean(changes: Sequence[Tensor]) -> Tensor:
    """Per element the sign with the greater total, and the mean of the changes that have it.

    Source: Yadav et al. 2023 (TIES), section 4, steps 2 and 3 (disjoint mean over the elements that are not 0).
    """
    sign = torch.sign(torch.stack(list(changes)).sum(dim=0))
    total, count = torch.zeros_like(sign), torch.zeros_like(sign)
    for change in changes:
        agrees = (torch.sign(change) == sign) & (change != 0)
        total += torch.where(agrees, change, torch.zeros((), dtype=change.dtype))
        count += agrees
    return total / count.clamp_min(1.0)


def together(changes: Sequence[Tensor], method: str, density: float, *, seed: int, name: str) -> Tensor:
    """The changes of one weight put together, strengths included.

    Args:
        changes: [out, in * kernel] fp32, one of each LoRA.
        method: "ties", "dare" or "dare_ties".
        density: share of elements that is kept.
        seed: of DARE.
        name: of the layer, so that layers draw numbers of their own.
    """
    if method == "ties":
        return elected_mean([trimmed(change, density) for change in changes])
    thinned = [dropped(change, density, seed=seed, parts=(name, number)) for number, change in enumerate(changes)]
    return torch.stack(thinned).sum(dim=0) if method == "dare" else elected_mean(thinned)
