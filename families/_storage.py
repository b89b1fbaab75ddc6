"""Keeping a frozen model's weights in 8 bits: half of fp16's memory, cast to the computing type where they are used."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..core.errors import InputError

FP8 = torch.float8_e4m3fn


def store_in_fp8(model: nn.Module, *, compute_dtype: torch.dtype, device: torch.device) -> int:
    """Puts the weights of all linear and convolution layers into float8_e4m3fn; biases and norms stay as they are.

    Call it before an adapter is attached: the adapter then adds to the cast weight's answer.

    Args:
        model: frozen; its layers get a forward of their own.
        compute_dtype: what the weights are cast to at each use.
        device: where the model will compute.

    Returns:
        How many layers were changed.

    Raises:
        InputError: the device or the installed torch has no such type.
    """
    _refuse_without_fp8(device)
    changed = 0
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            module.weight = nn.Parameter(module.weight.detach().to(FP8), requires_grad=False)
            module.forward = _casting_forward(module, compute_dtype)  # type: ignore[method-assign]
            changed += 1
    return changed


def _casting_forward(module: nn.Linear | nn.Conv2d, dtype: torch.dtype) -> Any:
    if isinstance(module, nn.Conv2d):

        def convolve(x: Tensor) -> Tensor:
            answer: Tensor = module._conv_forward(x, module.weight.to(dtype), module.bias)
            return answer

        return convolve

    def multiply(x: Tensor) -> Tensor:
        return functional.linear(x, module.weight.to(dtype), module.bias)

    return multiply


def _refuse_without_fp8(device: torch.device) -> None:
    try:
        torch.zeros(8, device=device).to(FP8).to(torch.float32)
    except (RuntimeError, TypeError, NotImplementedError) as cause:
        raise InputError(
            f"the device {device} cannot keep weights in 8 bits ({cause}); switch fp8_base off, or train on CUDA"
        ) from cause
