"""What the optimizer works on: the adapter itself, or fp32 copies of bf16 weights that are rounded stochastically."""

from collections.abc import Sequence

import torch

from ..core import seeds


def stochastically_rounded(values: torch.Tensor) -> torch.Tensor:
    """Rounds fp32 to bf16, up or down with the probability that keeps the mean; not finite values stay what they are.

    The low 16 bits, which bf16 has not, are filled up by a random number of 16 bits. Drawn from torch's own random
    state, which ``AdapterWeights.give_back`` sets for the step.

    Source: Zamirai et al. 2020 (Revisiting BFloat16 Training), section 3; the bit trick is OneTrainer's and others'.
    """
    bits = values.view(torch.int32)
    drawn = torch.randint(0, 1 << 16, values.shape, dtype=torch.int32, device=values.device)
    rounded = ((bits + drawn) & -(1 << 16)).view(torch.float32)
    return torch.where(torch.isfinite(values), rounded, values).to(torch.bfloat16)


class AdapterWeights:
    """The trained parameters as the optimizer sees them.

    Without stochastic rounding these are the adapter's own. With it, the adapter keeps bf16, the optimizer works on
    fp32 copies that last for one step, and each new value is rounded to one of its two neighbours by chance: a
    change smaller than the distance between two bf16 numbers is not lost, but made now and then.
    """

    def __init__(self, *, stochastic_rounding: bool) -> None:
        """Holds nothing until ``worked_on`` is called."""
        self.stochastic_rounding = stochastic_rounding
        self._own: list[torch.nn.Parameter] = []
        self._copies: list[torch.nn.Parameter] = []

    def worked_on(self, parameters: Sequence[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
        """Returns what the optimizer is to be built over, for parameters of the adapter."""
        if not self.stochastic_rounding:
            return list(parameters)
        copies = [torch.nn.Parameter(parameter.detach().float()) for parameter in parameters]
        self._own.extend(parameters)
        self._copies.extend(copies)
        return copies

    def take_gradients(self) -> None:
        """Brings weights and gradients of the adapter to the copies; call it before the gradients are used."""
        if not self._own:
            return
        with torch.no_grad():
            torch._foreach_copy_([*self._copies], [*self._own])
        for own, copy in zip(self._own, self._copies, strict=True):
            copy.grad = None if own.grad is None else own.grad.float()
            own.grad = None

    def give_back(self, *, seed: int, step: int) -> None:
        """Rounds the copies into the adapter; call it after the optimizer's step."""
        if not self._own:
            return
        torch.manual_seed(seeds.derive(seed, step, "rounding"))
        with torch.no_grad():
            for own, copy in zip(self._own, self._copies, strict=True):
                own.copy_(stochastically_rounded(copy))

    def show(self) -> None:
        """Copies what the optimizer has put into its copies to the adapter, to be saved."""
        with torch.no_grad():
            for own, copy in zip(self._own, self._copies, strict=True):
                own.copy_(copy)
