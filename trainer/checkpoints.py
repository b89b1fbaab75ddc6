"""Checkpoints: folders that appear whole or not at all, and hold all that an exact resume needs."""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.errors import AtelierError
from ..core.files import atomic_path, read_json, write_json
from ..core.tensors import read_tensors, write_tensors
from ._state_codec import give_tensors, take_tensors

LORA_FILE = "lora.safetensors"
STATE_FILE = "state.safetensors"
FACTS_FILE = "state.json"

_ADAPTER = "adapter/"
_OPTIMIZER = "optimizer/"
_PRECISION = "precision/"
_AVERAGE = "average/"
_ASIDE = ".aside.tmp"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint on disk.

    Attributes:
        folder: where it lies.
        step: steps done.
        kept: made for the user (and counted by keep_last); the others are only there to go on from.
        facts: everything in its ``state.json``.
    """

    folder: Path
    step: int
    kept: bool
    facts: Mapping[str, Any]

    @property
    def lora_path(self) -> Path | None:
        """The LoRA file, or None when the checkpoint has none."""
        path = self.folder / LORA_FILE
        return path if path.is_file() else None


@dataclass(frozen=True, kw_only=True)
class State:
    """What an exact resume needs.

    Attributes:
        adapter: the trained tensors.
        optimizer: the optimizer's ``state_dict``.
        precision: the state of the loss scale, empty except for fp16.
        average: the moving average of the adapter, empty when it is off.
    """

    adapter: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    precision: Mapping[str, torch.Tensor]
    average: Mapping[str, torch.Tensor] = field(default_factory=dict)


def checkpoint_folder(run_folder: Path, step: int) -> Path:
    """Returns ``checkpoints/step-00000500`` of a run."""
    return run_folder / "checkpoints" / f"step-{step:08d}"


def save_checkpoint(
    run_folder: Path,
    *,
    step: int,
    kept: bool,
    facts: Mapping[str, Any],
    state: State,
    write_lora: Callable[[Path], None] | None,
) -> Checkpoint:
    """Writes a checkpoint to a temporary folder, syncs it and renames it.

    An older checkpoint of the same step is only removed once the new one is whole.

    Args:
        run_folder: of the run.
        step: steps done.
        kept: see Checkpoint.
        facts: plain JSON values to store beside the state.
        state: what is to be resumed.
        write_lora: writes the LoRA file to a path, or None to leave it out.

    Raises:
        StorageError: the disk is full or cannot be written; no half checkpoint is left.
    """
    target = checkpoint_folder(run_folder, step)
    tensors = {f"{_ADAPTER}{name}": value for name, value in state.adapter.items()}
    tensors.update({f"{_PRECISION}{name}": value for name, value in state.precision.items()})
    tensors.update({f"{_AVERAGE}{name}": value for name, value in state.average.items()})
    plain_optimizer = take_tensors(state.optimizer, tensors, _OPTIMIZER)
    said = {**facts, "step": step, "kept": kept, "optimizer": plain_optimizer}
    aside = target.with_name(f".{target.name}.{secrets.token_hex(6)}{_ASIDE}")
    try:
        with atomic_path(target) as folder:
            folder.mkdir(parents=True)
            write_tensors(folder / STATE_FILE, {name: value.detach().cpu() for name, value in tensors.items()}, {})
            if write_lora is not None:
                write_lora(folder / LORA_FILE)
            write_json(folder / FACTS_FILE, said)
            if target.exists():
                target.rename(aside)
    finally:
        _put_back_or_remove(aside, target)
    return Checkpoint(folder=target, step=step, kept=kept, facts=said)


def load_state(checkpoint: Checkpoint) -> State:
    """Reads what ``save_checkpoint`` wrote.

    Raises:
        FormatError: a file is damaged.
    """
    tensors = read_tensors(checkpoint.folder / STATE_FILE)

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    optimizer = give_tensors(checkpoint.facts["optimizer"], tensors, _OPTIMIZER)
    return State(adapter=named(_ADAPTER), optimizer=optimizer, precision=named(_PRECISION), average=named(_AVERAGE))


def list_checkpoints(run_folder: Path, tell: Callable[[str], None] | None = None) -> list[Checkpoint]:
    """Returns the whole checkpoints of a run by rising step; half-written and damaged ones are not seen.

    Args:
        run_folder: of the run.
        tell: is told of damaged ones.
    """
    found: list[Checkpoint] = []
    for folder in sorted((run_folder / "checkpoints").glob("step-*")):
        if not ((folder / FACTS_FILE).is_file() and (folder / STATE_FILE).is_file()):
            continue
        try:
            facts = read_json(folder / FACTS_FILE)
            found.append(Checkpoint(folder=folder, step=int(facts["step"]), kept=bool(facts["kept"]), facts=facts))
        except (AtelierError, KeyError, TypeError, ValueError) as damage:
            if tell is not None:
                tell(f"The checkpoint {folder.name} is damaged and passed over: {damage}")
    return found


def latest_readable(run_folder: Path, tell: Callable[[str], None]) -> tuple[Checkpoint, State] | None:
    """Returns the last checkpoint that can be read, with its state, or None.

    Args:
        run_folder: of the run.
        tell: is told of damaged ones that are passed over.
    """
    for checkpoint in reversed(list_checkpoints(run_folder, tell)):
        try:
            return checkpoint, load_state(checkpoint)
        except (AtelierError, KeyError, TypeError, ValueError, AttributeError) as damage:
            tell(f"The checkpoint {checkpoint.folder.name} is damaged and passed over: {damage}")
    return None


def remove_half_written(run_folder: Path) -> None:
    """Removes what a killed process left; only the process that holds the run's lock may call it."""
    for folder in (run_folder, run_folder / "checkpoints"):
        for left in folder.glob(".*.tmp"):
            if left.name.endswith(_ASIDE):
                _put_back_or_remove(left, left.with_name(left.name[1:].partition(".")[0]))
                continue
            # Windows: a file in it may be mapped by another process; it goes the next time.
            with contextlib.suppress(OSError):
                _remove_tree(left)


def remove_checkpoint(checkpoint: Checkpoint) -> None:
    """Removes a checkpoint; it is renamed first, so that no half of it is ever taken for a whole."""
    _remove_tree(checkpoint.folder)


def _put_back_or_remove(aside: Path, target: Path) -> None:
    """Deletes a checkpoint that was put aside for a new one, or puts it back where the new one did not come."""
    if aside.exists():
        # Windows: a file in it may be mapped by another process; the next start of the run tries again.
        with contextlib.suppress(OSError):
            if target.exists():
                shutil.rmtree(aside)
            else:
                aside.rename(target)


def _remove_tree(path: Path) -> None:
    if path.is_file():
        path.unlink()
        return
    hidden = path
    if not path.name.startswith("."):
        hidden = path.rename(path.with_name(f".{path.name}.{secrets.token_hex(6)}.old.tmp"))
    shutil.rmtree(hidden)
