"""Number formats of a run, and updates that are left out on the device when something is not finite."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

TORCH_DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

OutOfMemory: type[BaseException] = getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError)
"""What torch raises when the device's memory is not enough; before 2.5 it has it for CUDA only."""

FIRST_LOSS_SCALE = 65536.0
GROWTH_INTERVAL_STEPS = 2000
SMALLEST_LOSS_SCALE = 2.0**-10


class Precision:
    """Autocast and, for fp16, a loss scale that lives on the device and adapts as torch's GradScaler does.

    Nothing here waits for the device.

    Attributes:
        name: "fp32", "fp16" or "bf16".
        weights_dtype: of the frozen weights.
        scale: 0-d fp32, what the loss is multiplied by before the backward pass; None except for fp16.
        good_steps: 0-d fp32, finite updates since the scale last changed; None except for fp16.
    """

    def __init__(self, name: str, device: torch.device) -> None:
        """Starts with the usual scale of 65536 for fp16."""
        self.name = name
        self.device = device
        self.weights_dtype = TORCH_DTYPES[name]
        self.scale: torch.Tensor | None = None
        self.good_steps: torch.Tensor | None = None
        if name == "fp16":
            self.scale = torch.tensor(FIRST_LOSS_SCALE, device=device)
            self.good_steps = torch.tensor(0.0, device=device)

    def autocast(self) -> AbstractContextManager[object]:
        """Returns the context of the forward pass."""
        if self.name == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.weights_dtype)

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Returns the loss to call ``backward`` on."""
        return loss if self.scale is None else loss * self.scale

    def broken(self, loss: torch.Tensor, finite: torch.Tensor) -> torch.Tensor:
        """Returns whether the run cannot go on (0-d bool).

        Under fp16 an infinite gradient is the way to find the right scale; the run is broken only when the loss itself
        is not finite or no scale is small enough.
        """
        if self.scale is None:
            return finite.logical_not()
        return torch.isfinite(loss).logical_not() | (self.scale < SMALLEST_LOSS_SCALE)

    def after_step(self, finite: torch.Tensor) -> None:
        """Halves the scale after an update that was left out, doubles it after 2000 good ones.

        Source: Micikevicius et al. 2018 (Mixed Precision Training), section 3.2; torch.amp.GradScaler's numbers.
        """
        if self.scale is None or self.good_steps is None:
            return
        good = torch.where(finite, self.good_steps + 1.0, torch.zeros_like(self.good_steps))
        grows = good >= GROWTH_INTERVAL_STEPS
        self.scale = torch.where(finite, torch.where(grows, self.scale * 2.0, self.scale), self.scale * 0.5)
        self.good_steps = torch.where(grows, torch.zeros_like(good), good)

    def state(self) -> dict[str, torch.Tensor]:
        """Returns what an exact resume needs."""
        if self.scale is None or self.good_steps is None:
            return {}
        return {"scale": self.scale, "good_steps": self.good_steps}

    def load_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes back what ``state`` gave."""
        if self.scale is not None:
            self.scale = tensors["scale"].to(self.device, copy=True)
            self.good_steps = tensors["good_steps"].to(self.device, copy=True)


def clip_gradients(
    parameters: Sequence[torch.nn.Parameter], *, max_norm: float, scale: torch.Tensor | None
) -> torch.Tensor:
    """Takes the loss scale out of the gradients, shortens them to ``max_norm`` and returns their length before that.

    Args:
        parameters: those without a gradient are passed over.
        max_norm: 0 leaves the length alone.
        scale: the loss scale, 0-d, or None.

    Returns:
        The length of the unscaled gradients, 0-d fp32, on the parameters' device; not finite if any gradient is not.

    Source: Pascanu, Mikolov and Bengio 2013, algorithm 1; the 1e-6 is torch's ``clip_grad_norm_``.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros((), device=parameters[0].device)
    norm: torch.Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)).float())
    factor = torch.ones_like(norm)
    if scale is not None:
        factor = 1.0 / scale
        norm = norm * factor
    if max_norm > 0.0:
        factor = factor * (max_norm / (norm + 1e-6)).clamp(max=1.0)
    if scale is not None or max_norm > 0.0:
        torch._foreach_mul_(gradients, factor)
    return norm


def masked_step(optimizer: torch.optim.Optimizer, good: torch.Tensor, *, scaled: bool) -> None:
    """Takes an optimizer's step unless ``good`` (0-d bool, on the device) says that something is not finite.

    Fused optimizers are given the flag and look at it on the device. Without a loss scale (``scaled`` is False) the
    others take their step in any case: a run that is broken is stopped, and nothing of it is saved. With one, an
    overflow is nothing unusual and must leave no trace: those whose state is all on the device put their old values
    back by a selection there; for classes of libraries, which keep numbers on the host, the host has to ask.
    """
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = good.logical_not().to(torch.float32)  # type: ignore[attr-defined]
        optimizer.step()
    elif not scaled:
        optimizer.step()
    elif getattr(optimizer, "state_on_device", False):
        _selected_step(optimizer, good)
    elif bool(good):
        optimizer.step()


def _selected_step(optimizer: torch.optim.Optimizer, good: torch.Tensor) -> None:
    """Takes the step and puts everything back on the device if it should not have been taken."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"] if weight.grad is not None]
    if not weights:
        return
    for weight in weights:
        weight.grad.masked_fill_(good.logical_not(), 0.0)
    optimizer.prepare()  # type: ignore[attr-defined]
    known = {key: tuple(values) for key, values in optimizer.state.items()}

    def changing() -> list[torch.Tensor]:
        values = [optimizer.state[key][name] for key, names in known.items() for name in names]
        return [*(weight.detach() for weight in weights), *values]

    old = torch._foreach_mul(changing(), 1.0)
    optimizer.step()
    new = changing()
    # All numbers are finite, for the gradients were made zero, so x 1 + 0 and x 0 + y are exact.
    kept = good.to(torch.float32)
    torch._foreach_mul_(new, kept)
    torch._foreach_add_(new, list(torch._foreach_mul(old, 1.0 - kept)))
