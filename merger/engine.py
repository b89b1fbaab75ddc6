"""Running a planned merge: to a file, or tensor by tensor in memory; streaming, in threads, memory bounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import InputError
from ..core.progress import Progress
from ..core.seeds import derive
from ..core.stream import (
    PIECE_ELEMENTS,
    MemoryBudget,
    Stop,
    TensorWriter,
    default_threads,
    elements,
    run_jobs,
    stream_tensors,
)
from ..core.tensors import Header, TensorRow, torch_dtype
from .compute import Rounding, Sink, copy_bytes, merge_pieces, merge_whole, needed_bytes
from .plan import Plan, Planned

BUDGET_BYTES = 512 * 2**20
"""What whole tensors may take together; a single larger one is done alone."""
_PART_ELEMENTS = 64 * PIECE_ELEMENTS


@dataclass(frozen=True, kw_only=True)
class _Part:
    tensor: Planned
    first: int
    last: int
    alone: bool


def run_to_file(
    plan: Plan,
    path: Path,
    metadata: Mapping[str, str],
    *,
    progress: Progress | None = None,
    threads: int | None = None,
    text: str = "merging",
) -> None:
    """Writes the result; the file appears when all of it is there and never in part.

    Args:
        plan: What to do.
        path: The new file; none of the inputs.
        metadata: Texts for its header.
        progress: Told about progress; may cancel.
        threads: How many; None for one per core, eight at most.
        text: Words beside the progress bar.

    Raises:
        InputError: The file is one of the inputs.
        FormatError: A model holds numbers that are not finite, or the result would.
        StorageError: No space or no permission.
    """
    refuse_input(plan, path)
    budget = MemoryBudget(BUDGET_BYTES)
    with stream_tensors(path, plan.rows, metadata) as writer:
        run_jobs(
            _parts(plan.tensors),
            lambda part, stop: _do(part, plan, _sink(writer, part.tensor.key), budget, stop),
            weight=lambda part: part.last - part.first,
            threads=threads,
            progress=progress,
            text=text,
        )


def refuse_input(plan: Plan, path: Path) -> None:
    """Makes sure that the result does not take an input's place.

    Raises:
        InputError: It would.
    """
    for model in plan.models:
        for source in (model.path, model.vae_path):
            if source is not None and path.exists() and path.samefile(source):
                raise InputError(
                    f"the result {path.name} is the file of {model.name}, which goes into the merge; choose another "
                    "name"
                )


def _parts(tensors: tuple[Planned, ...]) -> list[_Part]:
    """The work in portions that threads share; methods that must see a whole tensor get it whole."""
    parts = []
    for tensor in tensors:
        program = tensor.program
        alone = program is None or program.whole or tensor.channels is not None or _is_copy(tensor)
        size = max(1, tensor.count) if alone else _PART_ELEMENTS
        for first in range(0, max(1, tensor.count), size):
            parts.append(_Part(tensor=tensor, first=first, last=min(first + size, tensor.count), alone=alone))
    return parts


def _is_copy(tensor: Planned) -> bool:
    program = tensor.program
    return program is not None and not program.steps and program.sources[0].dtype == tensor.row.dtype


def _sink(writer: TensorWriter, key: str) -> Sink:
    return lambda first_byte, data: writer.write_bytes(key, first_byte, data)


def _do(part: _Part, plan: Plan, sink: Sink, budget: MemoryBudget, stop: Stop) -> None:
    tensor, program = part.tensor, part.tensor.program
    if program is None:
        sink(0, _position_ids(tensor.row).reshape(-1).view(torch.uint8))
    elif _is_copy(tensor) and tensor.channels is None:
        copy_bytes(program.sources[0], sink, stop)
    elif part.alone:
        with budget.holding(needed_bytes(program, tensor.row), stop):
            merge_whole(program, tensor.row, sink, stop, _rounding(plan, tensor.key), tensor.channels)
    else:
        merge_pieces(
            program, tensor.row, sink, stop, _rounding(plan, tensor.key), first=part.first, last=part.last
        )  # fmt: skip


def _rounding(plan: Plan, key: str) -> Rounding:
    if not plan.output.stochastic_rounding:
        return Rounding()
    seed = plan.output.seed
    return Rounding(generator=lambda piece: torch.Generator().manual_seed(derive(seed, "rounding", key, piece)))


def _position_ids(row: TensorRow) -> Tensor:
    return torch.arange(elements(row.shape), dtype=torch.int64).reshape(row.shape)


class MergedTensors:
    """The result of a plan as if it were an open file: every tensor is computed when it is asked for.

    The bytes are those that the file would have. It can be read while the plan's files are open.
    """

    def __init__(self, plan: Plan, metadata: Mapping[str, str], name: str) -> None:
        self.path = Path(name)
        self._plan = plan
        self._planned = {tensor.key: tensor for tensor in plan.tensors}
        self._budget = MemoryBudget(BUDGET_BYTES)
        rows = plan.rows
        self.header = Header(
            shapes={key: row.shape for key, row in rows.items()},
            dtypes={key: row.dtype for key, row in rows.items()},
            metadata=dict(metadata),
            offsets={},
        )

    def __enter__(self) -> MergedTensors:
        """Nothing has to be opened."""
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing has to be closed; the plan's files are the plan's."""

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata that the file would have."""
        return dict(self.header.metadata)

    def keys(self) -> list[str]:
        """The keys."""
        return list(self._planned)

    def shape(self, key: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._planned[key].row.shape

    def tensor(self, key: str, *, dtype: torch.dtype | None = None) -> Tensor:
        """Computes one tensor, in its type in the file or in the one asked for."""
        planned = self._planned[key]
        out = torch.empty(planned.size_bytes, dtype=torch.uint8)

        def sink(first_byte: int, data: Tensor) -> None:
            out[first_byte : first_byte + data.numel()] = data

        with torch.inference_mode(False), torch.no_grad():
            stop = _never()
            for part in _parts((planned,)):
                _do(part, self._plan, sink, self._budget, stop)
        value = out.view(torch_dtype(planned.row.dtype)).reshape(planned.row.shape)
        return value if dtype is None else value.to(dtype)

    def all_tensors(self, progress: Progress | None = None, threads: int | None = None) -> dict[str, Tensor]:
        """Computes all tensors, in threads.

        Raises:
            FormatError: A model holds numbers that are not finite, or the result would.
        """
        found: dict[str, Tensor] = {}

        def do(key: str, stop: Stop) -> None:
            stop.check()
            found[key] = self.tensor(key)

        run_jobs(
            self.keys(), do, weight=lambda key: self._planned[key].count, threads=threads, progress=progress,
            text="merging",
        )  # fmt: skip
        return {key: found[key] for key in self.keys()}

    def __iter__(self) -> Iterator[str]:
        """The keys."""
        return iter(self._planned)


def _never() -> Stop:
    import threading

    return Stop(event=threading.Event())


def peak_bytes(plan: Plan, threads: int | None = None) -> int:
    """About what a run holds in memory at once."""
    whole = [
        needed_bytes(tensor.program, tensor.row)
        for tensor in plan.tensors
        if tensor.program is not None and (tensor.program.whole or tensor.channels is not None)
    ]
    pieces = (threads or default_threads()) * 16 * 2**20
    largest = max(whole, default=0)
    return pieces + max(largest, min(sum(whole), BUDGET_BYTES))
