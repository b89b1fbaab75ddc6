"""Schedule-free AdamW: the average of the weights takes the place of a falling learning rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.errors import InputError
from ...core.params import param
from ._library import library_class
from ._spec import Optimizer, ParamGroup, ScheduledParams, Trained, beta_param, torch_groups, weight_decay_param


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeAdamWParams(ScheduledParams):
    """The settings of schedule-free AdamW."""

    lr_unet: float = param(
        5e-4,
        doc="Learning rate of the UNet's modules; larger than AdamW's.",
        minimum=0.0,
        maximum=10.0,
        step=1e-5,
    )
    lr_text_encoder: float = param(
        1e-4, doc="Learning rate of the text encoder's modules.", minimum=0.0, maximum=10.0, step=1e-5
    )
    weight_decay: float = weight_decay_param(0.01)
    beta1: float = param(
        0.9,
        doc="How far the point where gradients are taken lies towards the average.",
        minimum=0.01,
        maximum=0.9999,
        step=0.01,
        advanced=True,
    )
    beta2: float = beta_param(0.999, "Decay of the mean of the squared gradients.")


def build(groups: Sequence[ParamGroup], params: ScheduleFreeAdamWParams) -> torch.optim.Optimizer:
    """Returns pytorch_optimizer's ScheduleFreeAdamW over the groups, in its training mode."""
    made: torch.optim.Optimizer = library_class("ScheduleFreeAdamW")(
        torch_groups(groups),
        lr=params.lr_unet,
        betas=(params.beta1, params.beta2),
        weight_decay=params.weight_decay,
    )
    made.train()  # type: ignore[attr-defined]
    return made


def check(params: ScheduleFreeAdamWParams, trained: Trained) -> list[str]:
    """Refuses a schedule: the average is the schedule."""
    library_class("ScheduleFreeAdamW")
    if params.schedule != "constant":
        raise InputError(
            f"The schedule is {params.schedule}, but schedule-free AdamW averages the weights instead of lowering the "
            "rate: use the schedule constant, with a warm-up if you like."
        )
    return []


OPTIMIZER = Optimizer(
    name="schedule_free_adamw",
    title="Schedule-Free AdamW",
    summary="AdamW that needs no falling learning rate: the LoRA is an average over the way.",
    source="Defazio et al. 2024 (The Road Less Scheduled), algorithm 1; pytorch_optimizer.ScheduleFreeAdamW",
    params=ScheduleFreeAdamWParams,
    build=build,
    state_floats=2,
    class_path="pytorch_optimizer.ScheduleFreeAdamW",
    check=check,
    averages=True,
)
