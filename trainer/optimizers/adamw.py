"""AdamW, torch's own."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...core.params import param
from ._spec import Optimizer, OptimizerParams, ParamGroup, ScheduledParams, torch_groups

FUSED_DEVICES = ("cpu", "cuda", "xpu", "mps")


@dataclass(frozen=True, kw_only=True)
class AdamWSettings(OptimizerParams):
    """The settings AdamW has had from the start."""

    beta1: float = param(
        0.9, doc="Decay of the mean of the gradients.", minimum=0.0, maximum=0.9999, step=0.01, advanced=True
    )
    beta2: float = param(
        0.999,
        doc="Decay of the mean of the squared gradients.",
        minimum=0.0,
        maximum=0.999999,
        step=0.001,
        advanced=True,
    )
    weight_decay: float = param(
        0.01,
        doc="Pull of every trained weight towards 0, in parts of the learning rate.",
        minimum=0.0,
        maximum=10.0,
        step=0.01,
    )
    epsilon: float = param(
        1e-8, doc="Added to the denominator of the update.", minimum=1e-16, maximum=1.0, step=1e-8, advanced=True
    )


@dataclass(frozen=True, kw_only=True)
class AdamWParams(ScheduledParams, AdamWSettings):
    """The settings of AdamW; the order of the bases puts the rarer settings of the schedules last."""


def build(groups: Sequence[ParamGroup], params: AdamWParams) -> torch.optim.Optimizer:
    """Returns torch's AdamW over the groups, in the fused form where this torch has one for the device."""

    def made(*, fused: bool) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            torch_groups(groups),
            betas=(params.beta1, params.beta2),
            eps=params.epsilon,
            weight_decay=params.weight_decay,
            fused=fused,
        )

    devices = {parameter.device.type for group in groups for parameter in group.parameters}
    if devices <= set(FUSED_DEVICES):
        # torch before 2.4 has the fused form for CUDA alone and refuses it with a RuntimeError
        with contextlib.suppress(RuntimeError):
            return made(fused=True)
    return made(fused=False)


OPTIMIZER = Optimizer(
    name="adamw",
    title="AdamW",
    summary="Adam with decoupled weight decay; the usual choice.",
    source="Loshchilov and Hutter 2019 (Decoupled Weight Decay Regularization), algorithm 2; torch.optim.AdamW",
    params=AdamWParams,
    build=build,
    state_floats=2,
    class_path="torch.optim.adamw.AdamW",
)
