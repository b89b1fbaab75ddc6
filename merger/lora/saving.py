"""Writing a draft: into a new file, never over an input, or not again where the same was written before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.errors import FormatError, InputError
from ...core.tensors import kohya_hashes, read_header, write_tensors
from ...families._spec import KOHYA
from .drafts import Draft, tensors_of
from .metadata import recipe_of, stamped

DTYPES: Mapping[str, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
AS_INPUT = "as the input"
MAX_ROUNDING = 2e-2
"""Relative error of a module's change beyond which fp16 is said not to hold it; fp32 is written instead.

bf16 alone costs 4e-3; what is worse comes from numbers too small or too large for the format.
"""

SAID = "atelier.lora_report"
"""Metadata that holds what an operation said of its result, for those who ask for the same one again."""

KEEP_BOTH, REPLACE, REFUSE = "keep both", "replace", "refuse"
IF_EXISTS = (KEEP_BOTH, REPLACE, REFUSE)


@dataclass(frozen=True, kw_only=True)
class Saved:
    """What was written.

    Attributes:
        path: the file.
        size_bytes: of the file.
        dtype: number format of the file.
        rounding_error: largest relative error that it has cost a module.
        is_old: whether the file was there already, made by the same recipe.
        notes: what a person should know.
    """

    path: Path
    size_bytes: int
    dtype: str
    rounding_error: float = 0.0
    is_old: bool = False
    notes: tuple[str, ...] = ()


def dtype_of(choice: str, dtypes: Collection[str]) -> str:
    """fp16, bf16 or fp32: as chosen, or the widest of the input's own.

    Args:
        choice: one of `DTYPES` or `AS_INPUT`.
        dtypes: of the inputs' tensors, in the file's words (`F16`).
    """
    if choice in DTYPES:
        return choice
    found = set(dtypes)
    if found == {"F16"}:
        return "fp16"
    return "bf16" if found == {"BF16"} else "fp16" if found <= {"F8_E4M3", "F8_E5M2"} else "fp32"


def target_path(
    wanted: Path, made_by: Mapping[str, Any], *, if_exists: str, inputs: Collection[Path]
) -> tuple[Path, bool]:
    """Where a file goes, and whether it lies there already, made by the same recipe.

    Args:
        wanted: the path a person asked for.
        made_by: the recipe.
        if_exists: what to do where another file has that name.
        inputs: files that must stay.

    Raises:
        InputError: the path is an input's, or taken and `if_exists` is "refuse".
    """
    if _is_any(wanted, inputs):
        raise InputError(f"the output {wanted.name} is one of the inputs, which are never replaced; give another name.")
    if not wanted.exists():
        return wanted, False
    if wanted.is_dir():
        raise InputError(f"{wanted.name} is a folder; give the output another name.")
    number = 2
    path = wanted
    while path.exists():
        if _same_recipe(path, made_by):
            return path, True
        if if_exists == REPLACE and not _is_any(path, inputs):
            return path, False
        if if_exists == REFUSE:
            raise InputError(f"{path.name} is there already and was made otherwise; give another name, or remove it.")
        path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        number += 1
    return path, False


def recipe_key(made_by: Mapping[str, Any]) -> str:
    """Sixteen digits that differ when the recipe does."""
    text = json.dumps(made_by, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def save(
    wanted: Path,
    make: Callable[[], Draft],
    *,
    made_by: Mapping[str, Any],
    dtype: str,
    naming: str = KOHYA,
    if_exists: str = KEEP_BOTH,
    inputs: Collection[Path] = (),
) -> tuple[Saved, Draft | None]:
    """Makes a draft and writes it, unless its file is there already.

    Args:
        wanted: the path asked for.
        make: does the operation.
        made_by: the recipe, which decides whether a file is the same.
        dtype: fp16, bf16 or fp32.
        naming: of the modules in the file.
        if_exists: what to do where another file has that name.
        inputs: files that must stay.

    Returns:
        What was written, and the draft; None where the file was there.

    Raises:
        InputError: the output is an input, or taken.
        FormatError: the result is not finite.
        StorageError: the disk is full or cannot be written.
    """
    path, is_old = target_path(wanted, made_by, if_exists=if_exists, inputs=inputs)
    if is_old:
        return Saved(path=path, size_bytes=path.stat().st_size, dtype=dtype, is_old=True), None
    draft = make()
    return write_draft(path, draft, made_by=made_by, dtype=dtype, naming=naming), draft


def write_draft(
    path: Path,
    draft: Draft,
    *,
    made_by: Mapping[str, Any],
    dtype: str,
    naming: str = KOHYA,
    title: str = "",
    said: str = "",
) -> Saved:
    """Writes a draft atomically with kohya's hashes; see `save`.

    Args:
        path: where to.
        draft: what.
        made_by: the recipe.
        dtype: fp16, bf16 or fp32.
        naming: of the modules.
        title: of the file; its name by default, unless the draft has one.
        said: what is to be known of how it was made; kept in the file.
    """
    notes: list[str] = []
    tensors, rounding = tensors_of(draft, naming=naming, dtype=DTYPES[dtype])
    if dtype != "fp32" and not rounding <= MAX_ROUNDING:
        notes.append(f"Saved as fp32: {dtype} would have changed a module by {rounding:.1%}.")
        dtype = "fp32"
        tensors, rounding = tensors_of(draft, naming=naming, dtype=torch.float32)
    cost = f"; rounding costs a module {rounding:.3%} at most" if rounding else ""
    said = "\n".join([said, *notes, f"Written in {dtype}{cost}."]) if said else ""
    title = draft.title or title or path.stem
    write_stamped(path, tensors, draft.metadata, made_by=made_by, title=title, said=said)
    return Saved(path=path, size_bytes=path.stat().st_size, dtype=dtype, rounding_error=rounding, notes=tuple(notes))


def write_stamped(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    *,
    made_by: Mapping[str, Any],
    title: str = "",
    said: str = "",
) -> None:
    """Writes tensors atomically with title, recipe and kohya's hashes.

    Args:
        path: where to.
        tensors: by key.
        metadata: of the source.
        made_by: the recipe.
        title: of the file; its name by default.
        said: what is to be known of how it was made.

    Raises:
        FormatError: a tensor is not finite.
        StorageError: the disk is full or cannot be written.
    """
    refuse_not_finite(tensors)
    told = stamped(metadata, title=title or path.stem, made_by=made_by)
    told.pop(SAID, None)
    if said:
        told[SAID] = said
    model_hash, legacy_hash = kohya_hashes(tensors, told)
    told |= {
        "sshs_model_hash": model_hash,
        "sshs_legacy_hash": legacy_hash,
        "modelspec.hash_sha256": f"0x{model_hash}",
    }
    write_tensors(path, tensors, told)


def refuse_not_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuses to write what no model could use.

    Raises:
        FormatError: a tensor is not finite; it is named.
    """
    for key, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value.float()).all()):
            raise FormatError(
                f"the result holds NaN or infinite numbers in {key}, so nothing was written; use fp32, or look at the "
                "inputs with 'Inspect LoRA'."
            )


def _is_any(path: Path, others: Collection[Path]) -> bool:
    def same(other: Path) -> bool:
        try:
            return path.samefile(other)
        except OSError:  # one of them is not there
            return path.resolve() == other.resolve()

    return any(same(other) for other in others)


def _same_recipe(path: Path, made_by: Mapping[str, Any]) -> bool:
    try:
        return bool(recipe_of(read_header(path).metadata) == json.loads(json.dumps(made_by)))
    except FormatError:
        return False
