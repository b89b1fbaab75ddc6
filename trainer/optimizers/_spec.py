"""What an optimizer is: its parameters and a function that builds it over parameter groups."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.discovery import discover
from ...core.errors import unknown_name
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
class ScheduledParams(OptimizerParams):
    """The rarer settings of the schedules; a class of its own, for they come after an optimizer's older settings."""

    rates: str = param(
        "",
        doc="For the schedule step_list: learning rates of the UNet and the last step of each, such as "
        "0.005:100, 1e-3:1000. The text encoder's follow in proportion.",
    )
    decay_steps: int = param(
        0,
        doc="For the schedule warmup_stable_decay: length of the fall at the end.",
        unit="steps",
        minimum=0,
        maximum=1_000_000,
        step=1,
        advanced=True,
    )
    min_factor: float = param(
        0.0,
        doc="Part of the learning rate at which cosine_with_min_lr, polynomial and warmup_stable_decay end.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        advanced=True,
    )
    power: float = param(
        1.0,
        doc="For the schedule polynomial: 1 is a straight line.",
        minimum=0.1,
        maximum=10.0,
        step=0.1,
        advanced=True,
    )


def weight_decay_param(default: float) -> Any:
    """Returns the documented field for decoupled weight decay."""
    return param(
        default,
        doc="Pull of every trained weight towards 0, in parts of the learning rate.",
        minimum=0.0,
        maximum=10.0,
        step=0.01,
    )


def beta_param(default: float, doc: str) -> Any:
    """Returns the documented field for a decay rate of a moving mean."""
    return param(default, doc=doc, minimum=0.0, maximum=0.999999, step=0.001, advanced=True)


@dataclass(frozen=True, kw_only=True)
class ParamGroup:
    """Parameters that share one learning rate.

    Attributes:
        name: begins with the part, "unet" or "text_encoder".
        lr: the base learning rate, before the schedule.
        parameters: what is trained.
    """

    name: str
    lr: float
    parameters: Sequence[torch.nn.Parameter]


def torch_groups(groups: Sequence[ParamGroup]) -> list[dict[str, Any]]:
    """Returns the groups as torch's optimizers take them."""
    return [{"params": list(group.parameters), "lr": group.lr, "name": group.name} for group in groups]


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What is trained, for checks.

    Attributes:
        unet: whether the UNet is.
        text_encoder: whether the text encoder is.
        steps: of the run.
    """

    unet: bool
    text_encoder: bool
    steps: int


Build = Callable[[Sequence[ParamGroup], Any], torch.optim.Optimizer]
Check = Callable[[Any, Trained], list[str]]


def no_check(params: Any, trained: Trained) -> list[str]:
    """For optimizers without limits of their own."""
    return []


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """One optimizer.

    Attributes:
        name: the name in menus and files; equal to the file name.
        title: how people write it.
        summary: one line for a tooltip.
        source: where the algorithm stands.
        params: its settings, a subclass of OptimizerParams.
        build: makes the torch optimizer over the groups; ``group["name"]`` and ``group["lr"]`` must be kept.
        state_floats: floats of state kept for each trained float, at most (for the estimate of space and memory).
        class_path: dotted name of the class, as the metadata of LoRA files gives it; may name settings in braces.
        check: refuses settings that do not fit, and returns warnings for a person.
        needs: library that must be installed beside those of the pack, "" for none.
        averages: the optimizer averages the weights itself, so that a moving average on top makes no sense.
    """

    name: str
    title: str
    summary: str
    source: str
    params: type[OptimizerParams]
    build: Build
    state_floats: int
    class_path: str
    check: Check = no_check
    needs: str = ""
    averages: bool = False


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
