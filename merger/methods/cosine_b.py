"""Merging by the similarity of raw columns."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._cosine import CosineParams, at_large, columns, mix, survey
from ._spec import WEIGHT, Input, KeyContext, Method


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """Mean of each column's similarity and that of the whole."""
    return (columns(a, b) + at_large(a, b)) / 2.0


def merge(tensors: Sequence[Tensor], params: CosineParams, context: KeyContext) -> Tensor:
    """A where the models are alike, B where they differ."""
    return mix(tensors, params, context, similarity)


METHOD = Method(
    name="cosine_b",
    title="Cosine B",
    summary="Keeps A where the two models are alike and takes B where they differ, measured on the columns as they are",
    source="cosineB of SuperMerger (without its NaNs: where a column is zero, A is kept); without the spread it is "
    "add_cosine_b of sd-mecha",
    params=CosineParams,
    merge=merge,
    inputs=(
        Input(name="a", doc="the model kept where both are alike", kind=WEIGHT),
        Input(name="b", doc="the model taken where they differ", kind=WEIGHT),
    ),
    result=WEIGHT,
    whole=True,
    blocks=("alpha",),
    survey=survey(similarity),
    copies=4,
)
