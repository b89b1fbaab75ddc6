"""Merging LoRAs: the sum of their true changes, with strengths that count once.

Each change is built with its own alpha / rank before it is multiplied with its strength, so that a strength of 0.5 is
half of the change (factors that are added one by one would square it and bring products of one LoRA with another).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core.errors import FormatError
from ...core.params import Params, param
from ...core.progress import Progress
from .cutting import Layer, cut_layers
from .drafts import Draft, Made
from .elementwise import together
from .factors import Change, Factors, as_matrix, as_shape, weight_shape
from .ingredients import Ingredient, one_family
from .metadata import merged_metadata
from .modules import LoraModule, check_finite
from .ranks import RankParams
from .resize import BaseWeight, change_in, refuse_relative

CONCAT, CUT = "concat", "svd"
METHODS = (CONCAT, CUT, "ties", "dare", "dare_ties")

Part = tuple[Ingredient, LoraModule]


@dataclass(frozen=True, kw_only=True)
class CombineParams(Params):
    """How LoRAs are put together."""

    method: str = param(
        CONCAT,
        doc="concat: the exact sum; ranks add up, so the file grows. svd: the exact sum, cut to the ranks below. ties "
        "(largest elements, majority sign, mean), dare (random elements, sum) and dare_ties choose single elements, so "
        "their result is cut to the ranks below.",
        choices=METHODS,
    )
    density: float = param(
        0.5,
        doc="For ties, dare and dare_ties: the share of elements that is kept.",
        minimum=0.01,
        maximum=1.0,
        step=0.05,
    )
    seed: int = param(0, doc="For dare and dare_ties: which elements are drawn.", minimum=0, maximum=2**53)


def combine(
    ingredients: Sequence[Ingredient],
    params: CombineParams,
    ranks: RankParams,
    *,
    base_weight: BaseWeight | None = None,
    bytes_per_number: int = 2,
    progress: Progress | None = None,
) -> Draft:
    """The sum of several LoRAs as one.

    Args:
        ingredients: open files with strengths.
        params: the method.
        ranks: for every method but concat.
        base_weight: for those whose change depends on the base model; without it they are refused.
        bytes_per_number: of the file that will be written, for the rule 'size'.
        progress: told, and may cancel.

    Raises:
        InputError: LoRAs of unlike families, or one that needs its base model.
        FormatError: layers of unlike shapes, a damaged file, or a sum that is nothing.
    """
    one_family(ingredients)
    if base_weight is None:
        for ingredient in ingredients:
            refuse_relative(ingredient.file, "merged")
    by_layer = _by_layer(ingredients)
    layers: dict[str, Layer] = {}
    vectors: dict[str, Made] = {}
    for name, parts in by_layer.items():
        if any(module.is_matrix for _, module in parts):
            layers[name] = _layer(parts, params, base_weight, name)
        else:
            vectors[name] = _vector(parts)
    rule = RankParams(rule="exact", rank=0) if params.method == CONCAT else ranks
    seed = params.seed if params.method not in (CONCAT, CUT) else None
    if params.method == CONCAT:
        cuts = [_concatenated(layer) for layer in layers.values()]
    else:
        cuts = cut_layers(
            list(layers.values()), rule, seed=seed, bytes_per_number=bytes_per_number, progress=progress,
            text="merging LoRAs",
        )  # fmt: skip
    made = {**dict(zip(layers, cuts, strict=True)), **vectors}
    modules = [made[name] for name in by_layer]
    found = tuple(module for module in modules if module is not None)
    if not found:
        raise FormatError("the merged LoRA would change nothing; look at the strengths and the block weights.")
    sources = [(ingredient.file.name, ingredient.file.metadata) for ingredient in ingredients]
    family = ingredients[0].file.family
    return Draft(
        family=family,
        modules=found,
        metadata=merged_metadata(sources, found, family),
        others={key: one.file.tensor(key) for one in reversed(ingredients) for key in one.file.other_keys},
        notes=_notes(ingredients, by_layer, found, params, seed),
    )


def _by_layer(ingredients: Sequence[Ingredient]) -> dict[str, list[Part]]:
    """The modules of all files by layer; those with a strength of 0 are left out."""
    found: dict[str, list[Part]] = {}
    for ingredient in ingredients:
        for module in ingredient.file.modules:
            if ingredient.strength(module) != 0.0:
                found.setdefault(module.name, []).append((ingredient, module))
    return found


def _layer(parts: Sequence[Part], params: CombineParams, base_weight: BaseWeight | None, name: str) -> Layer:
    matrices = [(ingredient, module) for ingredient, module in parts if module.is_matrix]
    first = matrices[0][1]

    def changes() -> list[tuple[Change, tuple[int, ...]]]:
        found = []
        for ingredient, module in matrices:
            change = change_in(ingredient.file, module, base_weight)
            strength = ingredient.applied_strength(module)
            shape = weight_shape(change, module)
            found.append((change.times(strength) if isinstance(change, Factors) else change * strength, shape))
        _same_shapes(found, matrices)
        return found

    def change() -> tuple[Change, tuple[int, ...]]:
        found = changes()
        if params.method in (CONCAT, CUT):
            return summed([one for one, _ in found]), found[0][1]
        matrix = together(
            [as_matrix(one) for one, _ in found], params.method, params.density, seed=params.seed, name=name
        )
        return matrix, found[0][1]

    return Layer(
        place=first.place,
        block=first.block,
        change=change,
        is_spatial=first.is_spatial,
        rank_before=max((module.rank or 0 for _, module in matrices), default=0) or None,
        parts=_biases(parts),
    )


def summed(changes: Sequence[Change]) -> Change:
    """The sum of changes: side by side while that is thinner than the weight, else a matrix."""
    thin = [change for change in changes if isinstance(change, Factors)]
    smaller = min(as_shape(changes[0]))
    if len(thin) == len(changes) and sum(change.rank for change in thin) < smaller:
        return Factors(
            up=torch.cat([change.up for change in thin], dim=1),
            down=torch.cat([change.down for change in thin]),
            shape=thin[0].shape,
        )
    return torch.stack([as_matrix(change) for change in changes]).sum(dim=0)


def _concatenated(layer: Layer) -> Made | None:
    """The sum as it stands: side by side, or the difference itself where that takes fewer numbers."""
    change, shape = layer.change()
    if (
        isinstance(change, Factors)
        and change.rank * (shape[0] + change.down.shape[1]) < change.down.shape[1] * shape[0]
    ):
        energy = change.squared_norm()
        if energy <= 0.0:
            return None
        balanced = _balanced(change)
        return Made(
            place=layer.place, block=layer.block, factors=balanced, parts=layer.parts, energy=energy,
            rank_before=layer.rank_before,
        )  # fmt: skip
    matrix = as_matrix(change).reshape(shape).contiguous()
    parts = {"diff": matrix, **layer.parts}
    return Made(place=layer.place, block=layer.block, parts=parts, energy=float(matrix.double().square().sum()))


def _balanced(change: Factors) -> Factors:
    """Every column of up as long as its row of down, so that a half-precision file holds both."""
    ups = torch.linalg.vector_norm(change.up, dim=0).clamp_min(1e-30)
    downs = torch.linalg.vector_norm(change.down, dim=1).clamp_min(1e-30)
    ratio = (downs / ups).sqrt()
    return Factors(up=change.up * ratio, down=change.down / ratio[:, None], shape=change.shape)


def _same_shapes(found: Sequence[tuple[Change, tuple[int, ...]]], parts: Sequence[Part]) -> None:
    shapes = [shape for _, shape in found]
    for shape, (ingredient, module) in zip(shapes, parts, strict=True):
        if shape != shapes[0]:
            raise FormatError(
                f"{parts[0][0].file.name} changes a weight of shape {list(shapes[0])} at {module.name}, "
                f"{ingredient.file.name} one of {list(shape)}: they were made for models of different sizes."
            )


def _biases(parts: Sequence[Part]) -> dict[str, Tensor]:
    """The sum of what is changed in the bias."""
    total = _sums(parts, lambda module: module.bias_part)
    return {"diff_b": total} if total is not None else {}


def _vector(parts: Sequence[Part]) -> Made:
    """A norm, or a layer of which only the bias is changed."""
    first = parts[0][1]
    weight = _sums(parts, lambda module: module.vector_part)
    bias = _sums(parts, lambda module: module.bias_part)
    names = ("w_norm", "b_norm") if weight is not None else ("diff", "diff_b")
    found: Mapping[str, Tensor | None] = dict(zip(names, (weight, bias), strict=True))
    return Made(
        place=first.place, block=first.block, parts={key: part for key, part in found.items() if part is not None}
    )


def _sums(parts: Sequence[Part], part_of: Callable[[LoraModule], str | None]) -> Tensor | None:
    total: Tensor | None = None
    for ingredient, module in parts:
        part = part_of(module)
        if part is None:
            continue
        value = ingredient.file.tensor(module.keys[part]).float()
        check_finite({part: value}, module, ingredient.file.name)
        if total is not None and total.shape != value.shape:
            raise FormatError(
                f"{ingredient.file.name} changes {list(value.shape)} numbers of {module.name}, another LoRA "
                f"{list(total.shape)}: they were made for models of different sizes."
            )
        value = value * ingredient.strength(module)
        total = value if total is None else total + value
    return total


def _notes(
    ingredients: Sequence[Ingredient],
    by_layer: Mapping[str, Sequence[Part]],
    modules: Sequence[Made],
    params: CombineParams,
    seed: int | None,
) -> tuple[str, ...]:
    shared = sum(len(parts) == len(ingredients) for parts in by_layer.values())
    notes = [f"{shared} of {len(by_layer)} layers are changed by all {len(ingredients)} LoRAs."]
    silent = [one.file.name for one in ingredients if not any(one.strength(module) for module in one.file.modules)]
    if silent:
        notes.append(f"{', '.join(silent)} adds nothing: its strengths or block weights are 0.")
    wholes = sum("diff" in module.parts for module in modules)
    if wholes and params.method == CONCAT:
        notes.append(
            f"{wholes} layers are written as whole differences, which take fewer numbers than all their ranks."
        )
    if seed is not None:
        notes.append("Cut by random projections where that is quicker; the errors are those of the cut itself.")
    return tuple(notes)
