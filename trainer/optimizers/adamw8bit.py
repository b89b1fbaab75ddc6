"""AdamW with its state in 8 bits, by bitsandbytes."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.params import param
from ._library import library_module
from ._spec import Optimizer, ParamGroup, ScheduledParams, Trained, beta_param, torch_groups, weight_decay_param

LIBRARY = "bitsandbytes"


@dataclass(frozen=True, kw_only=True)
class AdamW8bitParams(ScheduledParams):
    """The settings of 8-bit AdamW."""

    beta1: float = beta_param(0.9, "Decay of the mean of the gradients.")
    beta2: float = beta_param(0.999, "Decay of the mean of the squared gradients.")
    weight_decay: float = weight_decay_param(0.01)
    epsilon: float = param(
        1e-8, doc="Added to the denominator of the update.", minimum=1e-16, maximum=1.0, step=1e-8, advanced=True
    )


def build(groups: Sequence[ParamGroup], params: AdamW8bitParams) -> torch.optim.Optimizer:
    """Returns bitsandbytes' AdamW8bit over the groups.

    Raises:
        MissingLibraryError: bitsandbytes is not installed.
    """
    made: torch.optim.Optimizer = library_module(LIBRARY).optim.AdamW8bit(
        torch_groups(groups),
        lr=params.lr_unet,
        betas=(params.beta1, params.beta2),
        eps=params.epsilon,
        weight_decay=params.weight_decay,
    )
    return made


def check(params: AdamW8bitParams, trained: Trained) -> list[str]:
    """Refuses to start without the library."""
    library_module(LIBRARY)
    return ["AdamW 8-bit keeps small tensors (below 4096 numbers) in 32 bits, so a LoRA of a low rank saves little."]


OPTIMIZER = Optimizer(
    name="adamw8bit",
    title="AdamW 8-bit",
    summary="AdamW with its state in 8 bits; needs bitsandbytes and an NVIDIA card.",
    source="Dettmers et al. 2022 (8-bit Optimizers via Block-wise Quantization); bitsandbytes.optim.AdamW8bit",
    params=AdamW8bitParams,
    build=build,
    state_floats=2,
    class_path="bitsandbytes.optim.AdamW8bit",
    check=check,
    needs=LIBRARY,
)
