"""What an optimizer is: its parameters and a function that builds it over parameter groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.discovery import discover
from ...core.errors import InputError, unknown_name
from ...core.params import Params, param
from ..schedules._spec import schedule_names


@dataclass(frozen=True, kw_only=True)
class OptimizerParams(Params):
    """The settings every optimizer has: learning rates and their schedule."""

    lr_unet: float = param(
        1e-4,
        doc="Learning rate of the UNet's modules.",
        minimum=0.0,
        maximum=10.0,
        step=1e-5,
    )
    lr_text_encoder: float = param(
        5e-5,
        doc="Learning rate of the text encoder's modules.",
        minimum=0.0,
        maximum=10.0,
        step=1e-5,
    )
    schedule: str = param(
        "constant",
        doc="How the learning rates change over the run.",
        choices=schedule_names,
    )
    warmup_steps: int = param(
        0,
        doc="Steps over which the learning rates rise from 0.",
        unit="steps",
        minimum=0,
        maximum=1_000_000,
        step=1,
    )
    cycles: int = param(
        1,
        doc="Number of falls of the schedule cosine_with_restarts.",
        minimum=1,
        maximum=1000,
        step=1,
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that share one learning rate.

    Attributes:
        name: "unet" or "text_encoder".
        lr: the base learning rate, before the schedule.
        parameters: what is trained, fp32.
    """

    name: str
    lr: float
    parameters: Sequence[torch.nn.Parameter]


Build = Callable[[Sequence[ParamGroup], Any], torch.optim.Optimizer]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One optimizer.

    Attributes:
        name: the name in menus and files; equal to the file name.
        summary: one line for a tooltip.
        source: where the algorithm stands.
        params: its settings, a subclass of OptimizerParams.
        build: makes the torch optimizer over the groups; ``group["name"]`` and ``group["lr"]`` must be kept.
        state_floats: floats of state kept for each trained float (for the estimate of space and memory).
        class_path: dotted name of the torch class, as the metadata of LoRA files gives it.
    """

    name: str
    summary: str
    source: str
    params: type[OptimizerParams]
    build: Build
    state_floats: int
    class_path: str


def optimizers() -> dict[str, Optimizer]:
    """Returns every optimizer of this folder by name."""
    found: dict[str, Any] = discover(__package__, "OPTIMIZER")
    return found


def find_optimizer(name: str) -> Optimizer:
    """Returns the optimizer called ``name``.

    Raises:
        UnknownNameError: there is none.
    """
    found = optimizers()
    if name not in found:
        raise unknown_name("optimizer", name, found)
    return found[name]


def check_learning_rates(params: OptimizerParams, *, train_unet: bool, train_text_encoder: bool) -> None:
    """Refuses a part that is to be trained with a learning rate of 0.

    Raises:
        InputError: a trained part's learning rate is 0.
    """
    wanted = (("unet", train_unet, params.lr_unet), ("text_encoder", train_text_encoder, params.lr_text_encoder))
    for part, trained, lr in wanted:
        if trained and lr <= 0.0:
            raise InputError(
                f"lr_{part} is {lr:g}, but train_{part} is on: give a learning rate above 0, or switch train_{part} "
                "off."
            )
