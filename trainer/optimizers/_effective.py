"""The learning rate an optimizer really works with."""

from typing import Any

import torch


def found_step_size(optimizer: torch.optim.Optimizer) -> torch.Tensor | float | None:
    """Returns d x lr of an optimizer that finds its step size itself, without waiting for the device, else None.

    Ours have a method for it; those of libraries keep d in their groups.
    """
    method = getattr(optimizer, "effective_lr", None)
    if method is not None:
        found: torch.Tensor = method()
        return found
    group: dict[str, Any] = optimizer.param_groups[0]
    d = group.get("d")
    return d * group["lr"] if isinstance(d, (torch.Tensor, float)) else None
