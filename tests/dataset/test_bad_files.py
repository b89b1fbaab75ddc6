"""Bad files of every kind beside good ones: each is named with its reason, the good are used, nothing is changed."""

import errno
import hashlib
import json
import os
import struct
import subprocess
import sys
import tracemalloc
import unicodedata
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from PIL import Image

from atelier_tests.helpers.pictures import make_folder, png_header_only, save_picture
from lora_atelier.core import files
from lora_atelier.core.errors import StorageError
from lora_atelier.core.index import Index
from lora_atelier.dataset import folder_scan, snapshots
from lora_atelier.dataset.export import ExportParams, export_dataset
from lora_atelier.dataset.save import SaveParams, save_captions
from lora_atelier.dataset.scan import DatasetParams, open_folder

LINKS = hasattr(os, "symlink") and os.name != "nt"


def opened(folder, index=None, **params):
    return open_folder(folder, DatasetParams(**params), index=index)


def state(folder):
    """Content of every file, to see that nothing was changed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            small = path.stat().st_size < 10_000_000
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest() if small else path.stat().st_mtime_ns
    return found


def noise_png(path, *, damage):
    Image.effect_noise((200, 100), 80).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= damage
    path.write_bytes(data)


def gif_of(width_px, height_px):
    return b"GIF89a" + struct.pack("<HHBBB", width_px, height_px, 0, 0, 0) + b";"


def webp_claiming_more():
    return b"RIFF" + struct.pack("<I", 5000) + b"WEBPVP8 " + b"\0" * 40


def tiff_of(width_px, height_px):
    def entry(tag, kind, value):
        return struct.pack("<HHII", tag, kind, 1, value)

    entries = [entry(256, 4, width_px), entry(257, 4, height_px), entry(258, 3, 8), entry(259, 3, 1), entry(262, 3, 1)]
    entries += [entry(273, 4, 8), entry(277, 3, 1), entry(278, 4, height_px), entry(279, 4, 10)]
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + b"\0\0\0\0"


def png_text_bomb(path):
    """A PNG whose compressed text unpacks to 200 MB."""
    Image.new("RGB", (64, 64)).save(path)
    data = path.read_bytes()
    body = b"zTXt" + b"Comment\0\0" + zlib.compress(b"a" * 200_000_000, 9)
    path.write_bytes(
        data[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + data[33:]
    )


PICTURES = {
    "empty.jpg": (b"", "the file is empty (0 bytes)"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture of a known format"),
    "page.jpg": (b"<!DOCTYPE html><html>403</html>", "not a picture of a known format"),
    "print.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not a picture of a known format"),
    "wide.gif": (gif_of(65_535, 65_535), "not a picture of a known format, or its header is damaged"),
    "bomb.png": (png_header_only(30_000, 30_000), "30000 x 30000 px is more than the 178956970 pixels allowed"),
    "bomb.tiff": (tiff_of(60_000, 60_000), "it has more than the 178956970 pixels allowed"),
    "short.webp": (webp_claiming_more(), "is"),
    "nosize.png": (png_header_only(0, 0), "is"),
    "cut.jpg": (b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", "is"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_bad_pictures(tmp_path, name):
    content, reason = PICTURES[name]
    make_folder(tmp_path, {"good.png": "good"})
    (tmp_path / name).write_bytes(content)
    before = state(tmp_path)
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["good.png"]
    (skipped,) = dataset.skipped
    assert skipped.path == name
    assert reason in skipped.reason
    assert f"{name}: " in dataset.summary()
    assert state(tmp_path) == before


CAPTIONS = {
    "latin-1": ("a.txt", "caf\u00e9".encode("latin-1"), "'a.txt' is not UTF-8 text (byte 3); save it as UTF-8"),
    "shift_jis": ("a.txt", "\u732b\u8033".encode("shift_jis"), "'a.txt' is not UTF-8 text (byte 0)"),
    "gbk": ("a.caption", "\u4e2d\u6587".encode("gbk"), "'a.caption' is not UTF-8 text"),
    "utf-16 without a mark": ("a.txt", "cat".encode("utf-16-le"), "'a.txt' holds NUL characters"),
    "utf-32": ("a.txt", "cat".encode("utf-32"), "'a.txt' holds NUL characters"),
    "half a utf-16": ("a.txt", b"\xff\xfec", "'a.txt' is not UTF-8 text"),
    "zip": ("a.txt", b"PK\3\4" + bytes(range(256)), "'a.txt' "),
    "json cut": ("a.json", b'{"tags": ["cat', "'a.json' is not valid JSON (line 1: Unterminated string"),
    "json latin-1": ("a.json", b'{"tags": "caf\xe9"}', "'a.json' is not UTF-8 text"),
    "json nested": ("a.json", b"[" * 200_000, "'a.json' is nested too deeply for a picture's metadata"),
    "json of 5 MB": ("a.json", b'{"tags": "' + b"a" * 5_000_000 + b'"}', "'a.json' is larger than 4 MiB"),
    "json number bomb": ("a.json", b'{"tags": "cat", "score": ' + b"9" * 100_000 + b"}", "'a.json' is not usable JSON"),
    "gallery-dl empty": ("a.png.json", b"", "'a.png.json' is not valid JSON (line 1: Expecting value)"),
    "tags nul": ("a.tags", b"cat\0dog", "'a.tags' holds NUL characters"),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_bad_captions(tmp_path, case):
    if case == "json number bomb" and sys.version_info < (3, 10, 7):
        pytest.skip("numbers of any length were allowed")
    name, content, reason = CAPTIONS[case]
    make_folder(tmp_path, {"good.png": "good"})
    save_picture(tmp_path / "a.png")
    (tmp_path / name).write_bytes(content)
    before = state(tmp_path)
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["good.png"]
    (skipped,) = dataset.skipped
    assert skipped.path == "a.png"
    assert reason in skipped.reason
    assert state(tmp_path) == before


@pytest.mark.parametrize("name", ["a.txt", "a.json", "a.tags"])
def test_a_caption_bomb_is_not_read_whole(tmp_path, name):
    make_folder(tmp_path, {"good.png": "good"})
    save_picture(tmp_path / "a.png")
    with open(tmp_path / name, "wb") as file:
        file.truncate(500_000_000)
    opened(tmp_path)
    tracemalloc.start()
    dataset = opened(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "is larger than" in dataset.skipped[0].reason
    assert peak < 30_000_000
    report = save_captions(dataset.with_tags({0: ["new"]}, note="x"), SaveParams(), backup_dir=tmp_path / "b")
    assert (tmp_path / name).stat().st_size == 500_000_000
    assert report.counts["replaced (the old text is in the backup)"] == 1


def test_an_unpacking_bomb_inside_a_png(tmp_path):
    make_folder(tmp_path, {"good.png": "good"})
    png_text_bomb(tmp_path / "a.png")
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["good.png"]
    assert "is damaged" in dataset.skipped[0].reason


def test_damage_in_the_middle_is_found_when_asked_for(tmp_path):
    make_folder(tmp_path, {"good.png": "good"})
    noise_png(tmp_path / "a.png", damage=0xFF)
    assert len(opened(tmp_path)) == 2
    dataset = opened(tmp_path, verify_pictures=True)
    assert list(dataset.names) == ["good.png"]
    assert "damaged" in dataset.skipped[0].reason


NOTED = {
    "json of something else": ("a.json", b'{"shapes": [1, 2]}', "Without tags in them, and not used: 1 JSON file."),
    "json list": ("a.json", b"[1, 2, 3]", "Without tags in them, and not used: 1 JSON file."),
    "json null": ("a.json", b"null", "Without tags in them, and not used: 1 JSON file."),
    "metadata of numbers": ("meta_cap.json", b'{"a.png": 3}', "Not used: the metadata file meta_cap.json holds int"),
    "metadata list": ("metadata.json", b"[3]", "Not used: the metadata file metadata.json names no picture in entry 1"),
    "metadata cut": ("meta_lat.json", b'{"a.png": {', "Not used: the metadata file meta_lat.json is not valid JSON"),
    "metadata nested": ("meta_cap.json", b'{"a":' * 100_000, "Not used: the metadata file meta_cap.json is not valid"),
    "second line": ("data.jsonl", b'{"path": "x", "text": "y"}\n{"pa', "data.jsonl is not valid JSON in line 2"),
    "metadata latin-1": ("metadata.jsonl", b'{"path": "caf\xe9"}', "metadata.jsonl is not UTF-8 text"),
}


@pytest.mark.parametrize("case", NOTED)
def test_bad_metadata_is_noted_and_loses_no_picture(tmp_path, case):
    name, content, note = NOTED[case]
    make_folder(tmp_path, {"good.png": "good", "a.png": None})
    (tmp_path / name).write_bytes(content)
    before = state(tmp_path)
    dataset = opened(tmp_path)
    assert len(dataset) == 2
    assert any(note in line for line in dataset.notes), dataset.notes
    assert state(tmp_path) == before


def test_damaged_json_beside_a_caption_loses_nothing(tmp_path):
    make_folder(tmp_path, {"a.png": "zwx"})
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    dataset = opened(tmp_path)
    assert dataset.caption(0) == "zwx"
    assert "Damaged, and not used beside captions: 1 JSON file." in dataset.notes


def test_half_a_character_and_control_characters_in_json(tmp_path):
    save_picture(tmp_path / "a.png")
    (tmp_path / "a.json").write_text(r'{"tags": ["ca\ud800t", "two\nlines", "\u0000nul", ""]}', encoding="utf-8")
    dataset = opened(tmp_path)
    assert dataset.tags.row(0) == ("ca?t", "two lines", "nul")
    dataset.fingerprint()


def test_names_composed_and_decomposed_find_their_captions(tmp_path):
    name = "\u304c\u00e9"
    save_picture(tmp_path / f"{unicodedata.normalize('NFD', name)}.png")
    (tmp_path / f"{unicodedata.normalize('NFC', name)}.txt").write_text("found", encoding="utf-8")
    dataset = opened(tmp_path)
    assert dataset.caption(0) == "found"
    report = save_captions(dataset.with_tags({0: ["new"]}, note="x"), SaveParams(), backup_dir=tmp_path / "b")
    assert not report.refused
    assert opened(tmp_path).caption(0) == "new"


def test_full_width_names_are_names_of_their_own(tmp_path):
    make_folder(tmp_path, {"\uff21.png": "wide", "A.png": "narrow"})
    assert sorted(opened(tmp_path).caption(row) for row in range(2)) == ["narrow", "wide"]


def test_folders_nested_too_deeply_are_named(tmp_path):
    make_folder(tmp_path, {"good.png": "good"})
    deep = tmp_path.joinpath(*["d"] * 70)
    make_folder(deep, {"lost.png": "x"})
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["good.png"]
    assert "sub-folders deeper than 64 are not followed" in dataset.skipped[0].reason


@pytest.mark.skipif(not LINKS, reason="needs symbolic links")
def test_site_metadata_behind_a_link_out_is_not_read(tmp_path):
    root = make_folder(tmp_path / "root", {"a.png": None, "good.png": "good"})
    (tmp_path / "secret.json").write_text('{"tags": "secret"}')
    (root / "a.json").symlink_to(tmp_path / "secret.json")
    (root / "meta_cap.json").symlink_to(tmp_path / "secret.json")
    dataset = opened(root)
    assert "secret" not in dataset.tags.vocabulary
    assert list(dataset.names) == ["good.png"]


def test_a_file_that_goes_away_while_it_is_read(tmp_path, monkeypatch):
    make_folder(tmp_path, {"a.png": "a", "b.png": "b", "c.png": "c"})
    real = folder_scan.read_headers

    def vanish(files, **options):
        (tmp_path / "a.png").unlink(missing_ok=True)
        (tmp_path / "b.txt").unlink(missing_ok=True)
        return real(files, **options)

    monkeypatch.setattr(folder_scan, "read_headers", vanish)
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["c.png"]
    assert [entry.reason for entry in dataset.skipped] == [
        "the file is gone",
        "its caption file 'b.txt' cannot be read: No such file or directory",
    ]


def test_a_damaged_index_is_moved_aside_and_the_scan_goes_on(tmp_path):
    make_folder(tmp_path / "set", {"a.png": "a"})
    (tmp_path / "index.sqlite").write_bytes(b"no database at all" * 100)
    said = []
    with Index(tmp_path / "index.sqlite", status=said.append) as index:
        assert len(opened(tmp_path / "set", index)) == 1
    assert "was damaged" in said[0]
    assert any(".damaged-" in path.name for path in tmp_path.iterdir())


def test_two_threads_and_one_index(tmp_path):
    make_folder(tmp_path / "set", {f"{number}.png": f"tag {number}" for number in range(80)})
    with Index(tmp_path / "index.sqlite") as index, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: opened(tmp_path / "set", index).fingerprint(), range(8)))
    assert len(set(found)) == 1


CHILD = """
import sys
from pathlib import Path
from lora_atelier.core.index import Index
from lora_atelier.dataset.scan import DatasetParams, open_folder
with Index(Path(sys.argv[2])) as index:
    print(open_folder(sys.argv[1], DatasetParams(), index=index).fingerprint())
"""


def test_two_processes_and_one_index(tmp_path):
    make_folder(tmp_path / "set", {f"{number}.png": f"tag {number}" for number in range(40)})
    command = [sys.executable, "-c", CHILD, str(tmp_path / "set"), str(tmp_path / "index.sqlite")]
    children = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = {child.communicate(timeout=120)[0].strip() for child in children}
    assert found == {opened(tmp_path / "set").fingerprint()}


def test_a_full_disk_while_captions_are_saved_loses_none(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "set", {f"{number}.png": f"old {number}" for number in range(4)})
    dataset = opened(folder)
    dataset = dataset.with_tags({row: ["new"] for row in range(4)}, note="new")
    real, calls = files._replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "no space")
        real(source, target)

    monkeypatch.setattr(files, "_replace", full)
    with pytest.raises(StorageError, match=r"could not write .*1\.txt: the disk is full; free some space"):
        save_captions(dataset, SaveParams(), backup_dir=tmp_path / "backups")
    texts = [(folder / f"{number}.txt").read_text() for number in range(4)]
    assert texts == ["new\n", "old 1", "old 2", "old 3"]
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith((".tmp", ".part"))]
    assert len(list((tmp_path / "backups").iterdir())) == 1


def test_a_full_disk_while_a_set_is_exported_leaves_nothing(tmp_path, monkeypatch):
    folder = make_folder(tmp_path / "set", {"1.png": "one", "2.png": "two"})
    before = state(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(files, "_replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        export_dataset(opened(folder), tmp_path / "out", ExportParams())
    assert state(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_remembered_folder_of_another_version_is_read_anew(tmp_path):
    make_folder(tmp_path / "set", {"a.png": "a"})
    with Index(tmp_path / "index.sqlite") as index:
        opened(tmp_path / "set", index)
        ((key, row),) = index.items(snapshots.SNAPSHOT_KIND)
        place = row.index(b"\n", 16)
        body = json.dumps({"state": json.loads(row[16:place])["state"] + "x"}).encode() + b"\n"
        index.put_many(snapshots.SNAPSHOT_KIND, [(key, hashlib.blake2b(body, digest_size=16).digest() + body)])
        assert opened(tmp_path / "set", index).caption(0) == "a"
