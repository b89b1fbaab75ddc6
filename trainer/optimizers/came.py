"""CAME: Adafactor with a measure of confidence."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ._library import library_class
from ._spec import Optimizer, ParamGroup, ScheduledParams, Trained, beta_param, torch_groups, weight_decay_param


@dataclass(frozen=True, kw_only=True)
class CameParams(ScheduledParams):
    """The settings of CAME."""

    weight_decay: float = weight_decay_param(0.01)
    beta1: float = beta_param(0.9, "Decay of the mean of the updates.")
    beta2: float = beta_param(0.999, "Decay of the mean of the squared gradients.")
    beta3: float = beta_param(0.9999, "Decay of the mean of the updates' instability.")


def build(groups: Sequence[ParamGroup], params: CameParams) -> torch.optim.Optimizer:
    """Returns pytorch_optimizer's CAME over the groups."""
    made: torch.optim.Optimizer = library_class("CAME")(
        torch_groups(groups),
        lr=params.lr_unet,
        betas=(params.beta1, params.beta2, params.beta3),
        weight_decay=params.weight_decay,
        weight_decouple=True,
    )
    return made


def check(params: CameParams, trained: Trained) -> list[str]:
    """Refuses to start without the library."""
    library_class("CAME")
    return []


OPTIMIZER = Optimizer(
    name="came",
    title="CAME",
    summary="Adafactor that trusts steady updates more: little memory, as good as Adam.",
    source="Luo et al. 2023 (CAME), algorithm 2; pytorch_optimizer.CAME",
    params=CameParams,
    build=build,
    state_floats=3,
    class_path="pytorch_optimizer.CAME",
    check=check,
)
