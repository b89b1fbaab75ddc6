"""Muon (Jordan et al. 2024) for matrices and kernels, AdamW for the rest: small networks learn in fewer steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

_Job = tuple[list[tuple[nn.Parameter, Tensor]], float, float]
"""(weights of one shape with their momentum, learning rate, weight decay)."""

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalised(gradients: Tensor, iterations: int = 5) -> Tensor:
    """[n, rows, columns] with every matrix's singular values driven to about 1 (quintic Newton-Schulz, bfloat16)."""
    first, second, third = _COEFFICIENTS
    tall = gradients.shape[1] > gradients.shape[2]
    matrices = gradients.transpose(1, 2) if tall else gradients
    matrices = (matrices / (matrices.flatten(1).norm(dim=1)[:, None, None] + 1e-7)).bfloat16()
    for _ in range(iterations):
        gram = matrices @ matrices.transpose(1, 2)
        matrices = first * matrices + (second * gram + third * gram @ gram) @ matrices
    answer: Tensor = (matrices.transpose(1, 2) if tall else matrices).float()
    return answer


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised; its size is that of an AdamW update, so learning rates carry over.

    The factor 0.2 sqrt(max(rows, columns)) is that of Liu et al. 2025, "Muon is scalable for LLM training", eq. 4.
    """

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        """Take weights of two or more dimensions; convolution kernels count as [out, in x height x width]."""
        super().__init__(weights, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.run: Callable[[Callable[[_Job], None], Iterable[_Job]], Iterable[None]] = map
        """How the updates of different shapes are worked through; a thread pool's `map` shares them out."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update; weights of one shape are orthogonalised together."""
        for group in self.param_groups:
            same_shape: dict[tuple[int, int], list[tuple[nn.Parameter, Tensor]]] = {}
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state: dict[str, Any] = self.state[weight]
                buffer = state.setdefault("momentum_buffer", torch.zeros_like(weight))
                buffer.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(buffer, group["momentum"]).flatten(1)
                same_shape.setdefault((ahead.shape[0], ahead.shape[1]), []).append((weight, ahead))
            jobs = [(members, group["lr"], group["weight_decay"]) for members in same_shape.values()]
            list(self.run(_update, jobs))


@torch.no_grad()
def _update(job: _Job) -> None:
    members, lr, weight_decay = job
    updates = orthogonalised(torch.stack([ahead for _, ahead in members]))
    size = 0.2 * max(updates.shape[1:]) ** 0.5
    for (weight, _), update in zip(members, updates, strict=True):
        weight.mul_(1 - lr * weight_decay)
        weight.add_(update.view_as(weight), alpha=-lr * size)


def split_weights(*modules: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """(weights for Muon, weights for AdamW): matrices and kernels, except the embeddings and the outermost layers."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for module in modules:
        for name, weight in module.named_parameters():
            outer = "embed" in name or "conv_in" in name or "conv_out" in name or min(weight.shape[:2], default=0) < 16
            (others if weight.ndim < 2 or outer else matrices).append(weight)
    return matrices, others


def muon_and_adamw(
    modules: Iterable[nn.Module], lr: float, outer_lr: float, weight_decay: float = 0.01
) -> list[torch.optim.Optimizer]:
    """Muon over the inner matrices of the modules and AdamW over everything else."""
    matrices, others = split_weights(*modules)
    adamw = torch.optim.AdamW(others, lr=outer_lr, betas=(0.9, 0.99), weight_decay=0.0)
    optimizers: list[torch.optim.Optimizer] = [Muon(matrices, lr, weight_decay=weight_decay), adamw]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["full_lr"] = group["lr"]
    return optimizers


def set_rates(optimizers: Iterable[torch.optim.Optimizer], factor: float) -> None:
    """Set every learning rate to this factor of its full value."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["full_lr"] * factor
