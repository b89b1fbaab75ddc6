"""The ComfyUI host over made-up ComfyUI modules: names, folders, progress, cancel, training mode."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lora_atelier.core.errors import AtelierError
from lora_atelier.nodes.host import PICO_NAME, PICO_XL_NAME
from lora_atelier.nodes.host.comfy import ComfyHost, ComfyProgress


class Recorder:
    """What the made-up ComfyUI was told."""

    def __init__(self) -> None:
        self.said: list[Any] = []


class ProgressBar:
    recorder = Recorder()

    def __init__(self, total: int) -> None:
        self.total = total

    def update_absolute(self, value: int, total: int | None = None, preview: Any = None) -> None:
        self.recorder.said.append((value, total, preview))


def module(name: str, monkeypatch: pytest.MonkeyPatch, **members: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    for key, value in members.items():
        setattr(made, key, value)
    monkeypatch.setitem(sys.modules, name, made)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, made)
    return made


@pytest.fixture
def comfy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Modules as old as 0.3.40, with files on disk; `state` can be changed by a test."""
    state = types.SimpleNamespace(cancel=None, unloaded=0, texts=[], base=tmp_path)
    ProgressBar.recorder = Recorder()
    for name in ("models/checkpoints", "models/loras/sub", "models/taggers/wd", "input", "output", "temp", "user"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "models/taggers/wd/model.onnx").write_bytes(b"")
    (tmp_path / "models/loras/sub/one.safetensors").write_bytes(b"")
    names = {
        "checkpoints": ([str(tmp_path / "models/checkpoints")], {".safetensors", ".ckpt"}),
        "loras": ([str(tmp_path / "models/loras")], {".safetensors"}),
    }
    files = {"checkpoints": ["a.safetensors", "old.ckpt"], "loras": ["sub\\one.safetensors"]}

    def add_model_folder_path(kind: str, path: str, is_default: bool = False) -> None:
        names.setdefault(kind, ([], set()))[0].append(path)

    module(
        "folder_paths",
        monkeypatch,
        base_path=str(tmp_path),
        models_dir=str(tmp_path / "models"),
        folder_names_and_paths=names,
        add_model_folder_path=add_model_folder_path,
        get_filename_list=lambda kind: files[kind],
        get_full_path_or_raise=lambda kind, name: str(Path(names[kind][0][0]) / name),
        get_input_directory=lambda: str(tmp_path / "input"),
        get_output_directory=lambda: str(tmp_path / "output"),
        get_temp_directory=lambda: str(tmp_path / "temp"),
        get_user_directory=lambda: str(tmp_path / "user"),
    )

    def throw_exception_if_processing_interrupted() -> None:
        if state.cancel is not None:
            raise state.cancel

    def unload_all_models() -> None:
        state.unloaded += 1

    module("comfy", monkeypatch, __path__=[str(tmp_path / "comfy")])
    module("comfy.utils", monkeypatch, ProgressBar=ProgressBar)
    state.management = module(
        "comfy.model_management",
        monkeypatch,
        throw_exception_if_processing_interrupted=throw_exception_if_processing_interrupted,
        unload_all_models=unload_all_models,
        soft_empty_cache=lambda: None,
        get_torch_device=lambda: torch.device("cpu"),
    )
    module("comfy.cli_args", monkeypatch, args=types.SimpleNamespace(disable_metadata=True))
    server = types.SimpleNamespace(
        last_node_id="7", send_progress_text=lambda text, node: state.texts.append((text, node))
    )
    module("server", monkeypatch, PromptServer=types.SimpleNamespace(instance=server))
    monkeypatch.setitem(sys.modules, "comfy_execution", None)
    return state


def test_names_and_paths(comfy: types.SimpleNamespace) -> None:
    host = ComfyHost()
    assert host.checkpoint_names() == ["a.safetensors", PICO_NAME, PICO_XL_NAME]
    assert host.checkpoint_path("a.safetensors") == comfy.base / "models/checkpoints/a.safetensors"
    assert host.lora_names() == ["sub/one.safetensors"]
    assert host.lora_path("sub\\one.safetensors").name == "one.safetensors"
    assert host.tagger_names() == ["wd", PICO_NAME]
    assert host.tagger_path("wd") == comfy.base / "models/taggers/wd"
    assert host.detector_names() == [PICO_NAME]
    assert host.loras_dir() == comfy.base / "models/loras"
    assert host.metadata_disabled() is True
    for find, name in ((host.checkpoint_path, "old.ckpt"), (host.lora_path, "../x"), (host.tagger_path, "wb")):
        with pytest.raises(AtelierError, match="unknown"):
            find(name)


def test_folders_of_old_and_new_versions(comfy: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    host = ComfyHost()
    assert host.user_dir() == comfy.base / "user/__atelier"
    assert host.roots().folders["datasets"] == (comfy.base / "datasets",)
    folder_paths: Any = sys.modules["folder_paths"]
    monkeypatch.setattr(folder_paths, "get_datasets_directory", lambda: str(comfy.base / "data"), raising=False)
    monkeypatch.setattr(
        folder_paths, "get_system_user_directory", lambda name: str(comfy.base / f"user/__{name}"), raising=False
    )
    assert host.roots().folders["datasets"] == (comfy.base / "data",)
    assert host.user_dir() == comfy.base / "user/__atelier"


def test_the_owner_adds_folders_in_the_settings_file(comfy: types.SimpleNamespace) -> None:
    host = ComfyHost()
    own = comfy.base / "elsewhere"
    own.mkdir()
    host.user_dir().mkdir()
    settings = host.user_dir() / "settings.json"
    settings.write_text(json.dumps({"roots": [str(own), str(comfy.base / "absent")]}), encoding="utf-8")
    assert host.roots().folders["extra"] == (own,)
    assert host.roots().resolve(str(own), ("input", "extra")) == own.resolve()
    for text in ("[]", '{"roots": "x"}', "nonsense"):
        settings.write_text(text, encoding="utf-8")
        with pytest.raises(AtelierError, match="settings"):
            host.roots()


class OldInterrupt(Exception):
    pass


class NewInterrupt(BaseException):
    pass


@pytest.mark.parametrize("interrupt", [OldInterrupt(), NewInterrupt()])
def test_every_update_looks_for_cancel(comfy: types.SimpleNamespace, interrupt: BaseException) -> None:
    progress = ComfyProgress(10)
    progress.update(1, 10)
    progress.check()
    comfy.cancel = interrupt
    for call in (progress.check, lambda: progress.update(2, 10)):
        with pytest.raises(type(interrupt)) as raised:
            call()
        assert raised.value is interrupt


def test_bar_text_and_preview(comfy: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = ComfyProgress()
    for step in range(50):
        progress.update(step, 100, f"step {step}")
    progress.update(100, 100, "done")
    assert len(comfy.texts) < 10, "the text is sent a few times a second, not at every step"
    assert comfy.texts[-1] == ("done", "7")
    progress.preview(Image.new("RGBA", (4, 4)))
    value, total, preview = ProgressBar.recorder.said[-1]
    assert (value, total, preview[0], preview[1].mode) == (100, 100, "JPEG", "RGB")
    monkeypatch.delitem(sys.modules, "server")
    ComfyProgress().status("nobody listens")


@pytest.mark.parametrize("has_flag", [False, True])
@pytest.mark.parametrize("failure", [None, OldInterrupt(), NewInterrupt()])
def test_training_mode(comfy: types.SimpleNamespace, has_flag: bool, failure: BaseException | None) -> None:
    if has_flag:
        comfy.management.in_training = False
    host = ComfyHost()

    def train() -> None:
        with host.training():
            assert not torch.is_inference_mode_enabled()
            assert torch.is_grad_enabled()
            assert comfy.unloaded == 1
            assert getattr(comfy.management, "in_training", True) is True
            weight = torch.ones(2, requires_grad=True)
            (weight * 3).sum().backward()
            assert weight.grad is not None
            if failure is not None:
                raise failure

    with torch.inference_mode():
        if failure is None:
            train()
        else:
            with pytest.raises(type(failure)) as raised:
                train()
            assert raised.value is failure
        assert torch.is_inference_mode_enabled()
    assert getattr(comfy.management, "in_training", False) is False
    assert hasattr(comfy.management, "in_training") == has_flag
