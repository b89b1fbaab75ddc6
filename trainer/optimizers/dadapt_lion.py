"""Lion with D-Adaptation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ._adaptive import AdaptiveOptimizer, Tensors, add_scaled_, decay_, dot, grown, total_abs
from ._adaptive_params import AdaptiveParams
from ._check import check_adaptive
from ._spec import Optimizer, ParamGroup, beta_param, weight_decay_param


@dataclass(frozen=True, kw_only=True)
class DAdaptLionParams(AdaptiveParams):
    """The settings of D-Adaptation Lion."""

    weight_decay: float = weight_decay_param(0.0)
    beta1: float = beta_param(0.9, "How far the update leans on the mean of the gradients.")
    beta2: float = beta_param(0.999, "Decay of the mean of the gradients.")


class DAdaptLion(AdaptiveOptimizer):
    """Source: Defazio and Mishchenko 2023 (D-Adaptation); the authors' Lion variant of their third version."""

    def first_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the mean of the gradients and the sum s."""
        return {"exp_avg": torch.zeros_like(parameter), "s": torch.zeros_like(parameter)}

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

        # the step, by the sign of the mean
        signs = list(torch._foreach_mul(state["exp_avg"], beta1))
        torch._foreach_add_(signs, gradients, alpha=1.0 - beta1)
        torch._foreach_sign_(signs)
        torch._foreach_mul_(parameters, 1.0 - d_lr * group["weight_decay"])
        add_scaled_(parameters, signs, -d_lr)

        # the mean, and what the estimate is made of
        decay_(state["exp_avg"], gradients, beta2, d_lr * (1.0 - beta2))
        progress = d_lr * dot(signs, state["s"])
        decay_(state["s"], signs, root, d_lr * (1.0 - root))
        length = total_abs(state["s"])
        shared["numerator"].mul_(root).add_(progress * (1.0 - root))

        # the estimate
        estimate = shared["numerator"] / ((1.0 - root) * length)
        shared["d"].copy_(grown(shared, estimate, growth_rate=group["growth"], lr=lr))


def build(groups: Sequence[ParamGroup], params: DAdaptLionParams) -> torch.optim.Optimizer:
    """Returns D-Adaptation Lion over the groups."""
    return DAdaptLion(
        groups,
        d0=params.d0,
        betas=(params.beta1, params.beta2),
        weight_decay=params.weight_decay,
        growth=params.growth,
    )


OPTIMIZER = Optimizer(
    name="dadapt_lion",
    title="D-Adaptation Lion",
    summary="Lion that finds its step size itself by D-Adaptation (learning rate 1); the usual choice for characters.",
    source="Defazio and Mishchenko 2023 (Learning-Rate-Free Learning by D-Adaptation); the authors' DAdaptLion",
    params=DAdaptLionParams,
    build=build,
    state_floats=2,
    class_path="dadaptation.DAdaptLion",
    check=partial(check_adaptive, title="D-Adaptation Lion"),
)
