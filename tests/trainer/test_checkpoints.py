"""Checkpoints on disk: replacing one, and what a killed process leaves."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_atelier.core.errors import StorageError
from lora_atelier.trainer import checkpoints
from lora_atelier.trainer.checkpoints import (
    Checkpoint,
    State,
    list_checkpoints,
    load_state,
    remove_checkpoint,
    remove_half_written,
    save_checkpoint,
)


def save(folder: Path, value: float, *, kept: bool = False) -> Checkpoint:
    state = State(adapter={"a": torch.tensor([value])}, optimizer={"param_groups": [], "state": {}}, precision={})
    return save_checkpoint(folder, step=6, kept=kept, facts={}, state=state, write_lora=None)


def value_of(folder: Path) -> float:
    (checkpoint,) = list_checkpoints(folder)
    return float(load_state(checkpoint).adapter["a"])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 1.0)
    save(tmp_path, 2.0, kept=True)
    assert value_of(tmp_path) == 2.0
    assert names(tmp_path) == ["step-00000006"]


def test_the_old_checkpoint_stays_when_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1.0)

    def full(*_: Any) -> None:
        raise StorageError("the disk is full")

    for name in ("write_tensors", "write_json"):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, name, full)
            with pytest.raises(StorageError):
                save(tmp_path, 2.0, kept=True)
        assert value_of(tmp_path) == 1.0
        assert names(tmp_path) == ["step-00000006"]


@pytest.mark.parametrize("new_one_came", [True, False])
def test_killed_while_the_old_checkpoint_was_aside(tmp_path: Path, new_one_came: bool) -> None:
    old = save(tmp_path, 1.0)
    old.folder.rename(old.folder.with_name(".step-00000006.0123456789ab.aside.tmp"))
    if new_one_came:
        save(tmp_path, 2.0)
    remove_half_written(tmp_path)
    assert value_of(tmp_path) == (2.0 if new_one_came else 1.0)
    assert names(tmp_path) == ["step-00000006"]


def test_a_mapped_file_does_not_stop_the_cleaning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows refuses to delete a file that ComfyUI has mapped."""

    def refuse(path: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(13, "Access is denied", str(path))

    checkpoint = save(tmp_path, 1.0)
    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(PermissionError):
        remove_checkpoint(checkpoint)
    assert list_checkpoints(tmp_path) == []
    with pytest.raises(PermissionError):
        remove_checkpoint(save(tmp_path, 2.0))  # under a hidden name of its own
    remove_half_written(tmp_path)
    assert len(names(tmp_path)) == 2
    monkeypatch.undo()
    remove_half_written(tmp_path)
    assert names(tmp_path) == []
