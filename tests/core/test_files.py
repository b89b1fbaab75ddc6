import errno
import hashlib
import json
import os

import pytest

from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core import files
from lora_atelier.core.errors import FormatError, StorageError
from lora_atelier.core.files import (
    atomic_path,
    ensure_space,
    free_bytes,
    link_or_copy,
    link_or_copy_new,
    read_json,
    safe_name,
    sha256_file,
    write_bytes,
    write_json,
    write_text,
)
from lora_atelier.core.progress import Cancelled


def test_atomic_write_makes_parents_and_leaves_nothing_else(tmp_path):
    target = tmp_path / "a" / "b" / "file.bin"
    write_bytes(target, b"one")
    write_bytes(target, b"two")
    assert target.read_bytes() == b"two"
    assert os.listdir(target.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [RuntimeError("x"), Cancelled("x"), KeyboardInterrupt()])
def test_failure_keeps_the_old_file_and_removes_the_new(tmp_path, error):
    target = tmp_path / "file.txt"
    write_text(target, "old\n")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half", encoding="utf-8")
        raise error
    assert target.read_text(encoding="utf-8") == "old\n"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_failure_of_the_rename_keeps_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / "file.txt"
    write_text(target, "old")

    def refuse(source, destination):
        raise PermissionError(errno.EACCES, "Permission denied", str(source))

    monkeypatch.setattr(files.os, "replace", refuse)
    with pytest.raises(StorageError, match="another program holds the file open"):
        write_text(target, "new")
    assert target.read_text(encoding="utf-8") == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_disk_full_is_a_storage_error_that_says_so(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="disk is full"):
        write_text(tmp_path / "file.txt", "x")
    assert os.listdir(tmp_path) == []


def test_the_name_of_another_file_stays_in_its_own_error(tmp_path):
    missing = tmp_path / "missing"
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file.txt"):
        missing.read_bytes()


def test_a_block_that_writes_nothing_is_an_error(tmp_path):
    with pytest.raises(StorageError, match="nothing was written"), atomic_path(tmp_path / "file.txt"):
        pass


def test_a_parent_that_is_a_file(tmp_path):
    write_text(tmp_path / "file", "x")
    with pytest.raises(StorageError, match="could not make the folder"):
        write_text(tmp_path / "file" / "below", "x")


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "file").mkdir()
    with pytest.raises(StorageError, match="folder with that name"):
        write_text(tmp_path / "file", "x")


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    target = tmp_path / "step-1"
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        (temporary / "sub").mkdir(parents=True)
        raise RuntimeError
    assert os.listdir(tmp_path) == []
    with atomic_path(target) as temporary:
        (temporary / "sub").mkdir(parents=True)
        (temporary / "sub" / "file").write_bytes(b"x")
    assert (target / "sub" / "file").read_bytes() == b"x"
    assert os.listdir(tmp_path) == ["step-1"]


def test_long_names_do_not_make_the_temporary_name_too_long(tmp_path):
    write_text(tmp_path / ("x" * 250), "x")
    with pytest.raises(StorageError, match="name is too long"):
        write_text(tmp_path / ("x" * 300), "x")


def test_text_keeps_its_line_ends(tmp_path):
    write_text(tmp_path / "file", "a\nb\r\nä")
    assert (tmp_path / "file").read_bytes() == "a\nb\r\nä".encode()


def test_json(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"b": 1, "a": "ä"})
    assert path.read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "ä"\n}\n'
    assert read_json(path) == {"b": 1, "a": "ä"}
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([1]).encode())
    assert read_json(path) == [1]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100000])
def test_broken_json_is_a_format_error_that_names_the_file(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"file\.json"):
        read_json(path)


def test_missing_json(tmp_path):
    with pytest.raises(StorageError, match="could not read"):
        read_json(tmp_path / "file.json")


def test_sha256(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_BYTES", 10)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 95)
    progress = RecordingProgress()
    assert sha256_file(path, progress) == hashlib.sha256(b"x" * 95).hexdigest() == sha256_file(path)
    assert progress.updates[-1][:2] == (95, 95)
    with pytest.raises(Cancelled):
        sha256_file(path, CancelAfter(3))
    with pytest.raises(StorageError, match="could not read"):
        sha256_file(tmp_path / "missing")


def test_link_or_copy_twice(tmp_path):
    source, target = tmp_path / "source", tmp_path / "sub" / "target"
    write_bytes(source, b"one")
    link_or_copy(source, target)
    link_or_copy(source, target)
    assert target.read_bytes() == b"one"
    assert os.listdir(target.parent) == ["target"]
    write_bytes(source, b"two")
    assert target.read_bytes() == b"one"
    link_or_copy(source, target)
    assert target.read_bytes() == b"two"


def test_copies_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(files.os, "link", refuse)
    write_bytes(tmp_path / "source", b"one")
    link_or_copy(tmp_path / "source", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"one"
    with pytest.raises(StorageError, match="not a file"):
        link_or_copy(tmp_path / "missing", tmp_path / "target")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("plain name", "plain name"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("tab\tnew\nline\0nul", "tab_new_line_nul"),
        ("  . dots . ", "dots"),
        ("CON", "_CON"),
        ("aux.txt", "_aux.txt"),
        ("com\u00b9", "_com\u00b9"),
        ("console", "console"),
        ("...", "unnamed"),
        ("", "unnamed"),
        ("日本語", "日本語"),
        ("\ud800x", "?x".replace("?", "_")),
    ],
)
def test_safe_name(given, expected):
    assert safe_name(given) == expected


@pytest.mark.parametrize("char", ["x", "ä", "日", "\U0001f600", "."])
def test_safe_names_are_short_enough(char, tmp_path):
    name = safe_name("a" + char * 500, max_chars=200)
    assert len(name) <= 200
    assert len(name.encode()) <= 200
    (tmp_path / name).write_bytes(b"")


def test_space(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet") > 0
    ensure_space(tmp_path / "file", 1)
    with pytest.raises(StorageError, match="MiB are free"):
        ensure_space(tmp_path / "file", 2**62)


@pytest.mark.parametrize("has_links", [True, False])
def test_link_or_copy_new_never_replaces(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "no links here")))
    source, target = tmp_path / "source", tmp_path / "deep" / "target"
    source.write_bytes(b"new")
    link_or_copy_new(source, target)
    assert target.read_bytes() == b"new"
    source2 = tmp_path / "source2"
    source2.write_bytes(b"newer")
    with pytest.raises(FileExistsError):
        link_or_copy_new(source2, target)
    assert target.read_bytes() == b"new"
    assert sorted(path.name for path in target.parent.iterdir()) == ["target"]
