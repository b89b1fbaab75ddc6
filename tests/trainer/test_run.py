"""A run's folder when other processes are at work too, and disks that cannot lock."""

import errno
from pathlib import Path
from typing import Any

import pytest

from lora_atelier.core.errors import StorageError
from lora_atelier.trainer import _lock, run
from lora_atelier.trainer.run import check_writable, new_run


def test_two_processes_make_a_run_of_one_name_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json = run.write_json

    def other_comes_first(path: Path, value: Any) -> None:
        write_json(path, value)
        other = run.runs_folder(tmp_path) / "tiny-01234567"
        if not other.exists():
            other.mkdir()
            (other / "manifest.json").write_text("{}", encoding="utf-8")

    monkeypatch.setattr(run, "write_json", other_comes_first)
    made = new_run(tmp_path, name="tiny", key="0123456789", manifest={})
    assert made.name == "tiny-01234567-2"
    assert sorted(path.name for path in made.parent.iterdir()) == ["tiny-01234567", "tiny-01234567-2"]


def test_two_processes_test_a_folder_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = Path.unlink

    def other_was_faster(path: Path, missing_ok: bool = False) -> None:
        if path.name == ".atelier-write-test":
            unlink(path)
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", other_was_faster)
    check_writable(tmp_path, "output")


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EAGAIN, "trained by another process"), (errno.ENOLCK, "cannot be locked")]
)
def test_a_lock_that_is_held_and_one_that_is_not_possible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(_: Any) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(_lock, "_take", refuse)
    with pytest.raises(StorageError, match=words), _lock.locked(tmp_path):
        pass
