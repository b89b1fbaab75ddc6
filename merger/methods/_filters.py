"""Median and Gaussian filters over all axes of a tensor, with mirrored edges."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**22


def mirrored(length: int, first: int, last: int) -> Tensor:
    """Indexes first..last-1 of an axis that is continued by mirroring its ends, the end values twice."""
    index = torch.arange(first, last) % (2 * length)
    return torch.where(index < length, index, 2 * length - 1 - index)


def median_filter(values: Tensor) -> Tensor:
    """The median of the 3 x 3 x ... neighbours of every element."""
    if values.ndim == 0:
        return values
    rows = max(1, _CHUNK_ELEMENTS // max(1, 3**values.ndim * values[0].numel()))
    parts = [_median_of_rows(values, first, min(first + rows, len(values))) for first in range(0, len(values), rows)]
    return torch.cat(parts)


def _median_of_rows(values: Tensor, first: int, last: int) -> Tensor:
    padded = values.index_select(0, mirrored(len(values), first - 1, last + 1))
    for axis in range(1, values.ndim):
        length = values.shape[axis]
        padded = padded.index_select(axis, mirrored(length, -1, length + 1))
    sizes = (last - first, *values.shape[1:])
    windows = []
    for shifts in itertools.product(range(3), repeat=values.ndim):
        window = padded
        for axis, (shift, size) in enumerate(zip(shifts, sizes, strict=True)):
            window = window.narrow(axis, shift, size)
        windows.append(window)
    return torch.stack(windows).median(dim=0).values


def gaussian_filter(values: Tensor, sigma: float = 1.0, truncate: float = 4.0) -> Tensor:
    """A Gaussian over every axis in turn, cut off at ``truncate`` sigmas."""
    radius = int(truncate * sigma + 0.5)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-radius, radius + 1)]
    total = sum(weights)
    for axis in range(values.ndim):
        length = values.shape[axis]
        smooth = torch.zeros_like(values)
        for offset, weight in zip(range(-radius, radius + 1), weights, strict=True):
            index = mirrored(length, offset, length + offset)
            smooth.add_(values.index_select(axis, index), alpha=weight / total)
        values = smooth
    return values
