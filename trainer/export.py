"""Writing a LoRA file, and proving that the file is the adapter that was trained."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import FormatError, TrainingError
from ..core.tensors import kohya_hashes, read_tensors, write_tensors
from ..networks._apply import lora_delta, needs_weight, split_file
from ..networks._attach import AdapterSet
from ..networks._spec import network_of_parts
from .precision import TORCH_DTYPES

MAX_RELATIVE_ERROR = 1e-3
"""Largest allowed difference between a module's weight change in the file and in the live adapter."""


@dataclass(frozen=True, kw_only=True)
class LoraFileReport:
    """What is known of a written file.

    Attributes:
        num_modules: modules in the file.
        num_parameters: trained numbers in the file.
        size_bytes: of the file.
        dtype: number format of the file; fp32 instead of fp16 when fp16 could not hold the values.
        asked_dtype: number format that was asked for.
        model_hash: ``sshs_model_hash``.
        max_relative_error: largest ||dW_file - dW|| / ||dW|| over the modules, Frobenius norms, with dW built from the
            live adapter rounded to the file's number format.
        rounding_error: the same against the live adapter in fp32: what the number format costs.
        zero_stems: modules whose weight change is zero (such as text encoder layers behind the clip skip).
        notes: what is to be known of files of this network.
    """

    num_modules: int
    num_parameters: int
    size_bytes: int
    dtype: str
    asked_dtype: str
    model_hash: str
    max_relative_error: float
    rounding_error: float
    zero_stems: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Returns the report in a few lines."""
        lines = [
            f"LoRA file: {self.num_modules} modules, {self.num_parameters:,} parameters, "
            f"{self.size_bytes / 2**20:.2f} MiB, {self.dtype}; every key is one that ComfyUI loads.",
            f"Read back: largest relative error of a weight change {self.max_relative_error:.2g} "
            f"(against fp32: {self.rounding_error:.2g}).",
        ]
        if self.dtype != self.asked_dtype:
            lines.append(
                f"Saved as {self.dtype}: {self.asked_dtype} cannot hold values this small without changing the result."
            )
        lines.extend(self.notes)
        if self.zero_stems:
            lines.append(
                f"{len(self.zero_stems)} modules were never reached by a gradient and stay zero, "
                f"such as {self.zero_stems[0]}."
            )
        return "\n".join(lines)


def zero_stems(adapter: AdapterSet) -> tuple[str, ...]:
    """Returns the modules that change nothing."""
    return adapter.unchanged_stems()


def check_finite(adapter: AdapterSet) -> None:
    """Refuses an adapter that is not finite.

    Raises:
        TrainingError: the tensor is named.
    """
    for name, tensor in adapter.state().items():
        if not bool(torch.isfinite(tensor).all()):
            raise TrainingError(
                f"The tensor {name} is not finite, so no LoRA was saved; use a lower learning rate, or the precision "
                "bf16 or fp32."
            )


def untaught_part(adapter: AdapterSet, zero: Collection[str] | None = None) -> str | None:
    """Returns "unet" or "text_encoder" if that part has modules and none of them changes its weight, else None."""
    zero = set(zero_stems(adapter) if zero is None else zero)
    for part, parameters in adapter.parameters_by_part().items():
        stems = {stem for stem in adapter.stems if adapter.part_of(stem) == part}
        if parameters and stems and stems <= zero:
            return part
    return None


def check_learned(adapter: AdapterSet) -> tuple[str, ...]:
    """Refuses an adapter that is not finite, or that learned nothing in a whole part.

    Returns:
        The modules whose weight change is zero.

    Raises:
        TrainingError: a tensor is not finite, or all modules of the UNet or of the text encoder are zero.
    """
    check_finite(adapter)
    zero = zero_stems(adapter)
    part = untaught_part(adapter, zero)
    if part is not None:
        count = sum(adapter.part_of(stem) == part for stem in adapter.stems)
        raise TrainingError(
            f"All {count} modules of the {part.replace('_', ' ')} are still zero: nothing was learned, so no LoRA was "
            f"saved; check the learning rate lr_{part} and the warm-up, and with fp16 train more than a few steps."
        )
    return zero


def save_lora(
    path: Path,
    adapter: AdapterSet,
    *,
    metadata: Mapping[str, str],
    dtype: str,
    accepted_stems: Collection[str],
) -> LoraFileReport:
    """Writes the adapter in kohya's format, reads the file back and compares.

    Args:
        path: the file to write.
        adapter: what was trained.
        metadata: ``ss_`` and ``modelspec.`` keys; the hashes are added.
        dtype: "fp16", "bf16" or "fp32".
        accepted_stems: the module names that ComfyUI's loader knows for this base.

    Raises:
        TrainingError: a tensor is not finite, a whole part is zero, or the file is not what was trained.
        FormatError: a module name is not one that ComfyUI loads.
        StorageError: the file cannot be written.
    """
    zero = check_learned(adapter)
    asked_dtype = dtype
    tensors = _cast(adapter, dtype)
    rounding_error = _rounding_error(tensors, adapter)
    if dtype == "fp16" and not rounding_error <= MAX_RELATIVE_ERROR:
        dtype = "fp32"
        tensors = _cast(adapter, dtype)
        rounding_error = _rounding_error(tensors, adapter)
    model_hash, legacy_hash = kohya_hashes(tensors, metadata)
    said = {
        **metadata,
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    write_tensors(path, tensors, said)
    read = read_tensors(path)
    _check_names(read, adapter, accepted_stems)
    error = _reading_error(read, _cast(adapter, dtype), adapter)
    if not error <= MAX_RELATIVE_ERROR:
        raise TrainingError(
            f"The file {path.name} was read back with a relative error of {error:.2g}, allowed is "
            f"{MAX_RELATIVE_ERROR:g}; the disk or the memory is faulty, or the adapter changed while it was saved."
        )
    return LoraFileReport(
        num_modules=len(adapter.stems),
        num_parameters=adapter.num_parameters,
        size_bytes=path.stat().st_size,
        dtype=dtype,
        asked_dtype=asked_dtype,
        model_hash=model_hash,
        max_relative_error=error,
        rounding_error=rounding_error,
        zero_stems=zero,
        notes=_notes(adapter),
    )


def _notes(adapter: AdapterSet) -> tuple[str, ...]:
    if getattr(adapter.choice.params, "dora", "off") == "output":
        return (
            "DoRA on the output axis: ComfyUI divides by the norm of the unchanged weight there, so its pictures "
            "differ a little from the trained ones; the input axis has no such difference.",
        )
    return ()


def _cast(adapter: AdapterSet, dtype: str) -> dict[str, torch.Tensor]:
    """Returns the file's tensors; those that carry the base weight's own size stay in fp32."""
    exact = tuple(f".{name}" for name in adapter.network.fp32_parts)
    return {
        name: tensor.to(
            device="cpu", dtype=torch.float32 if name.endswith(exact) else TORCH_DTYPES[dtype], copy=True
        ).contiguous()
        for name, tensor in adapter.file_tensors().items()
    }


def _check_names(tensors: Mapping[str, torch.Tensor], adapter: AdapterSet, accepted_stems: Collection[str]) -> None:
    expected, found = set(adapter.file_tensors()), set(tensors)
    if expected != found:
        odd = sorted(expected ^ found)
        raise TrainingError(
            f"The LoRA file does not hold the tensors that were trained; {odd[0]} is the first to differ."
        )
    unknown = [stem for stem in adapter.stems if stem not in accepted_stems]
    if unknown:
        raise FormatError(
            f"{len(unknown)} modules of the LoRA have names that ComfyUI would not load on this base, such as "
            f"{unknown[0]}; this is a mistake in the model family, please report it."
        )


def _rounding_error(tensors: Mapping[str, torch.Tensor], adapter: AdapterSet) -> float:
    """Returns the largest error of a module's change in these tensors against the live adapter in fp32."""
    modules = split_file(tensors)
    with torch.no_grad():
        return max(_error(_change(modules[stem], adapter, stem), _live_change(adapter, stem)) for stem in adapter.stems)


def _reading_error(read: Mapping[str, torch.Tensor], meant: Mapping[str, torch.Tensor], adapter: AdapterSet) -> float:
    """Returns the largest error of a module's change in the file that was read back against what was to be written."""
    read_modules, meant_modules = split_file(read), split_file(meant)
    largest = 0.0
    with torch.no_grad():
        for stem in adapter.stems:
            ours, theirs = read_modules[stem], meant_modules[stem]
            if all(torch.equal(ours[name], part) and ours[name].dtype == part.dtype for name, part in theirs.items()):
                continue
            largest = max(largest, _error(_change(ours, adapter, stem), _change(theirs, adapter, stem)))
    return largest


def _change(parts: Mapping[str, torch.Tensor], adapter: AdapterSet, stem: str) -> list[torch.Tensor]:
    """Returns what a file's module changes, on the adapter's device: the weight and, where it does, the bias."""
    layer = adapter.layer_of(stem)
    device = next(iter(adapter.parts_of(stem).values())).device
    moved = {name: part.to(device) for name, part in parts.items()}
    weight = layer.weight.to(device) if needs_weight(moved, stem=stem) else None
    change = lora_delta(moved, stem=stem, weight_shape=layer.shape, weight=weight)
    bias = network_of_parts(moved, stem=stem).bias_delta(moved)
    return [change] if bias is None else [change, bias]


def _live_change(adapter: AdapterSet, stem: str) -> list[torch.Tensor]:
    bias = adapter.network.bias_delta({name: part.detach() for name, part in adapter.parts_of(stem).items()})
    return [adapter.delta(stem)] if bias is None else [adapter.delta(stem), bias]


def _error(ours: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> float:
    """Returns ||ours - wanted|| / ||wanted|| over weight and bias together; 0 where both are zero."""
    off = torch.stack([torch.linalg.vector_norm(a - b) for a, b in zip(ours, wanted, strict=True)]).norm()
    length = torch.stack([torch.linalg.vector_norm(part) for part in wanted]).norm()
    error = float(off / length) if float(length) > 0.0 else float("inf") if float(off) > 0.0 else 0.0
    return error if error == error else float("inf")
