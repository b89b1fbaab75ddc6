"""Optimizers that find their own step size, without a word between device and host.

Libraries read the estimate d back in every step, which makes the host wait for the device. Here d, its numerator and
the number of steps are 0-d tensors beside the parameters' state; so they are saved and put back like any other
state, an update of fp16 that must be left out can leave them out too, and the effective learning rate can be logged
with the losses.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, cast

import torch

from ...core.errors import InputError
from ._spec import ParamGroup, torch_groups

SHARED = "shared"
"""Key of the state that belongs to all parameters."""

Tensors = list[torch.Tensor]


def total(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of all numbers, 0-d."""
    return torch.cat([tensor.flatten() for tensor in tensors]).sum()


def total_abs(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of all absolute values, 0-d."""
    return torch.stack(torch._foreach_norm(list(tensors), 1)).sum()


def dot(one: Sequence[torch.Tensor], other: Sequence[torch.Tensor]) -> torch.Tensor:
    """Returns the scalar product over all tensors, 0-d."""
    return total(torch._foreach_mul(list(one), list(other)))


def add_scaled_(targets: Tensors, values: Sequence[torch.Tensor], factor: torch.Tensor | float) -> None:
    """Adds factor x values to targets; the factor may be a 0-d tensor."""
    torch._foreach_add_(targets, torch._foreach_mul(list(values), factor))


def decay_(targets: Tensors, values: Sequence[torch.Tensor], keep: float, factor: torch.Tensor | float) -> None:
    """Multiplies targets by ``keep`` and adds factor x values."""
    torch._foreach_mul_(targets, keep)
    add_scaled_(targets, values, factor)


class AdaptiveOptimizer(torch.optim.Optimizer, ABC):
    """What Prodigy and D-Adaptation share: one estimate d for all parameters, and its state.

    Attributes:
        state_on_device: all that changes in a step is tensors, so a step can be left out by a selection.
    """

    state_on_device = True

    def __init__(self, groups: Sequence[ParamGroup], *, d0: float, **settings: Any) -> None:
        """Builds it over groups with one learning rate.

        Raises:
            InputError: the groups have different learning rates.
        """
        rates = {group.lr for group in groups}
        if len(rates) > 1:
            shown = ", ".join(f"{group.name} {group.lr:g}" for group in groups[:4])
            raise InputError(
                f"The learning rates differ ({shown}), but an optimizer that finds its step size itself follows one: "
                "set factors of blocks and modules to 0 or 1, and both learning rates to 1."
            )
        self.d0 = d0
        super().__init__(torch_groups(groups), {"lr": 1.0, "d0": d0, **settings})

    @abstractmethod
    def first_state(self, parameter: torch.Tensor) -> dict[str, torch.Tensor]:
        """Returns the state of a parameter before its first step."""

    @abstractmethod
    def first_shared(self) -> dict[str, float]:
        """Returns the numbers of the shared state before the first step, beside d and the steps."""

    @abstractmethod
    def update(
        self,
        parameters: Tensors,
        gradients: Tensors,
        state: dict[str, Tensors],
        shared: dict[str, torch.Tensor],
        group: dict[str, Any],
    ) -> None:
        """Changes parameters, state and shared state by one step; ``group`` has the settings and the learning rate."""

    @property
    def shared(self) -> dict[str, torch.Tensor]:
        """The shared state, on the parameters' device."""
        self._begin_shared()
        device = self.param_groups[0]["params"][0].device
        found = self._all_state[SHARED]
        for name, value in found.items():
            if value.device != device:
                found[name] = value.to(device)
        return found

    @property
    def _all_state(self) -> dict[Any, dict[str, torch.Tensor]]:
        # torch keeps and saves states under keys that are no parameters, though its types do not say so
        return cast("dict[Any, dict[str, torch.Tensor]]", self.state)

    def _begin_shared(self) -> None:
        if SHARED not in self._all_state:
            numbers = {"d": self.d0, "steps": 0.0, **self.first_shared()}
            self._all_state[SHARED] = {name: torch.tensor(value) for name, value in numbers.items()}

    def effective_lr(self) -> torch.Tensor:
        """Returns d x lr, 0-d, on the parameters' device."""
        return self.shared["d"] * float(self.param_groups[0]["lr"])

    @torch.no_grad()
    def prepare(self) -> list[torch.Tensor]:
        """Makes all state as it is before a step, and returns the parameters that have a gradient."""
        self._begin_shared()
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(self.first_state(parameter))
        return parameters

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Takes one step over all parameters that have a gradient; a closure is not used."""
        parameters = self.prepare()
        if not parameters:
            return
        names = list(self.state[parameters[0]])
        state = {name: [self.state[parameter][name] for parameter in parameters] for name in names}
        shared = self.shared
        shared["steps"].add_(1.0)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        self.update(parameters, gradients, state, shared, self.param_groups[0])


def bias_correction(group: dict[str, Any], steps: torch.Tensor) -> torch.Tensor:
    """Returns sqrt(1 - beta2^k) / (1 - beta1^k), 0-d, on the device."""
    beta1, beta2 = group["betas"]
    ones = torch.ones_like(steps)
    corrected: torch.Tensor = (1.0 - (ones * beta2).pow(steps)).sqrt() / (1.0 - (ones * beta1).pow(steps))
    return corrected


def grown(shared: dict[str, torch.Tensor], estimate: torch.Tensor, *, growth_rate: float, lr: float) -> torch.Tensor:
    """Returns the next d: the estimate, but never smaller than d and at most ``growth_rate`` times it.

    A rate of 0 (the first step of a warm-up) tells nothing, and d stays.
    """
    d = shared["d"]
    if lr <= 0.0:
        return d.clone()
    bounded = estimate if growth_rate == float("inf") else torch.minimum(estimate, d * growth_rate)
    return torch.maximum(d, torch.nan_to_num(bounded, nan=0.0, posinf=0.0))
