"""Content hashes over runs."""

import shutil
from pathlib import Path

import pytest

from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from atelier_tests.helpers.training import open_pictures
from lora_atelier.core.files import sha256_file
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import open_base
from lora_atelier.trainer import caches
from lora_atelier.trainer.caches import ContentIndex


def index_in(folder: Path) -> ContentIndex:
    return ContentIndex(Index(folder / "index.sqlite"))


def test_contents_are_read_once(tmp_path: Path, pictures: Path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "mine")
    first, second = RecordingProgress(), RecordingProgress()
    hashes = index_in(tmp_path / "c").contents(open_pictures(folder), first).hashes
    assert index_in(tmp_path / "c").contents(open_pictures(folder), second).hashes == hashes
    assert len(first.updates) == 5
    assert second.updates == []
    shutil.copyfile(folder / "2_ring" / "01.png", folder / "2_ring" / "03.png")
    changed = index_in(tmp_path / "c").contents(open_pictures(folder), second).hashes
    assert changed[3] == hashes[1] != hashes[3]


def test_an_index_that_cannot_be_used_is_told_and_done_without(tmp_path: Path, dataset: Dataset) -> None:
    progress = RecordingProgress()
    closed = Index(tmp_path / "index.sqlite")
    index = ContentIndex(closed)
    closed.close()
    (tmp_path / "index.sqlite").unlink()
    (tmp_path / "index.sqlite").mkdir()
    expected = index_in(tmp_path / "good").contents(dataset, SilentProgress()).hashes
    assert index.contents(dataset, progress).hashes == expected
    assert ContentIndex(None).contents(dataset, progress).hashes == expected
    (line,) = progress.lines
    assert line.startswith("Hashes are not remembered: the index ")
    with caches.own_index(tmp_path, progress) as own:
        assert own is None
    assert progress.lines[1].startswith("Hashes are not remembered: the index ")


def test_cancel_while_reading_keeps_the_hashes(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(Cancelled):
        index_in(tmp_path).contents(dataset, CancelAfter(4))
    progress = RecordingProgress()
    index_in(tmp_path).contents(dataset, progress)
    assert [done for done, _, _ in progress.updates] == [3, 4]


def test_hashes_are_remembered_on_the_way(tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caches, "REMEMBER_EVERY_FILES", 2)
    seen: list[int] = []

    class Watcher(SilentProgress):
        def update(self, done: int, total: int, text: str = "") -> None:
            seen.append(index.count(caches.CONTENT_KIND))

    index = Index(tmp_path / "index.sqlite")
    ContentIndex(index).contents(dataset, Watcher())
    assert seen == [0, 0, 2, 2, 4]


def test_the_hash_of_a_base_outlasts_the_process(
    tmp_path: Path, tiny_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = open_base(tiny_base, name="tiny")
    expected = index_in(tmp_path).base_hash(base, SilentProgress())
    assert expected == sha256_file(tiny_base)
    monkeypatch.setattr(caches, "base_hash", lambda *_: "ab" * 32)
    assert index_in(tmp_path).base_hash(base, SilentProgress()) == expected
    assert index_in(tmp_path / "other").base_hash(base, SilentProgress()) == "ab" * 32
