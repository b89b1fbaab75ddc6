"""Some rows of B in the place of A's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...core.params import Params, param
from ._shared import MODEL_A, MODEL_B, first_if_zero
from ._spec import KeyContext, Method

ROWS, COLUMNS = "rows", "columns where there are more than 100"
MANY_COLUMNS = 100


@dataclass(frozen=True, kw_only=True)
class SliceParams(Params):
    """Which part is B's."""

    alpha: float = param(
        0.5, doc="Width of the part taken from B. 0 keeps A, 1 is all B.", minimum=0.0, maximum=1.0, step=0.05
    )
    beta: float = param(
        0.0, doc="Where that part begins, from 0 (first row) to 1; it goes round at the end.", minimum=0.0, maximum=1.0,
        step=0.05,
    )  # fmt: skip
    along: str = param(
        ROWS, doc="Cut by rows (SuperMerger's 'tensor'), or by columns ('tensor2').", choices=(ROWS, COLUMNS)
    )


def merge(tensors: Sequence[Tensor], params: SliceParams, context: KeyContext) -> Tensor:
    """A with a range of rows (or columns) of B."""
    a, b = tensors
    if a.ndim == 0:
        return b if params.alpha > 0.5 else a
    axis = 1 if params.along == COLUMNS and a.ndim > 1 and a.shape[1] > MANY_COLUMNS else 0
    size = a.shape[axis]
    offset = math.fmod(params.beta, 1.0)
    inside = params.alpha + offset <= 1.0
    ends = (offset, params.alpha + offset) if inside else (params.alpha + offset - 1.0, offset)
    first, last = (round(end * size) for end in ends)
    outer, inner = (a, b) if inside else (b, a)
    merged = outer.clone()
    merged.narrow(axis, first, last - first).copy_(inner.narrow(axis, first, last - first))
    return merged


METHOD = Method(
    name="tensor_slice",
    title="Tensor Slice",
    summary="Puts a range of B's rows in the place of A's, in every tensor",
    source="the calculations tensor and tensor2 of SuperMerger; tensor_sum of sd-mecha",
    params=SliceParams,
    merge=merge,
    inputs=(MODEL_A, MODEL_B),
    whole=True,
    blocks=("alpha", "beta"),
    unchanged=first_if_zero,
)
