"""Adam with D-Adaptation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...core.params import param
from ._adaptive import AdaptiveOptimizer, Tensors, add_scaled_, decay_, dot, grown, total_abs
from ._adaptive_params import AdaptiveParams
from ._check import check_adaptive
from ._spec import Optimizer, ParamGroup, beta_param, weight_decay_param


@dataclass(frozen=True, kw_only=True)
class DAdaptAdamParams(AdaptiveParams):
    """The settings of D-Adaptation Adam."""

    weight_decay: float = weight_decay_param(0.01)
    beta1: float = beta_param(0.9, "Decay of the mean of the gradients.")
    beta2: float = beta_param(0.999, "Decay of the mean of the squared gradients.")
    epsilon: float = param(
        1e-8, doc="Added to the denominator of the update.", minimum=1e-16, maximum=1.0, step=1e-8, advanced=True
    )


class DAdaptAdam(AdaptiveOptimizer):
    """Source: Defazio and Mishchenko 2023 (D-Adaptation), algorithm 5; the authors' third version."""

    def first_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns both means and the sum s."""
        return {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq", "s")}

    def first_shared(self) -> dict[str, float]:
        """Returns the numerator of the estimate."""
        return {"numerator": 0.0}

    def update(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: dict[str, Tensors],
        shared: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        """Takes one step; see the class."""
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        root = math.sqrt(beta2)
        d_lr = shared["d"] * lr

        # the means, and what the estimate is made of
        scaled = torch._foreach_div(state["s"], _denominators(state, group))
        progress = d_lr * dot(gradients, scaled)
        decay_(state["exp_avg"], gradients, beta1, d_lr * (1.0 - beta1))
        decay_(state["exp_avg_sq"], torch._foreach_mul(gradients, gradients), beta2, 1.0 - beta2)
        decay_(state["s"], gradients, root, d_lr * (1.0 - root))
        length = total_abs(state["s"])
        shared["numerator"].mul_(root).add_(progress * (1.0 - root))

        # the estimate
        estimate = shared["numerator"] / ((1.0 - root) * length)
        shared["d"].copy_(grown(shared, estimate, growth_rate=group["growth"], lr=lr))

        # the step; the mean of the gradients has the rate in it already
        if lr > 0.0:
            torch._foreach_mul_(parameters, 1.0 - d_lr * group["weight_decay"])
        add_scaled_(parameters, torch._foreach_div(state["exp_avg"], _denominators(state, group)), -1.0 * (lr > 0.0))


def _denominators(state: dict[str, Tensors], group: dict[str, Any]) -> Tensors:
    roots = torch._foreach_sqrt(state["exp_avg_sq"])
    torch._foreach_add_(roots, group["epsilon"])
    return list(roots)


def build(groups: Sequence[ParamGroup], params: DAdaptAdamParams) -> torch.optim.Optimizer:
    """Returns D-Adaptation Adam over the groups."""
    return DAdaptAdam(
        groups,
        d0=params.d0,
        betas=(params.beta1, params.beta2),
        weight_decay=params.weight_decay,
        growth=params.growth,
        epsilon=params.epsilon,
    )


OPTIMIZER = Optimizer(
    name="dadapt_adam",
    title="D-Adaptation Adam",
    summary="Adam that finds its step size itself by D-Adaptation (learning rate 1).",
    source="Defazio and Mishchenko 2023 (Learning-Rate-Free Learning by D-Adaptation), algorithm 5",
    params=DAdaptAdamParams,
    build=build,
    state_floats=3,
    class_path="dadaptation.DAdaptAdam",
    check=partial(check_adaptive, title="D-Adaptation Adam"),
)
