"""Baking: a LoRA file in which strengths, block weights and elemental rules are part of the file itself.

The factor of a module goes into its alpha, so that the trained factors stay as they are, bit for bit; a module of
factor 0 is left out. Where a loader takes no alpha (full differences, norms, biases, (IA)^3, a LoKr of two whole
factors) the numbers themselves are multiplied, in fp32 where their own format would round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import InputError
from ...core.progress import Progress
from ...networks import lokr, lora
from ...networks._apply import ALPHA
from .blocks import ResolvedWeights
from .handle import Lora
from .metadata import recipe
from .modules import LoraFile, LoraModule, iter_parts
from .saving import KEEP_BOTH, Saved, target_path, write_stamped

WEIGHTS_KEY = "atelier.block_weights"
"""Metadata that holds the text that was baked in."""

_SCALED_PARTS: Mapping[str, tuple[str, ...]] = {"full": ("diff",), "norm": ("w_norm",), "ia3": ("weight",)}
"""Parts that are multiplied themselves, by algorithm."""

_BIASES = ("diff_b", "b_norm")
_MAX_NAMED = 4
_MAX_ROUNDING = 1e-6
"""Relative error of a tensor beyond which its own number format is not enough; fp16 itself rounds by 5e-4."""


@dataclass(frozen=True, kw_only=True)
class Baked:
    """What was made, before it is written.

    Attributes:
        tensors: Of the new file.
        metadata: Of the source, with what changed.
        kept: Modules that stay as they were.
        scaled: Modules with another factor.
        dropped: Modules of factor 0.
        widened: Tensors that are fp32 now, because their own format could not hold them times their factor.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]
    kept: int
    scaled: int
    dropped: int
    widened: int


def module_factors(lora_handle: Lora, weights: ResolvedWeights, file: LoraFile) -> dict[str, float]:
    """Factor of every module by stem: block weight times the strength of its part of the model."""
    return {
        module.stem: weights.factors.get(module.stem, 1.0)
        * (lora_handle.strength_clip if module.is_text else lora_handle.strength_model)
        for module in file.modules
    }


def bake(handle: Lora, weights: ResolvedWeights, *, progress: Progress | None = None) -> Baked:
    """Put a handle's strengths and block weights into the tensors of its file.

    Args:
        handle: Of the LoRA.
        weights: Its block weights resolved.
        progress: Told after each module; may raise to cancel.

    Raises:
        InputError: Something cannot be baked (the message says why), or nothing would be left.
        FormatError: The file is damaged.
    """
    if weights.scheduled:
        raise InputError(
            f"The block weights of {handle.name} say at which sampler steps it is on; a file knows no steps: take "
            "start, stop and step out of them."
        )
    counts = {"kept": 0, "scaled": 0, "dropped": 0, "widened": 0}
    tensors: dict[str, Tensor] = {}
    with LoraFile.of(handle) as file:
        factors = module_factors(handle, weights, file)
        _refuse(file, factors)
        for done, (module, parts) in enumerate(iter_parts(file), start=1):
            factor = factors[module.stem]
            if factor == 0.0:
                counts["dropped"] += 1
            else:
                made, widened = scaled_parts(module, parts, factor)
                tensors.update({_key(module, part): value for part, value in made.items()})
                counts["kept" if factor == 1.0 else "scaled"] += 1
                counts["widened"] += widened
            if progress is not None:
                progress.update(done, len(file.modules))
        if not tensors:
            raise InputError(f"Every factor of {handle.name} is 0, so the baked file would hold nothing; change them.")
        tensors.update({key: file.tensor(key) for key in file.other_keys})
        metadata = _metadata(file.metadata, handle, all(factor == 1.0 for factor in factors.values()))
    return Baked(tensors=tensors, metadata=metadata, **counts)


def scaled_parts(module: LoraModule, parts: Mapping[str, Tensor], factor: float) -> tuple[dict[str, Tensor], int]:
    """The tensors of a module whose change is so many times as large, and how many had to become fp32.

    The change is multiplied exactly but for the rounding of one fp32 number, the alpha.
    """
    if factor == 1.0:
        return dict(parts), 0
    made, widened = dict(parts), 0
    times = [part for part in (*_SCALED_PARTS.get(module.algorithm, ()), *_BIASES) if part in made]
    whole = module.algorithm == "lokr" and module.rank is None
    if whole:
        times.append(lokr.W1)
    for part in times:
        made[part], wider = _times(made[part], factor)
        widened += wider
    if module.rank is not None and not module.is_bias_alone and module.algorithm not in _SCALED_PARTS:
        alpha = float(module.rank) if module.alpha is None else module.alpha
        # A negative alpha is read by every loader, but the sign may as well sit in a factor, where it is exact.
        sign_part = next(part for part in _SIGNED[module.algorithm] if part in made)
        if factor < 0.0:
            made[sign_part] = -made[sign_part]
        made[ALPHA] = torch.tensor(alpha * abs(factor), dtype=torch.float32)
    return made, widened


_SIGNED: Mapping[str, tuple[str, ...]] = {
    "lora": (lora.UP,),
    "dylora": (lora.UP,),
    "loha": ("hada_w1_a",),
    "lokr": (lokr.W1, lokr.W1_A),
}


def save_baked(
    handle: Lora,
    weights: ResolvedWeights,
    wanted: Path,
    *,
    if_exists: str = KEEP_BOTH,
    progress: Progress | None = None,
) -> tuple[Saved, Baked | None]:
    """Bake and write, unless the same file is there already.

    Args:
        handle: Of the LoRA.
        weights: Its block weights resolved.
        wanted: The path asked for.
        if_exists: What to do where another file has that name.
        progress: Told after each module; may raise to cancel.

    Returns:
        What was written, and what was made; None where the file was there.

    Raises:
        InputError: As `bake`, or the output is the input, or taken.
        StorageError: The disk is full or cannot be written.
    """
    made_by = recipe("bake", {"rows": dict(weights.weights), "factors": _digest(weights)}, [handle])
    path, is_old = target_path(wanted, made_by, if_exists=if_exists, inputs=[handle.path])
    if is_old:
        return Saved(path=path, size_bytes=path.stat().st_size, dtype="", is_old=True), None
    baked = bake(handle, weights, progress=progress)
    write_stamped(path, baked.tensors, baked.metadata, made_by=made_by)
    return Saved(path=path, size_bytes=path.stat().st_size, dtype=""), baked


def _digest(weights: ResolvedWeights) -> str:
    """Tells factors apart that the rows do not: elemental rules, and presets that were edited under the same name."""
    factors = json.dumps(sorted(weights.factors.items()))
    return hashlib.sha256(factors.encode("utf-8")).hexdigest()[:16]


def _key(module: LoraModule, part: str) -> str:
    """The key of a part in the module's own naming; an alpha that the file lacked is named after its stem."""
    return module.keys.get(part, f"{module.stem}.{part}")


def _times(value: Tensor, factor: float) -> tuple[Tensor, bool]:
    wide = value.float() * factor
    narrow = wide.to(value.dtype)
    lost = torch.linalg.vector_norm(narrow.float() - wide)
    # Halves lose a bit only in numbers that are tiny beside the others.
    exact = bool(lost <= _MAX_ROUNDING * torch.linalg.vector_norm(wide))
    return (narrow, False) if exact else (wide, True)


def _refuse(file: LoraFile, factors: Mapping[str, float]) -> None:
    """Says which modules cannot be baked with their factor.

    Raises:
        InputError: A DoRA or an OFT with a factor other than 0 and 1.
    """
    partial = [module for module in file.modules if factors[module.stem] not in (0.0, 1.0)]
    doras = [module for module in partial if module.is_dora]
    turned = [module for module in partial if module.algorithm == "diag_oft"]
    for modules, kind, why in (
        (doras, "DoRA", "a DoRA sets the length of every channel, and part of the way to that length is no DoRA"),
        (turned, "OFT", "loaders turn part of the way with the square of the strength, which no file can say"),
    ):
        if modules:
            named = ", ".join(module.stem for module in modules[:_MAX_NAMED])
            more = f" and {len(modules) - _MAX_NAMED} more" if len(modules) > _MAX_NAMED else ""
            raise InputError(
                f"{file.name} holds {len(modules)} {kind} modules with a factor other than 0 and 1 ({named}{more}): "
                f"{why}. Give them 0 or 1, or turn the file into a plain LoRA with its base first."
            )


def _metadata(metadata: Mapping[str, str], handle: Lora, unchanged: bool) -> dict[str, str]:
    """The source's, with the alpha that is now different from module to module, and what was baked in."""
    kept = dict(metadata)
    if not unchanged and "ss_network_alpha" in kept:
        kept["ss_network_alpha"] = "Dynamic"
    if handle.block_weights:
        kept[WEIGHTS_KEY] = handle.block_weights
    return kept
