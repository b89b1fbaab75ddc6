"""AdaGrad with D-Adaptation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...core.params import param
from ._adaptive import AdaptiveOptimizer, Tensors, add_scaled_, dot, grown, total, total_abs
from ._adaptive_params import AdaptiveParams
from ._check import check_adaptive
from ._spec import Optimizer, ParamGroup


@dataclass(frozen=True, kw_only=True)
class DAdaptAdagradParams(AdaptiveParams):
    """The settings of D-Adaptation AdaGrad."""

    momentum: float = param(
        0.0, doc="How much of the way so far is kept in every step.", minimum=0.0, maximum=0.9999, step=0.01
    )
    weight_decay: float = param(
        0.0, doc="Pull of every trained weight towards 0, added to its gradient.", minimum=0.0, maximum=10.0, step=0.01
    )


class DAdaptAdagrad(AdaptiveOptimizer):
    """Source: Defazio and Mishchenko 2023 (D-Adaptation), algorithm 3; the authors' code."""

    def first_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the start point, the sum of the squared gradients and the sum s."""
        return {
            "x0": parameter.detach().clone(),
            "alpha": torch.full_like(parameter, 1e-6),
            "s": torch.zeros_like(parameter),
        }

    def first_shared(self) -> dict[str, float]:
        """Returns the weighted sum of the squared gradients."""
        return {"gradients_weighted": 0.0}

    def update(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: dict[str, Tensors],
        shared: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        """Takes one step; see the class."""
        lr = float(group["lr"])
        d_lr = shared["d"] * lr
        pulled = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))

        # the sums
        squared = torch._foreach_mul(pulled, pulled)
        torch._foreach_add_(state["alpha"], squared)
        roots = torch._foreach_sqrt(state["alpha"])
        shared["gradients_weighted"].add_(d_lr * d_lr * total(torch._foreach_div(squared, roots)))
        add_scaled_(state["s"], pulled, d_lr)
        s_weighted = dot(state["s"], torch._foreach_div(state["s"], roots))

        # the estimate
        estimate = (s_weighted - shared["gradients_weighted"]) / total_abs(state["s"])
        shared["d"].copy_(grown(shared, estimate, growth_rate=group["growth"], lr=lr))

        # the step towards x0 - s / sqrt(alpha)
        goal = torch._foreach_sub(state["x0"], torch._foreach_div(state["s"], roots))
        if lr > 0.0:
            torch._foreach_lerp_(parameters, goal, 1.0 - group["momentum"])


def build(groups: Sequence[ParamGroup], params: DAdaptAdagradParams) -> torch.optim.Optimizer:
    """Returns D-Adaptation AdaGrad over the groups."""
    return DAdaptAdagrad(
        groups, d0=params.d0, momentum=params.momentum, weight_decay=params.weight_decay, growth=params.growth
    )


OPTIMIZER = Optimizer(
    name="dadapt_adagrad",
    title="D-Adaptation AdaGrad",
    summary="AdaGrad that finds its step size itself by D-Adaptation (learning rate 1).",
    source="Defazio and Mishchenko 2023 (Learning-Rate-Free Learning by D-Adaptation), algorithm 3",
    params=DAdaptAdagradParams,
    build=build,
    state_floats=3,
    class_path="dadaptation.DAdaptAdaGrad",
    check=partial(check_adaptive, title="D-Adaptation AdaGrad"),
)
