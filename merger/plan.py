"""The plan of a merge: every tensor of the result, where it comes from, its type; and what was mended."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from ..core.errors import InputError
from ..core.params import Params, param
from ..core.progress import Progress
from ..core.stream import elements, run_jobs
from ..core.tensors import TensorRow, dtype_bytes
from .block_rows import TEXT_PREFIXES, UNET_PREFIX, VAE_PREFIX
from .compute import whole_sources
from .expression import Merge, Model, Node, models
from .inputs import CONV_IN, EMA_DROP, EMA_KEEP, EMA_PREFIX, EMA_USE, PARTS, POSITION_IDS, OpenModel, opened
from .methods._spec import DELTA
from .program import Program, Programs

AS_A = "as the first model"
DTYPES = {AS_A: "", "fp32": "F32", "fp16": "F16", "bf16": "BF16", "fp8 e4m3": "F8_E4M3", "fp8 e5m2": "F8_E5M2"}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
MERGED_PREFIXES = (UNET_PREFIX, VAE_PREFIX, *TEXT_PREFIXES)


@dataclass(frozen=True, kw_only=True)
class OutputParams(Params):
    """What the result is like."""

    dtype: str = param(
        AS_A,
        doc="Number format of the result. fp8 is for the UNet's matrices, everything else is fp16 then; the arithmetic "
        "is fp32 always.",
        choices=tuple(DTYPES),
    )
    stochastic_rounding: bool = param(
        False,
        doc="Round to one of the two nearest numbers by chance instead of to the nearest, so that small changes "
        "survive on average; useful with fp8 and bf16.",
        advanced=True,
    )
    seed: int = param(
        0,
        doc="Seed of stochastic rounding; the same seed gives the same file.",
        minimum=0,
        maximum=2**53,
        advanced=True,
    )
    ema: str = param(
        EMA_DROP,
        doc="Averaged weights (EMA) in old training files: leave them out, keep the first model's, or use every "
        "model's in the place of its UNet's weights.",
        choices=(EMA_DROP, EMA_KEEP, EMA_USE),
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One tensor of the result.

    Attributes:
        key: Its key.
        row: Type and shape in the result.
        program: How it is made; None for position ids, which are counted.
        channels: How many input channels are merged where the models differ in width; None where they do not.
    """

    key: str
    row: TensorRow
    program: Program | None
    channels: int | None = None

    @property
    def count(self) -> int:
        """Elements."""
        return elements(self.row.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes in the result."""
        return self.count * dtype_bytes(self.row.dtype)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All of it.

    Attributes:
        root: What is merged.
        output: What the result is like.
        family: Of all models.
        tensors: In the order of their reading.
        models: The open models.
        said: What was mended or is worth knowing, one sentence each.
    """

    root: Node
    output: OutputParams
    family: str
    tensors: tuple[Planned, ...]
    models: Mapping[Model, OpenModel]
    said: tuple[str, ...]

    @property
    def rows(self) -> dict[str, TensorRow]:
        """Type and shape of every tensor."""
        return {tensor.key: tensor.row for tensor in self.tensors}

    @property
    def size_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size_bytes for tensor in self.tensors)

    @property
    def read_bytes(self) -> int:
        """Bytes that are read for it."""
        return sum(
            elements(place.shape) * dtype_bytes(place.dtype)
            for tensor in self.tensors
            if tensor.program is not None
            for place in tensor.program.sources
        )


@contextmanager
def planned(root: Node, output: OutputParams, progress: Progress | None = None) -> Iterator[Plan]:
    """Opens the models and plans every tensor; the files are closed when the block ends.

    Args:
        root: What is merged.
        output: What the result is like.
        progress: Told during a first pass, where a method needs one; may cancel.

    Raises:
        InputError: The models do not fit each other, or the result is a difference.
        FormatError: A file is damaged or no checkpoint.
        StorageError: A file cannot be read.
    """
    if root.kind == DELTA:
        raise InputError(
            "what is to be saved or loaded is a difference of two models, not a model; add it to one with add_delta"
        )
    with opened(models(root), ema=output.ema) as found:
        family = next(iter(found.values())).family
        programs = Programs(root, found, family)
        said = [line for model in found.values() for line in model.said]
        keys = _keys(list(found.values()), said)
        _surveys(programs, keys, progress)
        tensors = tuple(_planned(key, programs, list(found.values()), output) for key in keys)
        said += _said_of(tensors, root, list(found.values()))
        said += [line for rows in programs.rows.values() for line in rows.changed_by_rules(keys)]
        yield Plan(root=root, output=output, family=family, tensors=tensors, models=found, said=tuple(said))


def _keys(found: Sequence[OpenModel], said: list[str]) -> list[str]:
    """The keys of the result: those of the first model, and whole parts that only others have."""
    first = found[0]
    keys = list(first.places)
    for name, prefixes in PARTS.items():
        if first.has_part(prefixes):
            continue
        giver = next((model for model in found[1:] if model.has_part(prefixes)), None)
        if giver is not None:
            keys += [key for key in giver.places if key.startswith(tuple(prefixes))]
            said.append(f"{first.model.name} has no {name}; it is that of {giver.model.name}")
        elif name == "VAE":
            said.append("none of the models has a VAE; choose one to bake in, or load one beside the result")
    return keys


def _planned(key: str, programs: Programs, found: Sequence[OpenModel], output: OutputParams) -> Planned:
    holder = next(model for model in found if key in model.places)
    place = holder.places[key]
    if key.endswith(POSITION_IDS):
        return Planned(key=key, row=TensorRow(dtype="I64", shape=(1, place.shape[-1])), program=None)
    row = TensorRow(dtype=_dtype(key, place.dtype, place.shape, output), shape=place.shape)
    if place.dtype not in FLOATS or not key.startswith(MERGED_PREFIXES) or 0 in place.shape:
        return Planned(key=key, row=row, program=Program(sources=(place,), steps=()))
    program = programs.of(key) or Program(sources=(place,), steps=())
    widths = {source.shape[1] for source in program.sources} if key == CONV_IN else set()
    if len(widths) > 1:
        if place not in program.sources:
            program = Program(sources=(place,), steps=())
        return Planned(key=key, row=row, program=program, channels=min(widths))
    return Planned(key=key, row=row, program=program)


def _dtype(key: str, own: str, shape: tuple[int, ...], output: OutputParams) -> str:
    """Type of a tensor in the result."""
    wanted = DTYPES[output.dtype]
    if own not in FLOATS or 0 in shape:
        return own
    if not wanted:
        return "F32" if own == "F64" else own
    if wanted.startswith("F8"):
        return wanted if key.startswith(UNET_PREFIX) and len(shape) > 1 else "F16"
    return wanted


def _surveys(programs: Programs, keys: Sequence[str], progress: Progress | None) -> None:
    """The first pass of methods that must know the whole."""
    for node in programs.surveyed():
        survey = node.spec.survey
        if survey is None:
            continue
        seen: dict[str, torch.Tensor] = {}

        def look(key: str, stop: Any, node: Merge = node, survey: Any = survey, seen: Any = seen) -> None:
            found = programs.inputs_of(node, key)
            if found is not None:
                step, program = found
                values = list(whole_sources(program, None))
                for earlier in program.steps[:-1]:
                    values.append(earlier.run(values))
                inputs = [None if number is None else values[number] for number in step.inputs]
                seen[key] = survey.look(inputs, step.params, step.context)

        concerned = [key for key in keys if key.startswith(MERGED_PREFIXES) and survey.concerns(key)]
        concerned = [key for key in concerned if not key.endswith(POSITION_IDS)]
        run_jobs(concerned, look, threads=1, progress=progress, text=f"comparing the models ({node.method})")
        programs.surveys[id(node)] = survey.conclude([seen[key] for key in concerned if key in seen])


def _said_of(tensors: Sequence[Planned], root: Node, found: Sequence[OpenModel]) -> list[str]:
    said = []
    ids = [tensor for tensor in tensors if tensor.program is None]
    if ids:
        said.append(f"position ids are written as int64 ({len(ids)} text encoder{'s' if len(ids) > 1 else ''})")
    if any(tensor.key.startswith(EMA_PREFIX) for tensor in tensors):
        said.append("the EMA tensors are the first model's and no longer fit the merged weights")
    for tensor in tensors:
        if tensor.channels is not None:
            said.append(
                f"{tensor.key} has {tensor.row.shape[1]} input channels in {found[0].model.name} and fewer or more in "
                f"others; the first {tensor.channels} are merged, the rest is kept"
            )
    others = [model.model.name for model in found[1:] if _predicts_v(model) != _predicts_v(found[0])]
    if others:
        said.append(f"WARNING: {found[0].model.name} and {', '.join(others)} do not predict the same (noise or v)")
    return said


def _predicts_v(model: OpenModel) -> bool:
    told = model.header.metadata.get("modelspec.prediction_type", "")
    return "v_pred" in model.header.shapes or told in ("v", "v_prediction", "v-prediction")
