"""What both hosts share: the list of taggers, which a page asks for again and again."""

import os
from pathlib import Path

import pytest

from lora_atelier.nodes.host import shared
from lora_atelier.nodes.host.shared import tagger_entries


def add(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_taggers_are_found_by_folder_or_by_file(tmp_path: Path) -> None:
    for name in ("wd/model.onnx", "maker/other/model.onnx", "alone.onnx", ".git/hidden/x.onnx", "wd/notes.txt"):
        add(tmp_path / name)
    assert tagger_entries([tmp_path, tmp_path / "missing"]) == {
        "alone.onnx": tmp_path / "alone.onnx",
        "maker/other": tmp_path / "maker" / "other",
        "wd": tmp_path / "wd",
    }


def test_the_folder_is_walked_again_only_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(tmp_path / "wd" / "model.onnx")
    os.utime(tmp_path / "wd", ns=(1, 1))
    os.utime(tmp_path, ns=(1, 1))
    first = tagger_entries([tmp_path])
    with monkeypatch.context() as patch:
        patch.setattr(shared.os, "walk", None)
        assert tagger_entries([tmp_path]) == first
    add(tmp_path / "new" / "model.onnx")
    assert list(tagger_entries([tmp_path])) == ["new", "wd"]
    add(tmp_path / "wd" / "deeper" / "model.onnx")
    assert list(tagger_entries([tmp_path])) == ["new", "wd/deeper", "wd"]


def test_one_index_per_process_and_folder(tmp_path: Path) -> None:
    first = shared.open_index(tmp_path / "user")
    assert shared.open_index(tmp_path / "user") is first
    assert shared.open_index(tmp_path / "other") is not first
    assert first.path == tmp_path / "user" / "index.sqlite"
    first.put_many("kind", [(b"key", b"value")])
    assert shared.open_index(tmp_path / "user").get("kind", b"key") == b"value"


def test_without_a_usable_index_all_goes_on_and_it_is_told(tmp_path: Path) -> None:
    from atelier_tests.helpers.fake_host import FakeHost
    from atelier_tests.helpers.progress import RecordingProgress
    from lora_atelier.nodes._index import index_if_usable
    from lora_atelier.nodes.host import set_host

    (tmp_path / "user").write_bytes(b"a file where the folder should be")
    progress = RecordingProgress()
    set_host(FakeHost(tmp_path))
    try:
        assert index_if_usable(progress) is None
    finally:
        set_host(None)
    assert progress.lines[0].startswith("Nothing is remembered: the index ")
