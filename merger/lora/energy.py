"""How much each module of a LoRA file changes: the exact Frobenius norm, from the small matrices.

    ||B A||^2 = tr((B'B)(AA')),    ||kron(w1, w2)|| = ||w1|| ||w2||

A DoRA, an OFT and an (IA)^3 change their layer relative to the base weight, so that their size is not in the file.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...networks import lokr
from .factors import Factors, change_of
from .modules import LoraModule


def squared_norm(module: LoraModule, parts: Mapping[str, Tensor], *, weight: Tensor | None = None) -> float | None:
    """Sum of the squares of a module's change of weight and bias; None where it depends on a base that is not given.

    Args:
        module: of a LoRA file.
        parts: its tensors, as `LoraFile.parts` gives them.
        weight: the base weight, for DoRA, OFT and (IA)^3.

    Raises:
        FormatError: the parts do not fit each other.
    """
    bias = 0.0 if module.bias_part is None else _squares(parts[module.bias_part])
    if module.is_bias_alone:
        return bias
    if module.relative and weight is None:
        return None
    if module.vector_part is not None:
        return bias + _squares(parts[module.vector_part])
    if module.algorithm == "lokr" and not module.is_dora:
        return bias + module.scale**2 * _kron_squares(parts)
    change = change_of(module, parts, weight=weight)
    return bias + (change.squared_norm() if isinstance(change, Factors) else _squares(change))


def _squares(value: Tensor) -> float:
    return float(value.double().square().sum())


def _product_squares(left: Tensor, right: Tensor) -> float:
    """||left right||^2 with inner products of the short side only."""
    left, right = left.double(), right.double()
    return float(((left.t() @ left) * (right @ right.t())).sum())


def _kron_squares(parts: Mapping[str, Tensor]) -> float:
    """||w1||^2 ||w2||^2, each from its factors where it has them."""
    if lokr.W1 in parts:
        first = _squares(parts[lokr.W1])
    else:
        first = _product_squares(parts[lokr.W1_A], parts[lokr.W1_B])
    if lokr.W2 in parts:
        return first * _squares(parts[lokr.W2])
    if lokr.T2 in parts:
        core = torch.einsum("ijhw,jr->irhw", parts[lokr.T2].double(), parts[lokr.W2_B].double())
        return first * _product_squares(parts[lokr.W2_A].t(), core.reshape(core.shape[0], -1))
    return first * _product_squares(parts[lokr.W2_A], parts[lokr.W2_B].reshape(parts[lokr.W2_B].shape[0], -1))
