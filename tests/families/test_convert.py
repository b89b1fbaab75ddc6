import os
import pickle
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_atelier.core.errors import FormatError, InputError, MissingLibraryError, StorageError
from lora_atelier.core.tensors import read_tensors
from lora_atelier.families import _convert
from lora_atelier.families._convert import convert_checkpoint

WEIGHTS = {"model.a": torch.arange(6.0).reshape(2, 3), "model.b": torch.ones(2, dtype=torch.float16)}


class Bomb:
    """Makes a folder when it is unpickled: the harmless double of a checkpoint that runs code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapped", [True, False])
def test_tensors_keep_names_values_and_dtypes(tmp_path: Path, zipped: bool, wrapped: bool) -> None:
    source, target = tmp_path / "old.ckpt", tmp_path / "new.safetensors"
    data = {"state_dict": WEIGHTS, "global_step": 3, "hyper": {"lr": 0.1}} if wrapped else WEIGHTS
    torch.save(data, source, _use_new_zipfile_serialization=zipped)
    assert convert_checkpoint(source, target) == target
    tensors = read_tensors(target)
    assert tensors.keys() == WEIGHTS.keys()
    for key, value in WEIGHTS.items():
        assert tensors[key].dtype == value.dtype
        assert torch.equal(tensors[key], value)


def test_shared_and_transposed_tensors_are_written_whole(tmp_path: Path) -> None:
    shared = torch.arange(6.0).reshape(2, 3)
    torch.save({"a": shared, "b": shared, "c": shared.t()}, tmp_path / "old.pt")
    convert_checkpoint(tmp_path / "old.pt", tmp_path / "new.safetensors")
    tensors = read_tensors(tmp_path / "new.safetensors")
    assert torch.equal(tensors["b"], shared)
    assert torch.equal(tensors["c"], shared.t())


def test_leftovers_of_the_trainer_are_dropped_without_importing_it(tmp_path: Path) -> None:
    name = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(name)

    class ModelCheckpoint:
        def __init__(self) -> None:
            self.best = 0.5

    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    module.ModelCheckpoint = ModelCheckpoint  # type: ignore[attr-defined]
    parents = ["pytorch_lightning", "pytorch_lightning.callbacks"]
    sys.modules.update({parent: types.ModuleType(parent) for parent in parents}, **{name: module})
    try:
        torch.save(
            {"state_dict": WEIGHTS, "callbacks": {ModelCheckpoint: {"best": ModelCheckpoint()}}}, tmp_path / "o.ckpt"
        )
    finally:
        for entry in (name, *parents):
            sys.modules.pop(entry, None)
    convert_checkpoint(tmp_path / "o.ckpt", tmp_path / "n.safetensors")
    assert read_tensors(tmp_path / "n.safetensors").keys() == WEIGHTS.keys()
    assert "pytorch_lightning" not in sys.modules


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_the_file_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    source, mark = tmp_path / "evil.ckpt", tmp_path / "mark"
    torch.save({"state_dict": WEIGHTS, "x": Bomb(mark)}, source, _use_new_zipfile_serialization=zipped)
    with pytest.raises(FormatError, match=r"evil\.ckpt cannot be converted safely"):
        convert_checkpoint(source, tmp_path / "new.safetensors")
    assert not mark.exists()
    assert not (tmp_path / "new.safetensors").exists()


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "new.safetensors"
    torch.save({"state_dict": WEIGHTS}, tmp_path / "whole.ckpt")
    (tmp_path / "cut.ckpt").write_bytes((tmp_path / "whole.ckpt").read_bytes()[:300])
    (tmp_path / "empty.ckpt").write_bytes(b"")
    (tmp_path / "text.ckpt").write_bytes(b"hello world " * 50)
    (tmp_path / "plain.ckpt").write_bytes(pickle.dumps([1, 2, 3], protocol=2))
    torch.save({"step": 3}, tmp_path / "no_tensors.ckpt")
    torch.save([torch.zeros(2)], tmp_path / "list.ckpt")
    for name in ("cut", "empty", "text", "plain", "no_tensors", "list"):
        with pytest.raises(FormatError, match=name):
            convert_checkpoint(tmp_path / f"{name}.ckpt", target)
    with pytest.raises(StorageError, match="absent"):
        convert_checkpoint(tmp_path / "absent.ckpt", target)
    with pytest.raises(InputError, match=r"\.safetensors"):
        convert_checkpoint(tmp_path / "whole.ckpt", tmp_path / "new.ckpt")
    assert not target.exists()


@pytest.mark.parametrize("begin", [b"\x89PNG\r\n\x1a\n", b"<!doctype html>", b"PK\x03\x04cut short"])
def test_what_is_no_checkpoint_is_not_blamed_for_code(tmp_path: Path, begin: bytes) -> None:
    (tmp_path / "page.ckpt").write_bytes(begin + bytes(200))
    with pytest.raises(FormatError, match=r"page\.ckpt is not a PyTorch checkpoint, or is damaged"):
        convert_checkpoint(tmp_path / "page.ckpt", tmp_path / "new.safetensors")


def test_an_old_torch_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(WEIGHTS, tmp_path / "old.ckpt")
    for version, refused in (("2.9.1", True), ("2.9.1+cu128", True), ("2.10.0", False), ("3.0.0a1", False)):
        monkeypatch.setattr(_convert.torch, "__version__", version)
        if refused:
            with pytest.raises(MissingLibraryError, match="CVE-2026-24747"):
                convert_checkpoint(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
        else:
            convert_checkpoint(tmp_path / "old.ckpt", tmp_path / "new.safetensors")


def test_no_other_file_is_replaced_and_a_second_time_is_free(tmp_path: Path) -> None:
    source, target = tmp_path / "old.ckpt", tmp_path / "old.safetensors"
    torch.save(WEIGHTS, source)
    for content in (b"mine", b""):
        target.write_bytes(content)
        with pytest.raises(InputError, match=r"old\.safetensors is there already"):
            convert_checkpoint(source, target)
        assert target.read_bytes() == content
    target.unlink()
    convert_checkpoint(source, target)
    before = target.stat().st_mtime_ns
    assert convert_checkpoint(source, target) == target
    assert target.stat().st_mtime_ns == before
    torch.save({"model.a": torch.zeros(1)}, source)
    with pytest.raises(InputError, match="not made of this"):
        convert_checkpoint(source, target)


def test_a_full_disk_is_seen_before_the_file_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, needed_bytes: int) -> None:
        assert needed_bytes == (tmp_path / "old.ckpt").stat().st_size
        raise StorageError("full")

    (tmp_path / "old.ckpt").write_bytes(b"no checkpoint at all")
    monkeypatch.setattr(_convert, "ensure_space", refuse)
    with pytest.raises(StorageError, match="full"):
        convert_checkpoint(tmp_path / "old.ckpt", tmp_path / "new.safetensors")
