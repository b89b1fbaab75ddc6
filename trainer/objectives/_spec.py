"""What an objective is: what the network sees, what it should answer, and how far off an answer is."""

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from ...core.discovery import discover
from ...core.errors import unknown_name
from ...core.params import Params


@dataclass(frozen=True, kw_only=True)
class Question:
    """What one micro-batch asks of the network.

    Attributes:
        noisy_latents: [b, c, h, w] fp32, what the network sees.
        timesteps: [b] int64.
        target: [b, c, h, w] fp32, the right answer.
    """

    noisy_latents: torch.Tensor
    timesteps: torch.Tensor
    target: torch.Tensor


class Ask(Protocol):
    """Draws noise and time steps and makes the question."""

    def __call__(
        self, latents: torch.Tensor, *, alphas_cumprod: torch.Tensor, params: Any, generator: torch.Generator
    ) -> Question:
        """Returns the question for scaled latents [b, c, h, w] fp32; draws on the generator's own device."""
        ...


class Loss(Protocol):
    """How far an answer is off."""

    def __call__(
        self,
        prediction: torch.Tensor,
        question: Question,
        *,
        alphas_cumprod: torch.Tensor,
        params: Any,
        mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns the loss of every sample, [b] fp32; ``mask`` [b, 1, h, w] weighs the elements before their mean."""
        ...


class NoiseSchedule(Protocol):
    """The noise schedule the objective works with."""

    def __call__(self, alphas_cumprod: torch.Tensor, *, params: Any, terminal_snr_is_zero: bool) -> torch.Tensor:
        """Returns the schedule [T] made from the family's; the model may say that its terminal SNR is zero."""
        ...


def family_schedule(alphas_cumprod: torch.Tensor, *, params: Any, terminal_snr_is_zero: bool) -> torch.Tensor:
    """Returns the family's schedule unchanged."""
    return alphas_cumprod


@dataclass(frozen=True, kw_only=True)
class Objective:
    """One objective.

    Attributes:
        name: the name in menus and files; equal to the file name.
        title: how people write it.
        summary: one line for a tooltip.
        source: where the formulas stand.
        prediction_type: which kind of model it trains ("epsilon", ...), as the family names it.
        params: its settings.
        ask: makes the question from clean latents.
        loss: the loss of every sample.
        schedule: the noise schedule; all tables are made from what it returns.
    """

    name: str
    title: str
    summary: str
    source: str
    prediction_type: str
    params: type[Params]
    ask: Ask
    loss: Loss
    schedule: NoiseSchedule = family_schedule


def objectives() -> dict[str, Objective]:
    """Returns every objective of this folder by name."""
    found: dict[str, Any] = discover(__package__, "OBJECTIVE")
    return found


def find_objective(name: str) -> Objective:
    """Returns the objective called ``name``.

    Raises:
        UnknownNameError: there is none.
    """
    found = objectives()
    if name not in found:
        raise unknown_name("objective", name, found)
    return found[name]
