"""A LoRA that an operation made and that is not yet a file: its modules, and what the cut of each has cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...families._spec import COMFY, DIFFUSERS, KOHYA, Family, Place
from ...networks import lora
from ...networks._apply import ALPHA
from ...networks._dora import DORA
from .factors import Factors, difference_norm

_SMALLEST_PEAK, _LARGEST_PEAK = 2.0**-12, 2.0**10
"""Factors beyond these cannot be held in fp16 well; the alpha takes the difference."""

_ENDINGS: Mapping[str, Mapping[str, str]] = {
    KOHYA: {},
    COMFY: {},
    DIFFUSERS: {lora.DOWN: "lora_A.weight", lora.UP: "lora_B.weight"},
}


@dataclass(frozen=True, kw_only=True)
class Made:
    """One module of a draft.

    Attributes:
        place: the layer.
        block: of block weights.
        factors: the change as it is to be written; None where the parts are taken as they are.
        scale: alpha / rank that the file is to have; the factors hold the change with it.
        parts: tensors that are written as they are: differences of norms and biases, or a whole module unchanged.
        energy: squared norm of the change before it was cut.
        lost: energy that the cut took.
        rank_before: of the input; None where it had none.
    """

    place: Place
    block: str
    factors: Factors | None = None
    scale: float = 1.0
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    energy: float = 0.0
    lost: float = 0.0
    rank_before: int | None = None

    @property
    def rank(self) -> int | None:
        """Of the product; None where there is none."""
        return None if self.factors is None else self.factors.rank

    @property
    def is_spatial(self) -> bool:
        """Whether it is a 3x3 convolution."""
        return self.factors is not None and any(size > 1 for size in self.factors.shape[2:])

    @property
    def error(self) -> float:
        """||change - cut|| / ||change||."""
        return math.sqrt(self.lost / self.energy) if self.energy > 0.0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A LoRA in memory.

    Attributes:
        family: of the layers.
        modules: in the order of the file that is to be written.
        metadata: of the source, or put together from several; sizes and hashes are added when it is written.
        others: tensors that are no modules, carried along.
        title: of the file; "" for its name.
        notes: what a person should know, one sentence each.
    """

    family: Family
    modules: tuple[Made, ...]
    metadata: Mapping[str, str]
    others: Mapping[str, Tensor] = field(default_factory=dict)
    title: str = ""
    notes: tuple[str, ...] = ()

    @property
    def energy(self) -> float:
        """Squared norm of all changes before they were cut."""
        return sum(module.energy for module in self.modules)

    @property
    def error(self) -> float:
        """Relative error of the cut over all modules together."""
        return math.sqrt(sum(module.lost for module in self.modules) / self.energy) if self.energy > 0.0 else 0.0


def tensors_of(draft: Draft, *, naming: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """The tensors of the file, and the largest relative error that rounding them has cost a module.

    Args:
        draft: what is to be written.
        naming: one of the namings of LoRA files.
        dtype: of the factors and differences; alphas and DoRA's lengths stay exact.
    """
    tensors: dict[str, Tensor] = {}
    worst = 0.0
    for made in draft.modules:
        stem = draft.family.stem_of_place(made.place, naming)
        parts, error = parts_of(made, naming=naming, dtype=dtype)
        worst = max(worst, error)
        for part, value in parts.items():
            tensors[f"{stem}.{_ENDINGS[naming].get(part, part)}"] = value
    tensors.update(draft.others)
    return tensors, worst


def parts_of(made: Made, *, naming: str, dtype: torch.dtype) -> tuple[dict[str, Tensor], float]:
    """The parts of one module in the file's number format, and the relative error of rounding them."""
    parts = {name: _rounded(name, value, dtype) for name, value in made.parts.items()}
    if made.factors is None:
        return parts, 0.0
    has_alpha = naming != DIFFUSERS
    up, down, scale = _levelled(made.factors, made.scale if has_alpha else 1.0, free=has_alpha)
    small_up, small_down = up.to(dtype), down.to(dtype)
    rank, shape = made.factors.rank, made.factors.shape
    ones = (1,) * len(shape[2:])
    parts[lora.DOWN] = small_down.reshape(rank, *shape[1:]).contiguous()
    parts[lora.UP] = small_up.reshape(shape[0], rank, *ones).contiguous()
    if has_alpha:
        parts[ALPHA] = _exact(scale * rank, dtype)
    error = _rounding(up, down, small_up, small_down, shape)
    return parts, error


def _levelled(factors: Factors, scale: float, *, free: bool) -> tuple[Tensor, Tensor, float]:
    """Up and down without the scale, and the scale, changed where fp16 could not hold the factors.

    Args:
        factors: with the scale in them.
        scale: that the file is to have.
        free: whether the scale may be another than asked for.
    """
    scale = scale if scale > 0.0 else 1.0
    root = 1.0 / math.sqrt(scale)
    up, down = factors.up * root, factors.down * root
    tops = [float(value.abs().max()) if value.numel() else 0.0 for value in (up, down)]
    if free and min(tops) > 0.0 and not all(_SMALLEST_PEAK <= top <= _LARGEST_PEAK for top in tops):
        steps = [2.0 ** -round(math.log2(top)) for top in tops]
        up, down, scale = up * steps[0], down * steps[1], scale / (steps[0] * steps[1])
    return up, down, scale


def _rounding(up: Tensor, down: Tensor, small_up: Tensor, small_down: Tensor, shape: tuple[int, ...]) -> float:
    if small_up.dtype == torch.float32 or not up.numel():
        return 0.0
    meant = Factors(up=up, down=down, shape=shape)
    length = math.sqrt(max(0.0, meant.squared_norm()))
    if length == 0.0:
        return 0.0
    error = difference_norm(meant, Factors(up=small_up.float(), down=small_down.float(), shape=shape)) / length
    return error if math.isfinite(error) else math.inf


def _rounded(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    if not value.is_floating_point() or name == DORA:
        return value
    return _exact(float(value), dtype) if name == ALPHA else value.to(dtype)


def _exact(number: float, dtype: torch.dtype) -> Tensor:
    """A number as a tensor of the type, or in fp32 where the type would change it."""
    value = torch.tensor(number, dtype=dtype)
    return value if float(value) == number else torch.tensor(number, dtype=torch.float32)


def mean_rank(modules: Sequence[Made]) -> float:
    """Mean of the ranks of those that have one; 0 without any."""
    ranks = [module.rank for module in modules if module.rank is not None]
    return sum(ranks) / len(ranks) if ranks else 0.0
