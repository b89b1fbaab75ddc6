"""SGD with momentum and D-Adaptation."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ...core.params import param
from ._adaptive import AdaptiveOptimizer, Tensors, add_scaled_, dot, grown
from ._adaptive_params import AdaptiveParams
from ._check import check_adaptive
from ._spec import Optimizer, ParamGroup


@dataclass(frozen=True, kw_only=True)
class DAdaptSgdParams(AdaptiveParams):
    """The settings of D-Adaptation SGD."""

    momentum: float = param(
        0.9, doc="How much of the way so far is kept in every step.", minimum=0.0, maximum=0.9999, step=0.01
    )
    weight_decay: float = param(
        0.0, doc="Pull of every trained weight towards 0, added to its gradient.", minimum=0.0, maximum=10.0, step=0.01
    )


class DAdaptSgd(AdaptiveOptimizer):
    """Source: Defazio and Mishchenko 2023 (D-Adaptation), algorithm 4; the authors' third version."""

    def first_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the start point and the sum s."""
        return {"x0": parameter.detach().clone(), "s": torch.zeros_like(parameter)}

    def first_shared(self) -> dict[str, float]:
        """Returns the numerator of the estimate and the length of the first gradient."""
        return {"numerator": 0.0, "first_norm": 0.0}

    def update(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: dict[str, Tensors],
        shared: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        """Takes one step; see the class."""
        lr, tiny = float(group["lr"]), torch.finfo(torch.float32).tiny
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        shared["first_norm"].copy_(torch.where(shared["first_norm"] > 0.0, shared["first_norm"], norm))
        d_lr = shared["d"] * lr / shared["first_norm"].clamp(min=tiny)

        # the sum, and what the estimate is made of
        pulled = list(torch._foreach_add(gradients, parameters, alpha=group["weight_decay"]))
        shared["numerator"].add_(d_lr * dot(pulled, state["s"]))
        add_scaled_(state["s"], pulled, d_lr)
        length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(state["s"])))
        estimate = 2.0 * shared["numerator"] / length
        shared["d"].copy_(grown(shared, estimate, growth_rate=group["growth"], lr=lr))

        # the step towards x0 - s
        goal = torch._foreach_sub(state["x0"], state["s"])
        if lr > 0.0:
            torch._foreach_lerp_(parameters, goal, 1.0 - group["momentum"])


def build(groups: Sequence[ParamGroup], params: DAdaptSgdParams) -> torch.optim.Optimizer:
    """Returns D-Adaptation SGD over the groups."""
    return DAdaptSgd(
        groups, d0=params.d0, momentum=params.momentum, weight_decay=params.weight_decay, growth=params.growth
    )


OPTIMIZER = Optimizer(
    name="dadapt_sgd",
    title="D-Adaptation SGD",
    summary="SGD with momentum that finds its step size itself by D-Adaptation (learning rate 1).",
    source="Defazio and Mishchenko 2023 (Learning-Rate-Free Learning by D-Adaptation), algorithm 4",
    params=DAdaptSgdParams,
    build=build,
    state_floats=2,
    class_path="dadaptation.DAdaptSGD",
    check=partial(check_adaptive, title="D-Adaptation SGD"),
)
