"""How much two LoRAs get in each other's way: the angles between what they read and what they write, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.progress import Progress, SilentProgress
from .factors import Factors, inner_product
from .inspection import own_change
from .modules import LoraFile, check_finite
from .spectrum import decompose

_ENERGY = 0.95
"""The part of each change whose directions are compared: the last ranks are noise that would fill any space."""


@dataclass(frozen=True, kw_only=True)
class LayerOverlap:
    """Two changes of one layer.

    Attributes:
        name: kohya's stem.
        block: of block weights.
        cosine: of the two changes as vectors: 1 the same, 0 unrelated, below 0 they work against each other.
        outputs: mean squared cosine of the principal angles of the spaces they write into, 0 to 1.
        inputs: the same of the spaces they read from.
        chance: what two random spaces of these sizes would have, the greater of both sides.
        weight: product of the norms, for means over layers.
    """

    name: str
    block: str
    cosine: float
    outputs: float
    inputs: float
    chance: float
    weight: float


def overlap(one: LoraFile, other: LoraFile, *, progress: Progress | None = None) -> list[LayerOverlap]:
    """Compares the layers that both files change; DoRA without its lengths.

    Source: principal angles by the singular values of Q1' Q2, Bjorck and Golub 1973.

    Raises:
        InputError: the files are of unlike families, or share no layer.
        FormatError: a file is damaged.
    """
    if one.family.name != other.family.name:
        raise InputError(
            f"{one.name} is a LoRA for {one.family.title} and {other.name} for {other.family.title}: "
            "only LoRAs of one kind of model can be compared."
        )
    progress = progress or SilentProgress()
    theirs = other.by_name()
    shared = [(module, theirs[module.name]) for module in one.modules if module.name in theirs]
    found = []
    for number, (first, second) in enumerate(shared):
        changes = []
        for file, module in ((one, first), (other, second)):
            parts = file.parts(module)
            check_finite(parts, module, file.name)
            changes.append(own_change(module, parts))
        left, right = changes
        if left is not None and right is not None:
            if left.shape != right.shape:
                raise InputError(
                    f"{one.name} and {other.name} change weights of unlike shapes at {first.name} "
                    f"({list(left.shape)} and {list(right.shape)}): they are for models of different sizes."
                )
            compared = _compared(left, right, first.name, first.block)
            found += [] if compared is None else [compared]
        progress.update(number + 1, len(shared), "comparing")
    if not found:
        raise InputError(f"{one.name} and {other.name} change no layer in common; there is nothing to compare.")
    return found


def _compared(one: Factors, other: Factors, name: str, block: str) -> LayerOverlap | None:
    norms = [math.sqrt(max(0.0, change.squared_norm())) for change in (one, other)]
    if 0.0 in norms:
        return None
    (u1, v1), (u2, v2) = _directions(one), _directions(other)
    smaller = min(u1.shape[1], u2.shape[1])
    chance = max(u1.shape[1], u2.shape[1]) / min(u1.shape[0], v1.shape[0])
    return LayerOverlap(
        name=name,
        block=block,
        cosine=inner_product(one, other) / (norms[0] * norms[1]),
        outputs=float((u1.t() @ u2).square().sum()) / smaller,
        inputs=float((v1.t() @ v2).square().sum()) / smaller,
        chance=min(1.0, chance),
        weight=norms[0] * norms[1],
    )


def _directions(change: Factors) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of what a change writes into and reads from, for most of its energy."""
    taken = decompose(change)
    sums = torch.cumsum(taken.spectrum.values.square(), dim=0)
    rank = min(int((sums < _ENERGY * taken.spectrum.energy).sum()) + 1, taken.spectrum.values.numel())
    cut = taken.cut(rank)
    return torch.linalg.qr(cut.up)[0], torch.linalg.qr(cut.down.t())[0]


def mean_of(rows: Sequence[LayerOverlap], value: str) -> float:
    """Mean over layers, by the product of the norms."""
    total = sum(row.weight for row in rows)
    return float(sum(getattr(row, value) * row.weight for row in rows) / total)


def overlap_report(rows: Sequence[LayerOverlap], names: tuple[str, str]) -> str:
    """The comparison in lines for a person."""
    cosine = mean_of(rows, "cosine")
    verdict = (
        "they work against each other" if cosine < -0.1 else
        "they do much the same" if cosine > 0.5 else
        "they partly do the same" if cosine > 0.1 else
        "they hardly touch each other"
    )  # fmt: skip
    lines = [
        f"{names[0]} and {names[1]} share {len(rows)} layers: mean cosine {cosine:.3f} ({verdict}).",
        f"They write into the same directions to {mean_of(rows, 'outputs'):.1%} and read from the same to "
        f"{mean_of(rows, 'inputs'):.1%}; by chance it would be about {mean_of(rows, 'chance'):.1%}.",
    ]
    worst = sorted(rows, key=lambda row: row.cosine)[:3]
    if worst[0].cosine < -0.1:
        lines.append("Most against each other: " + ", ".join(f"{row.name} ({row.cosine:.2f})" for row in worst) + ".")
    return "\n".join(lines)


def overlap_json(rows: Sequence[LayerOverlap]) -> list[dict[str, Any]]:
    """The comparison as plain values."""
    return [{key: value for key, value in vars(row).items() if key != "weight"} for row in rows]
