"""LoRAs merged into a checkpoint, tensor by tensor: one weight of the model is in memory at a time per thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import FormatError, InputError
from ...core.progress import Progress, SilentProgress
from ...core.stream import MemoryBudget, Stop, TensorReader, elements, run_jobs, stream_tensors
from ...core.tensors import TensorRow, dtype_bytes, torch_dtype
from ...families._single_file import FilePart
from ...families._spec import Family
from ...networks._apply import bias_change_of, lora_delta
from .ingredients import Ingredient
from .metadata import stamped
from .modules import LoraModule, check_finite

AS_FILE = "as the file"
_TYPES = {"fp16": "F16", "bf16": "BF16", "fp32": "F32"}
_EMA = "model_ema."
_MEMORY_BYTES = 2**30
_FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A module that changes a part of one tensor of the checkpoint."""

    ingredient: Ingredient
    module: LoraModule
    part: FilePart
    parameter: str


@dataclass(frozen=True, kw_only=True)
class MergePlan:
    """What a merge will do, known from the headers alone.

    Attributes:
        family: of the checkpoint.
        rows: of the file that is written.
        hits: what changes each tensor, in the order it is added.
        left_out: keys of the checkpoint that are not written.
        missing: modules whose layer the checkpoint lacks, by LoRA.
    """

    family: Family
    rows: Mapping[str, TensorRow]
    hits: Mapping[str, tuple[Hit, ...]]
    left_out: tuple[str, ...] = ()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        """Of the tensors of the file."""
        return sum(elements(row.shape) * dtype_bytes(row.dtype) for row in self.rows.values())

    def notes(self) -> tuple[str, ...]:
        """What a person should know, one sentence each."""
        found = [f"{len(self.hits)} of {len(self.rows)} tensors are changed."]
        for name, stems in self.missing.items():
            found.append(f"{len(stems)} modules of {name} have no layer in this checkpoint, such as {stems[0]}.")
        if self.left_out:
            found.append(
                f"{len(self.left_out)} tensors of the EMA copy are left out; they do not fit the merged model."
            )
        return tuple(found)


def plan_merge(file: TensorReader, family: Family, ingredients: Sequence[Ingredient], *, dtype: str) -> MergePlan:
    """Finds the tensors that are changed.

    Args:
        file: the checkpoint.
        family: of it.
        ingredients: open LoRA files with strengths.
        dtype: fp16, bf16, fp32 or `AS_FILE`; whole numbers stay what they are.

    Raises:
        InputError: a LoRA is of another family, or none of its layers is in the checkpoint.
        FormatError: a module does not fit its weight.
    """
    hits: dict[str, list[Hit]] = {}
    missing: dict[str, tuple[str, ...]] = {}
    for ingredient in ingredients:
        lora = ingredient.file
        if lora.family.name != family.name:
            raise InputError(
                f"{lora.name} is a LoRA for {lora.family.title} and {file.path.name} is {family.title}: merge a LoRA "
                "that was trained for this kind of model."
            )
        found = [(module, _hits(file, family, ingredient, module)) for module in lora.modules]
        lost = tuple(module.stem for module, places in found if not places)
        if len(lost) == len(found):
            raise InputError(f"none of the {len(found)} modules of {lora.name} has a layer in {file.path.name}.")
        if lost:
            missing[lora.name] = lost
        for _, places in found:
            for hit in places:
                if hit.ingredient.strength(hit.module) != 0.0:
                    hits.setdefault(hit.part.key, []).append(hit)
    rows = {
        key: TensorRow(dtype=_type_of(file.header.dtypes[key], dtype), shape=shape)
        for key, shape in file.header.shapes.items()
        if not key.startswith(_EMA)
    }
    return MergePlan(
        family=family,
        rows=rows,
        hits={key: tuple(found_hits) for key, found_hits in hits.items()},
        left_out=tuple(key for key in file.header.shapes if key.startswith(_EMA)),
        missing=missing,
    )


def merge_into(
    file: TensorReader,
    plan: MergePlan,
    target: Path,
    *,
    metadata: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Writes the merged checkpoint; its name appears when all of it is there.

    Every tensor is changed in fp32, LoRA after LoRA, and rounded once.

    Args:
        file: the checkpoint.
        plan: of `plan_merge`, on the same file.
        target: where to; never an input.
        metadata: of the new file.
        progress: told, and may cancel.

    Raises:
        FormatError: a LoRA does not fit, is not finite, or the sum is beyond the number format.
        StorageError: the disk is full or cannot be written.
    """
    budget = MemoryBudget(_MEMORY_BYTES)
    with stream_tensors(target, plan.rows, metadata) as writer:

        def do(key: str, stop: Stop) -> None:
            row = plan.rows[key]
            with budget.holding(elements(row.shape) * 12, stop):
                writer.write(key, _merged(file, key, row, plan.hits.get(key, ())))

        run_jobs(
            list(plan.rows), do, weight=lambda key: elements(plan.rows[key].shape),
            progress=progress or SilentProgress(), text=f"writing {target.name}",
        )  # fmt: skip


def _hits(file: TensorReader, family: Family, ingredient: Ingredient, module: LoraModule) -> list[Hit]:
    parameters = [] if module.is_bias_alone else ["weight"]
    if module.bias_part is not None:
        parameters.append("bias")
    found = []
    for parameter in parameters:
        part = family.place_in_file(module.place, file.header, parameter)
        if part is not None:
            found.append(Hit(ingredient=ingredient, module=module, part=part, parameter=parameter))
    return found


def _type_of(given: str, wanted: str) -> str:
    return given if given not in _FLOATS or wanted == AS_FILE else _TYPES[wanted]


def _merged(file: TensorReader, key: str, row: TensorRow, hits: Sequence[Hit]) -> Tensor:
    value = file.tensor(key)
    if hits:
        whole = value.float()
        for hit in hits:
            _add(whole, hit)
        value = whole
    small = value.to(torch_dtype(row.dtype))
    if hits and not bool(torch.isfinite(small).all()):
        raise FormatError(
            f"{key} would hold NaN or infinite numbers in {row.dtype}: a LoRA is too strong or broken; lower its "
            "strength or write fp32."
        )
    return small


def _add(whole: Tensor, hit: Hit) -> None:
    """Adds one module's change to its rows of a tensor, in place."""
    lora, module = hit.ingredient.file, hit.module
    rows = whole if hit.part.rows is None else whole[hit.part.rows[0] : hit.part.rows[1]]
    rows = rows.t() if hit.part.transposed and rows.ndim == 2 else rows
    parts = lora.parts(module)
    check_finite(parts, module, lora.name)
    if hit.parameter == "bias":
        change = bias_change_of(parts, stem=module.stem)
        if change is None or change.shape != rows.shape:
            given = None if change is None else list(change.shape)
            raise FormatError(
                f"{lora.name} changes a bias of shape {given} at {module.stem}, the checkpoint has {list(rows.shape)}; "
                "it was made for another architecture."
            )
    else:
        change = lora_delta(parts, stem=module.stem, weight=rows.contiguous())
    rows.add_(change.reshape(rows.shape), alpha=hit.ingredient.applied_strength(module))


def merged_checkpoint_metadata(
    file: TensorReader, ingredients: Sequence[Ingredient], *, title: str, made_by: Mapping[str, Any]
) -> dict[str, str]:
    """The checkpoint's own metadata, with the LoRAs in it and the recipe."""
    names = [file.path.name, *(ingredient.file.name for ingredient in ingredients)]
    return stamped({**file.metadata, "modelspec.merged_from": ", ".join(names)}, title=title, made_by=made_by)
