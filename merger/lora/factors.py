"""A module's change as a product of two thin matrices, wherever its algorithm is one, without building the change.

LoRA and LoCon are such a product; a LoHa of rank r is one of r x r columns, a LoKr one of as many as its factors' ranks
multiply to. What is left (full differences, DoRA, OFT) is a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import FormatError
from ...networks import loha, lokr, lora
from ...networks._apply import ALPHA, lora_delta
from .modules import LoraModule


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The change up @ down, every scale included.

    Attributes:
        up: [out, r] fp32.
        down: [r, in * kernel] fp32.
        shape: of the changed weight, [out, in(, k, k)].
    """

    up: Tensor
    down: Tensor
    shape: tuple[int, ...]

    @property
    def rank(self) -> int:
        """Columns of the product, whether or not they are independent."""
        return self.up.shape[1]

    def matrix(self) -> Tensor:
        """The change itself, [out, in * kernel] fp32."""
        return self.up @ self.down

    def times(self, factor: float) -> Factors:
        """The same change, so many times as strong."""
        return Factors(up=self.up * factor, down=self.down, shape=self.shape)

    def squared_norm(self) -> float:
        """Sum of the squares of the change's elements: trace((up' up)(down down')), in fp64."""
        return inner_product(self, self)


Change = Factors | Tensor
"""A module's change: thin, or a matrix [out, in * kernel] fp32."""


def inner_product(one: Factors, other: Factors) -> float:
    """Sum of the products of two changes' elements, without building them: r1 x r2 matrices only, in fp64."""
    left = one.up.double().t() @ other.up.double()
    right = one.down.double() @ other.down.double().t()
    return float((left * right).sum())


def difference_norm(one: Factors, other: Factors) -> float:
    """Frobenius norm of one change minus another, exact to about 1e-7 of the larger, without building them."""
    both = Factors(
        up=torch.cat((one.up.double(), -other.up.double()), dim=1),
        down=torch.cat((one.down.double(), other.down.double())),
        shape=one.shape,
    )
    return math.sqrt(max(0.0, both.squared_norm()))


def change_of(module: LoraModule, parts: Mapping[str, Tensor], *, weight: Tensor | None = None) -> Change:
    """The change of a module's weight, as thin as its algorithm allows.

    Args:
        module: of a LoRA file.
        parts: its tensors, as `LoraFile.parts` gives them.
        weight: the base weight, which DoRA, OFT and (IA)^3 need; others pass over it.

    Raises:
        FormatError: the parts do not fit each other, or a base weight is needed and was not given.
    """
    own = {name: value.float() for name, value in parts.items() if name != ALPHA}
    if not module.relative:
        try:
            thin = _THIN[module.algorithm](own, module) if module.algorithm in _THIN else None
        except RuntimeError as cause:
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in own.items())
            raise FormatError(
                f"the parts of the module {module.stem} do not fit each other ({shapes}); the file is damaged"
            ) from cause
        if thin is not None:
            up, down = thin
            return Factors(up=up * module.scale, down=down, shape=_shape(up.shape[0], down.shape[1], module))
    change = lora_delta(parts, stem=module.stem, weight=weight if module.relative else None)
    return change.reshape(change.shape[0], -1)


def as_factors(change: Change, module: LoraModule) -> Factors:
    """The change as a product; a matrix becomes one with the unit matrix on its shorter side."""
    if isinstance(change, Factors):
        return change
    rows, columns = change.shape
    shape = _shape(rows, columns, module)
    if rows <= columns:
        return Factors(up=torch.eye(rows), down=change, shape=shape)
    return Factors(up=change, down=torch.eye(columns), shape=shape)


def as_matrix(change: Change) -> Tensor:
    """The change as [out, in * kernel]."""
    return change.matrix() if isinstance(change, Factors) else change


def as_shape(change: Change) -> tuple[int, int]:
    """Rows and columns of the change as a matrix, which is not built."""
    if isinstance(change, Factors):
        return change.up.shape[0], change.down.shape[1]
    return change.shape[0], change.shape[1]


def weight_shape(change: Change, module: LoraModule) -> tuple[int, ...]:
    """The shape of the weight that is changed."""
    return change.shape if isinstance(change, Factors) else _shape(change.shape[0], change.shape[1], module)


def _shape(rows: int, columns: int, module: LoraModule) -> tuple[int, ...]:
    if columns % max(1, math.prod(module.kernel)):
        raise FormatError(
            f"the module {module.stem} changes {columns} columns, which a kernel of {module.kernel} does not divide; "
            "the file is damaged, or of another kind of model"
        )
    return (rows, columns // math.prod(module.kernel), *module.kernel)


def _lora(parts: Mapping[str, Tensor], module: LoraModule) -> tuple[Tensor, Tensor]:
    down, up = parts[lora.DOWN], parts[lora.UP]
    rows, rank = up.reshape(up.shape[0], -1), down.shape[0]
    if lora.MID in parts:
        core = torch.einsum("pqhw,qi->pihw", parts[lora.MID], down.reshape(rank, -1))
        return _checked(rows, core.reshape(rank, -1))
    return _checked(rows, down.reshape(rank, -1))


def _checked(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    if up.shape[1] != down.shape[0]:
        raise RuntimeError("the ranks of up and down differ")
    return up, down


def _loha(parts: Mapping[str, Tensor], module: LoraModule) -> tuple[Tensor, Tensor] | None:
    """(A B) * (C D) = (A . C)(B' . D')' with the face-splitting product; nothing where that is no thinner."""
    pairs: list[tuple[Tensor, Tensor]] = []
    for w_a, w_b, core in ((loha.W1_A, loha.W1_B, loha.T1), (loha.W2_A, loha.W2_B, loha.T2)):
        if core in parts:
            right = torch.einsum("ijhw,jr->irhw", parts[core], parts[w_b])
            pairs.append(_checked(parts[w_a].t(), right.reshape(right.shape[0], -1)))
        else:
            pairs.append(_checked(parts[w_a], parts[w_b].reshape(parts[w_b].shape[0], -1)))
    (a, b), (c, d) = pairs
    if b.shape[0] * d.shape[0] >= min(a.shape[0], b.shape[1]):
        return None
    return loha.face_splitting(a, c), loha.face_splitting(b.t(), d.t()).t()


def _lokr(parts: Mapping[str, Tensor], module: LoraModule) -> tuple[Tensor, Tensor] | None:
    """kron(A B, C D) = kron(A, C) kron(B, D); nothing where that is no thinner."""
    if not (lokr.W1 in parts or {lokr.W1_A, lokr.W1_B} <= parts.keys()):
        return None  # the file is damaged; building the change says so
    first = (parts[lokr.W1_A], parts[lokr.W1_B]) if lokr.W1 not in parts else _with_unit(parts[lokr.W1])
    if lokr.W2 in parts:
        second = _with_unit(parts[lokr.W2].reshape(parts[lokr.W2].shape[0], -1))
    elif lokr.T2 in parts:
        right = torch.einsum("ijhw,jr->irhw", parts[lokr.T2], parts[lokr.W2_B])
        second = (parts[lokr.W2_A].t(), right.reshape(right.shape[0], -1))
    elif {lokr.W2_A, lokr.W2_B} <= parts.keys():
        second = (parts[lokr.W2_A], parts[lokr.W2_B].reshape(parts[lokr.W2_B].shape[0], -1))
    else:
        return None
    (a, b), (c, d) = _shorter(*first), _shorter(*second)
    if b.shape[0] * d.shape[0] >= min(a.shape[0] * c.shape[0], b.shape[1] * d.shape[1]):
        return None
    a, b, c, d = (part.contiguous() for part in (a, b, c, d))
    return torch.kron(a, c), torch.kron(b, d)


def _with_unit(matrix: Tensor) -> tuple[Tensor, Tensor]:
    rows, columns = matrix.shape
    return (torch.eye(rows), matrix) if rows <= columns else (matrix, torch.eye(columns))


def _shorter(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """The same product over as few columns as it can have at most."""
    left, right = _checked(left, right)
    if left.shape[1] <= min(left.shape[0], right.shape[1]):
        return left, right
    return _with_unit(left @ right)


_THIN = {"lora": _lora, "loha": _loha, "lokr": _lokr}
