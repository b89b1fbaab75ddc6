"""Lion: the sign of a mean of the gradients."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.params import param
from ._library import library_class
from ._spec import Optimizer, ParamGroup, ScheduledParams, Trained, beta_param, torch_groups, weight_decay_param

LARGE_LR = 3e-4


@dataclass(frozen=True, kw_only=True)
class LionParams(ScheduledParams):
    """The settings of Lion."""

    lr_unet: float = param(
        2e-5,
        doc="Learning rate of the UNet's modules; about a fifth of AdamW's.",
        minimum=0.0,
        maximum=10.0,
        step=1e-5,
    )
    lr_text_encoder: float = param(
        1e-5, doc="Learning rate of the text encoder's modules.", minimum=0.0, maximum=10.0, step=1e-5
    )
    weight_decay: float = weight_decay_param(0.05)
    beta1: float = beta_param(0.9, "How far the update leans on the mean of the gradients.")
    beta2: float = beta_param(0.99, "Decay of the mean of the gradients.")


def build(groups: Sequence[ParamGroup], params: LionParams) -> torch.optim.Optimizer:
    """Returns pytorch_optimizer's Lion over the groups."""
    made: torch.optim.Optimizer = library_class("Lion")(
        torch_groups(groups),
        lr=params.lr_unet,
        betas=(params.beta1, params.beta2),
        weight_decay=params.weight_decay,
        weight_decouple=True,
    )
    return made


def check(params: LionParams, trained: Trained) -> list[str]:
    """Warns of a rate that is AdamW's: every weight moves by the whole rate in every step."""
    library_class("Lion")
    if trained.unet and params.lr_unet > LARGE_LR:
        return [f"lr_unet is {params.lr_unet:g}: Lion is usually given a third to a tenth of AdamW's learning rate."]
    return []


OPTIMIZER = Optimizer(
    name="lion",
    title="Lion",
    summary="Moves every weight by the same amount, by the sign of a mean of the gradients; half of AdamW's memory.",
    source="Chen et al. 2023 (Symbolic Discovery of Optimization Algorithms), program 1; pytorch_optimizer.Lion",
    params=LionParams,
    build=build,
    state_floats=1,
    class_path="pytorch_optimizer.Lion",
    check=check,
)
