"""Small helpers of the columns: closed arrays, runs of a ragged column, the hash of fingerprints."""

import hashlib
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

_Item = TypeVar("_Item", bound=np.generic)


class Digest(Protocol):
    """The part of a ``hashlib`` object that the columns use."""

    def update(self, data: bytes, /) -> None:
        """Adds bytes."""


def frozen(column: NDArray[_Item]) -> NDArray[_Item]:
    """The same array, closed for writing."""
    column.setflags(write=False)
    return column


def new_digest() -> "hashlib.blake2b":
    """The hash that fingerprints of data sets use (32 hexadecimal digits)."""
    return hashlib.blake2b(digest_size=16)


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each run begins, and the end of the last one: int64 [runs + 1]."""
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths, dtype=np.int64)])


def runs(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indexes of all elements of runs that begin at ``starts``: s0, s0+1, ..., s1, s1+1, ..."""
    ends = np.cumsum(lengths, dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    shifts: NDArray[np.int64] = np.repeat(starts - (ends - lengths), lengths)
    shifts += np.arange(total, dtype=np.int64)
    return shifts
