"""The arithmetic of a merge: tensors are read in pieces, merged in fp32, rounded, and handed on in pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.errors import FormatError
from ..core.stream import PIECE_ELEMENTS, Stop, elements
from ..core.tensors import TensorRow, dtype_bytes, torch_dtype
from .inputs import Place
from .program import Program
from .rounding import EIGHT_BIT, fits, greatest, round_into

BLOCK_BYTES = 2**20
"""What is read of all models together before it is worked on: small enough for a core's cache."""

Sink = Callable[[int, Tensor], None]
"""Takes bytes of the finished tensor: the first one's place and the bytes."""


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """How numbers are brought into the type of the result.

    Attributes:
        generator: Makes the generator of one piece (its number) for stochastic rounding; None rounds to the nearest.
    """

    generator: Callable[[int], torch.Generator] | None = None


def copy_bytes(place: Place, sink: Sink, stop: Stop) -> None:
    """A tensor as it is, byte by byte."""
    total = place.reader.size_bytes(place.key)
    buffer = torch.empty(min(total, BLOCK_BYTES), dtype=torch.uint8)
    for first in range(0, total, BLOCK_BYTES):
        stop.check()
        part = buffer[: min(BLOCK_BYTES, total - first)]
        place.reader.read_bytes(place.key, first, part)
        sink(first, part)


def merge_pieces(
    program: Program, row: TensorRow, sink: Sink, stop: Stop, rounding: Rounding, *, first: int, last: int
) -> None:
    """Elements first..last-1 of a tensor, a block at a time; for programs that need not see the whole.

    Raises:
        FormatError: A number is not finite, in a model or in the result.
    """
    reads = [_Reading(place) for place in program.sources]
    pieces = max(1, BLOCK_BYTES // (PIECE_ELEMENTS * sum(read.width for read in reads)))
    block = pieces * PIECE_ELEMENTS
    writing = _Writing(row, min(block, last - first), rounding)
    for read in reads:
        read.reserve(min(block, last - first))
    for start in range(first, last, block):
        stop.check()
        count = min(block, last - start)
        for read in reads:
            read.fill(start, count)
        for begin in range(0, count, PIECE_ELEMENTS):
            end = min(begin + PIECE_ELEMENTS, count)
            values = program.run([read.piece(begin, end) for read in reads])
            writing.put(values, begin, end, (start + begin) // PIECE_ELEMENTS, program)
        sink(start * writing.width, writing.bytes_of(count))


def merge_whole(
    program: Program, row: TensorRow, sink: Sink, stop: Stop, rounding: Rounding, channels: int | None = None
) -> None:
    """A whole tensor at once.

    Args:
        program: What is done.
        row: Type and shape of the result.
        sink: Takes the finished bytes.
        stop: Asked between pieces.
        rounding: How numbers are rounded.
        channels: Only so many input channels are merged; the rest is kept from the first source of the row's shape.

    Raises:
        FormatError: A number is not finite, in a model or in the result.
    """
    sources = list(whole_sources(program, channels))
    merged = program.run(sources)
    if channels is not None:
        kept = next(place for place in program.sources if place.shape == row.shape)
        wide = kept.reader.tensor(kept.key, dtype=torch.float32)
        wide[:, :channels] = merged
        merged = wide
    del sources
    flat = merged.reshape(-1)
    block = BLOCK_BYTES // 4
    writing = _Writing(row, min(block, flat.numel()), rounding)
    for start in range(0, flat.numel(), block):
        stop.check()
        count = min(block, flat.numel() - start)
        for begin in range(0, count, PIECE_ELEMENTS):
            end = min(begin + PIECE_ELEMENTS, count)
            piece = flat[start + begin : start + end]
            writing.put(piece, begin, end, (start + begin) // PIECE_ELEMENTS, program)
        sink(start * writing.width, writing.bytes_of(count))


def whole_sources(program: Program, channels: int | None) -> Sequence[Tensor]:
    """The sources in fp32, in the shape of the first; cut to so many input channels where that is given."""
    values: list[Tensor] = []
    for place in program.sources:
        value = place.reader.tensor(place.key, dtype=torch.float32)
        if channels is not None:
            value = value[:, :channels].contiguous()
        values.append(value if not values else value.reshape(values[0].shape))
    return values


class _Reading:
    """A block of one source, and its pieces in fp32."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self.width = dtype_bytes(place.dtype)
        self._dtype = torch_dtype(place.dtype)
        self._raw = torch.empty(0, dtype=torch.uint8)
        self._typed = torch.empty(0)

    def reserve(self, count: int) -> None:
        self._raw = torch.empty(count * self.width, dtype=torch.uint8)
        self._typed = self._raw.view(self._dtype)

    def fill(self, start: int, count: int) -> None:
        self._place.reader.read_bytes(self._place.key, start * self.width, self._raw[: count * self.width])

    def piece(self, begin: int, end: int) -> Tensor:
        return self._typed[begin:end].float()


class _Writing:
    """A block of the result in its own type."""

    def __init__(self, row: TensorRow, count: int, rounding: Rounding) -> None:
        self.width = dtype_bytes(row.dtype)
        self._dtype = row.dtype
        self._limit = greatest(row.dtype) if row.dtype not in EIGHT_BIT else float("inf")
        self._raw = torch.empty(max(1, count) * self.width, dtype=torch.uint8)
        self._typed = self._raw.view(torch_dtype(row.dtype))
        self._rounding = rounding

    def put(self, values: Tensor, begin: int, end: int, number: int, program: Program) -> None:
        size = fits(values)
        if not size <= self._limit:
            raise _broken(program, size, self._dtype)
        generator = self._rounding.generator(number) if self._rounding.generator is not None else None
        round_into(values, self._typed[begin:end], self._dtype, generator)

    def bytes_of(self, count: int) -> Tensor:
        return self._raw[: count * self.width]


def _broken(program: Program, size: float, dtype: str) -> FormatError:
    """Says which file is to blame, or that the type is too narrow."""
    for place in program.sources:
        if not bool(torch.isfinite(place.reader.tensor(place.key, dtype=torch.float32)).all()):
            return FormatError(
                f"{place.reader.path.name} holds NaN or infinite numbers in {place.key}; it is broken: leave it out, "
                "or give its block the weight 0"
            )
    key = program.sources[0].key
    if size == size and dtype != "F32":  # a number, only too large
        return FormatError(
            f"the merge gives {key} values up to {size:.3g}, which {dtype} cannot hold; save as fp32 or bf16, or lower "
            "the weights"
        )
    return FormatError(f"the merge gives {key} numbers that are not finite; lower the weights or choose another method")


def needed_bytes(program: Program, row: TensorRow) -> int:
    """Memory that `merge_whole` takes at most."""
    return 4 * elements(row.shape) * program.copies
