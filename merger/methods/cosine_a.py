"""Merging by the similarity of unit columns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._cosine import CosineParams, at_large, columns, mix, of_unit_columns, survey
from ._spec import WEIGHT, Input, KeyContext, Method


def column_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Of each column."""
    return columns(*of_unit_columns(a, b))


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean of each column's similarity and that of the whole."""
    unit_a, unit_b = of_unit_columns(a, b)
    return (columns(unit_a, unit_b) + at_large(unit_a, unit_b)) / 2.0


def merge(tensors: Sequence[Tensor], params: CosineParams, context: KeyContext) -> Tensor:
    """A where the models are alike, B where they differ."""
    return mix(tensors, params, context, similarity if params.spread else column_similarity)


METHOD = Method(
    name="cosine_a",
    title="Cosine A",
    summary="Keeps A where the two models are alike and takes B where they differ, measured on columns of unit length",
    source="cosineA of SuperMerger (without its NaNs: where a column is zero, A is kept); without the spread it is "
    "add_cosine_a of sd-mecha",
    params=CosineParams,
    merge=merge,
    inputs=(
        Input(name="a", doc="the model kept where both are alike", kind=WEIGHT),
        Input(name="b", doc="the model taken where they differ", kind=WEIGHT),
    ),
    result=WEIGHT,
    whole=True,
    blocks=("alpha",),
    survey=survey(column_similarity),
    copies=4,
)
