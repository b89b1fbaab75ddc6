"""Writing a LoRA file, and proving that the file is the adapter that was trained."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import FormatError, TrainingError
from ..core.tensors import kohya_hashes, read_tensors, write_tensors
from ..networks._apply import lora_delta, split_file
from ..networks._attach import AdapterSet
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
        if self.zero_stems:
            lines.append(
                f"{len(self.zero_stems)} modules were never reached by a gradient and stay zero, "
                f"such as {self.zero_stems[0]}."
            )
        return "\n".join(lines)


def zero_stems(adapter: AdapterSet) -> tuple[str, ...]:
    """Returns the modules one of whose factors is zero everywhere, so that their weight change is zero."""
    flags = [
        torch.stack([(part.detach() == 0).all() for part in adapter.parts_of(stem).values()]).any()
        for stem in adapter.stems
    ]
    zero = torch.stack(flags).tolist()
    return tuple(stem for stem, is_null in zip(adapter.stems, zero, strict=True) if is_null)


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
        stems = {stem for stem in adapter.stems if _part_of(stem) == part}
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
        count = sum(_part_of(stem) == part for stem in adapter.stems)
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
    rounding_error = _largest_error(tensors, adapter, rounded_to=None)
    if dtype == "fp16" and not rounding_error <= MAX_RELATIVE_ERROR:
        dtype = "fp32"
        tensors = _cast(adapter, dtype)
        rounding_error = _largest_error(tensors, adapter, rounded_to=None)
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
    error = _largest_error(read, adapter, rounded_to=TORCH_DTYPES[dtype])
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
    )


def _part_of(stem: str) -> str:
    return "text_encoder" if stem.startswith("lora_te") else "unet"


def _cast(adapter: AdapterSet, dtype: str) -> dict[str, torch.Tensor]:
    return {
        name: tensor.detach().to(device="cpu", dtype=TORCH_DTYPES[dtype], copy=True).contiguous()
        for name, tensor in adapter.state().items()
    }


def _check_names(tensors: Mapping[str, torch.Tensor], adapter: AdapterSet, accepted_stems: Collection[str]) -> None:
    expected, found = set(adapter.state()), set(tensors)
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


def _largest_error(
    tensors: Mapping[str, torch.Tensor], adapter: AdapterSet, *, rounded_to: torch.dtype | None
) -> float:
    """Returns the largest ||dW_tensors - dW_live|| / ||dW_live|| over the modules; 0 where both are zero."""
    modules = split_file(tensors)
    largest = 0.0
    with torch.no_grad():
        for stem in adapter.stems:
            live = {name: value.detach().cpu() for name, value in adapter.parts_of(stem).items()}
            alpha = adapter.network.alpha(adapter.choice.params)
            if rounded_to is not None:
                live = {name: value.to(rounded_to) for name, value in live.items()}
                alpha = float(torch.tensor(alpha, dtype=rounded_to))
            delta = adapter.network.delta(live, alpha=alpha, weight_shape=None)
            off = torch.linalg.vector_norm(lora_delta(modules[stem], stem=stem) - delta)
            length = torch.linalg.vector_norm(delta)
            error = float(off / length) if float(length) > 0.0 else float("inf") if float(off) > 0.0 else 0.0
            largest = max(largest, error if error == error else float("inf"))
    return largest
