"""One merge from its tree to a file, with the report of what was done; and the dry run that only tells."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import InputError, StorageError
from ..core.files import free_bytes
from ..core.progress import Progress
from ..core.tensors import read_header
from .engine import peak_bytes, refuse_input, run_to_file
from .expression import Node
from .metadata import LabelParams, identities, made_by, metadata_of, recipe_hash, recipe_json
from .plan import OutputParams, Plan, planned
from .shares import share_report

ASSUMED_BYTES_PER_S = 400 * 2**20
"""What a disk is assumed to read and write, for the estimate of a dry run."""
_SHOWN_KEYS = 5


@dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge.

    Attributes:
        path: The file.
        report: One sentence per line.
        written: False where the file was there already, made by the same recipe of the same models.
    """

    path: Path
    report: tuple[str, ...]
    written: bool


def merge_to_file(
    root: Node,
    path: Path,
    output: OutputParams,
    label: LabelParams | None = None,
    *,
    replace: bool = False,
    progress: Progress | None = None,
    notes: Sequence[str] = (),
) -> Merged:
    """Merges into a file; one that this very recipe made of these very models is kept as it is.

    Args:
        root: What is merged.
        path: The new file.
        output: What the result is like.
        label: What people read in its metadata.
        replace: Whether another file of this name may be replaced.
        progress: Told about progress; may cancel.
        notes: Sentences to begin the report with.

    Raises:
        InputError: The models do not fit, the result is a difference, or a file stands in the way.
        FormatError: A model is damaged or holds numbers that are not finite.
        StorageError: No space or no permission.
    """
    started = time.monotonic()
    with planned(root, output, progress) as plan:
        refuse_input(plan, path)
        said = [*notes, *share_report(root, plan.family), *plan.said]
        if path.exists() and not replace:
            _refuse_other(plan, path)
            return Merged(
                path=path, report=(*said, f"{path.name} is there already, made by this recipe"), written=False
            )
        run_to_file(plan, path, metadata_of(plan, label or LabelParams(), name=path.stem), progress=progress)
        said.append(
            f"{path.name}: {len(plan.tensors)} tensors, {plan.size_bytes / 2**20:,.1f} MiB in "
            f"{time.monotonic() - started:.1f} s"
        )
    return Merged(path=path, report=tuple(said), written=True)


def _refuse_other(plan: Plan, path: Path) -> None:
    wanted = recipe_hash(recipe_json(plan.root, plan.output), identities(plan.models))
    if made_by(read_header(path)) != wanted:
        raise InputError(
            f"{path.name} is there already and was not made by this recipe of these models; choose another name or "
            "switch 'replace' on"
        )


def dry_run(root: Node, path: Path, output: OutputParams, notes: Sequence[str] = ()) -> tuple[str, ...]:
    """What a merge would do: shares, repairs, tensors, disk, memory and time; nothing is written.

    Raises:
        InputError: The models do not fit, or the result is a difference.
        FormatError: A model is damaged.
        StorageError: A model cannot be read.
    """
    with planned(root, output) as plan:
        refuse_input(plan, path)
        merged = [tensor for tensor in plan.tensors if tensor.program is not None and tensor.program.steps]
        kept = len(plan.tensors) - len(merged)
        lines = [*notes, "DRY RUN: nothing is written", *share_report(root, plan.family), *plan.said]
        lines.append(
            f"{len(plan.tensors)} tensors: {len(merged)} are merged, {kept} come from one model or are counted"
        )
        lines += _examples(plan)
        moved = plan.read_bytes + plan.size_bytes
        lines.append(
            f"disk: {plan.read_bytes / 2**20:,.1f} MiB are read and {plan.size_bytes / 2**20:,.1f} MiB written to "
            f"{path.name}; {_free_words(path, plan.size_bytes)}"
        )
        lines.append(
            f"memory: about {peak_bytes(plan) / 2**20:,.0f} MiB; time: about {moved / ASSUMED_BYTES_PER_S:,.0f} s on a "
            f"disk of {ASSUMED_BYTES_PER_S / 2**20:,.0f} MiB per second"
        )
    return tuple(lines)


def _examples(plan: Plan) -> list[str]:
    """The methods at work, with a key of each."""
    seen: dict[str, str] = {}
    for tensor in plan.tensors:
        for step in tensor.program.steps if tensor.program is not None else ():
            seen.setdefault(step.method.title, tensor.key)
    return [f"  {title}, for example {key}" for title, key in list(seen.items())[:_SHOWN_KEYS]]


def _free_words(path: Path, needed_bytes: int) -> str:
    try:
        available_bytes = free_bytes(path)
    except StorageError as cause:
        return str(cause)
    enough = "enough" if available_bytes >= needed_bytes else "NOT ENOUGH"
    return f"{available_bytes / 2**20:,.0f} MiB are free, {enough}"
