"""Prodigy: Adam that finds its step size, faster than D-Adaptation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...core.params import param
from ._adaptive import AdaptiveOptimizer, Tensors, add_scaled_, bias_correction, decay_, dot, total_abs
from ._adaptive_params import AdaptiveParams
from ._check import check_adaptive
from ._spec import Optimizer, ParamGroup, Trained, beta_param, weight_decay_param


@dataclass(frozen=True, kw_only=True)
class ProdigyParams(AdaptiveParams):
    """The settings of Prodigy."""

    weight_decay: float = weight_decay_param(0.01)
    d_coef: float = param(
        1.0,
        doc="Factor on the step size that is found: 0.5 to 2.",
        minimum=0.01,
        maximum=100.0,
        step=0.1,
    )
    beta1: float = beta_param(0.9, "Decay of the mean of the gradients.")
    beta2: float = beta_param(0.999, "Decay of the mean of the squared gradients.")
    use_bias_correction: bool = param(True, doc="Correct the means for their start at 0, as Adam does.", advanced=True)
    safeguard_warmup: bool = param(
        True, doc="Keep a warm-up of the schedule from inflating the step size.", advanced=True
    )
    epsilon: float = param(
        1e-8, doc="Added to the denominator of the update.", minimum=1e-16, maximum=1.0, step=1e-8, advanced=True
    )


class Prodigy(AdaptiveOptimizer):
    """Source: Mishchenko and Defazio 2024 (Prodigy), algorithm 4; the authors' code for warm-up and decay."""

    def first_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the start point, both means and the sum s."""
        zero = torch.zeros_like
        return {
            "p0": parameter.detach().clone(),
            "exp_avg": zero(parameter),
            "exp_avg_sq": zero(parameter),
            "s": zero(parameter),
        }

    def first_shared(self) -> dict[str, float]:
        """Returns the numerator of the estimate and its largest value so far."""
        return {"numerator": 0.0, "d_max": self.d0}

    def update(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: dict[str, Tensors],
        shared: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        """Takes one step; see the class."""
        (beta1, beta2), lr, d, d0 = group["betas"], float(group["lr"]), shared["d"].clone(), group["d0"]
        beta3 = math.sqrt(beta2)
        d_lr = d * lr
        if group["use_bias_correction"]:
            d_lr = d_lr * bias_correction(group, shared["steps"])

        # the means, and what the estimate is made of
        way = torch._foreach_sub(state["p0"], parameters)
        numerator = shared["numerator"] * beta3 + (d / d0) * d_lr * dot(gradients, way)
        decay_(state["exp_avg"], gradients, beta1, d * (1.0 - beta1))
        decay_(state["exp_avg_sq"], torch._foreach_mul(gradients, gradients), beta2, d * d * (1.0 - beta2))
        decay_(state["s"], gradients, beta3, (d / d0) * (d if group["safeguard_warmup"] else d_lr))
        denominator = total_abs(state["s"])

        # the estimate; without any gradient so far everything stays as it is
        moved = (denominator > 0.0).to(d.dtype)
        estimate = group["d_coef"] * numerator / denominator.clamp(min=torch.finfo(d.dtype).tiny)
        shared["numerator"].copy_(numerator)
        if lr > 0.0:
            started = torch.where(d == d0, torch.maximum(d, estimate), d)
            d_max = torch.maximum(shared["d_max"], estimate)
            grown = torch.minimum(d_max, started * group["growth"])
            shared["d_max"].copy_(torch.where(denominator > 0.0, d_max, shared["d_max"]))
            shared["d"].copy_(torch.where(denominator > 0.0, grown, d))

        # the step
        # m / (sqrt(v) + d eps), both sides divided by d eps, for a tensor cannot be added to all without a read-back
        scale = 1.0 / (shared["d"] * group["epsilon"])
        denominators = torch._foreach_mul(torch._foreach_sqrt(state["exp_avg_sq"]), scale)
        torch._foreach_add_(denominators, 1.0)
        torch._foreach_mul_(parameters, 1.0 - moved * d_lr * group["weight_decay"])
        update = torch._foreach_div(torch._foreach_mul(state["exp_avg"], scale), denominators)
        add_scaled_(parameters, update, -d_lr * moved)


def build(groups: Sequence[ParamGroup], params: ProdigyParams) -> torch.optim.Optimizer:
    """Returns Prodigy over the groups."""
    return Prodigy(
        groups,
        d0=params.d0,
        betas=(params.beta1, params.beta2),
        weight_decay=params.weight_decay,
        d_coef=params.d_coef,
        growth=params.growth,
        use_bias_correction=params.use_bias_correction,
        safeguard_warmup=params.safeguard_warmup,
        epsilon=params.epsilon,
    )


def check(params: ProdigyParams, trained: Trained) -> list[str]:
    """Refuses learning rates that Prodigy cannot use."""
    warnings = check_adaptive(params, trained, title="Prodigy")
    if params.warmup_steps > 0 and not params.safeguard_warmup:
        warnings.append("Prodigy with a warm-up needs safeguard_warmup, or its step size grows too large.")
    return warnings


OPTIMIZER = Optimizer(
    name="prodigy",
    title="Prodigy",
    summary="Adam that finds its step size itself (learning rate 1); faster than D-Adaptation.",
    source="Mishchenko and Defazio 2024 (Prodigy: An Expeditiously Adaptive Parameter-Free Learner), algorithm 4",
    params=ProdigyParams,
    build=build,
    state_floats=4,
    class_path="prodigyopt.Prodigy",
    check=check,
)
