"""Adafactor: second moments as a row and a column."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.errors import InputError
from ...core.params import param
from ._library import library_class
from ._spec import Optimizer, ParamGroup, ScheduledParams, Trained, torch_groups, weight_decay_param


@dataclass(frozen=True, kw_only=True)
class AdafactorParams(ScheduledParams):
    """The settings of Adafactor; by default with a fixed learning rate, as for LoRAs."""

    weight_decay: float = weight_decay_param(0.0)
    relative_step: bool = param(
        False,
        doc="Find the learning rate from the number of steps; the learning rates are not used then.",
        advanced=True,
    )
    scale_parameter: bool = param(False, doc="Scale the learning rate of every tensor by its own size.", advanced=True)
    warmup_init: bool = param(False, doc="With relative_step: begin with a very small rate.", advanced=True)
    clip_threshold: float = param(
        1.0, doc="Largest root mean square of an update.", minimum=0.01, maximum=100.0, step=0.1, advanced=True
    )


def build(groups: Sequence[ParamGroup], params: AdafactorParams) -> torch.optim.Optimizer:
    """Returns pytorch_optimizer's AdaFactor over the groups, without a mean of the gradients."""
    made: torch.optim.Optimizer = library_class("AdaFactor")(
        torch_groups(groups),
        lr=params.lr_unet,
        betas=(None, 0.999),
        weight_decay=params.weight_decay,
        weight_decouple=True,
        clip_threshold=params.clip_threshold,
        scale_parameter=params.scale_parameter,
        relative_step=params.relative_step,
        warmup_init=params.warmup_init,
    )
    return made


def check(params: AdafactorParams, trained: Trained) -> list[str]:
    """Refuses switches that belong together."""
    library_class("AdaFactor")
    if params.warmup_init and not params.relative_step:
        raise InputError("warmup_init is on, but relative_step is off: it only acts with relative_step; switch it off.")
    if not params.relative_step:
        return []
    if params.schedule != "constant" or params.warmup_steps > 0:
        raise InputError(
            f"relative_step is on, and the schedule is {params.schedule} with {params.warmup_steps} steps of warm-up: "
            "Adafactor finds its rate itself then; use the schedule constant without a warm-up."
        )
    return ["Adafactor with relative_step does not use the learning rates; the metrics show those that were given."]


OPTIMIZER = Optimizer(
    name="adafactor",
    title="Adafactor",
    summary="Adam with hardly any state: the least memory.",
    source="Shazeer and Stern 2018 (Adafactor), algorithm 4; pytorch_optimizer.AdaFactor",
    params=AdafactorParams,
    build=build,
    state_floats=2,
    class_path="pytorch_optimizer.AdaFactor",
    check=check,
)
