"""Remembered folders and headers: what is read again, what is not, and that it makes no difference."""

import os
import struct
import zlib

import pytest
from PIL import Image

from atelier_tests.helpers.pictures import make_folder, save_picture
from atelier_tests.helpers.progress import CancelAfter
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset import folder_scan, headers, snapshots
from lora_atelier.dataset.headers import PictureFile, content_digests, file_key, quick_header
from lora_atelier.dataset.images import BadPicture, content_hash, read_header
from lora_atelier.dataset.scan import DatasetParams, open_folder


@pytest.fixture
def index(tmp_path_factory):
    with Index(tmp_path_factory.mktemp("index") / "index.sqlite") as opened:
        yield opened


@pytest.fixture
def counted(monkeypatch):
    read = []
    real = headers.quick_header

    def counting(path, size_bytes, **options):
        read.append(os.path.basename(path))
        return real(path, size_bytes, **options)

    monkeypatch.setattr(headers, "quick_header", counting)
    return read


def test_a_second_look_reads_nothing_and_sees_the_same(tmp_path, index, counted):
    make_folder(tmp_path / "2_a", {f"{n}.png": f"zwx, tag {n}" for n in range(12)})
    make_folder(tmp_path / "3_b", {"x.png": None, "y.png": ""})
    (tmp_path / "3_b" / "bad.png").write_bytes(b"no")
    first = open_folder(tmp_path, DatasetParams(), index=index)
    assert len(counted) == 15
    counted.clear()
    second = open_folder(tmp_path, DatasetParams(), index=index)
    assert counted == ["bad.png"]
    assert second.fingerprint() == first.fingerprint() == open_folder(tmp_path, DatasetParams()).fingerprint()
    assert second.summary() == first.summary()


def test_only_what_changed_is_read_again(tmp_path, index, counted):
    make_folder(tmp_path, {f"{n}.png": "one" for n in range(8)})
    open_folder(tmp_path, DatasetParams(), index=index)
    counted.clear()
    (tmp_path / "3.txt").write_text("edited, now")
    save_picture(tmp_path / "5.png", (128, 128))
    dataset = open_folder(tmp_path, DatasetParams(), index=index)
    assert counted == ["5.png"]
    assert dataset.caption(3) == "edited, now"
    assert dataset.width_px[5] == 128


def test_another_way_to_read_captions_is_another_memory(tmp_path, index):
    make_folder(tmp_path, {"1.png": "a b, c"})
    assert open_folder(tmp_path, DatasetParams(), index=index).tags.row(0) == ("a b", "c")
    assert open_folder(tmp_path, DatasetParams(separator="space"), index=index).tags.row(0) == ("a", "b", "c")


def test_a_damaged_memory_is_done_without(tmp_path, index):
    make_folder(tmp_path, {"1.png": "a"})
    open_folder(tmp_path, DatasetParams(), index=index)
    ((key, row),) = index.items(snapshots.SNAPSHOT_KIND)
    for wrong in (b"", b"{}\n", b"[1]\nxx", row[: len(row) // 2], row.replace(b"vocabulary", b"vocabularx")):
        index.put_many(snapshots.SNAPSHOT_KIND, [(key, wrong)])
        assert open_folder(tmp_path, DatasetParams(), index=index).caption(0) == "a"


def test_cancel_keeps_the_headers_that_were_read(tmp_path, index, counted, monkeypatch):
    monkeypatch.setattr(folder_scan, "FILES_AT_ONCE", 4)
    make_folder(tmp_path, {f"{n}.png": "x" for n in range(12)})
    with pytest.raises(Cancelled):
        open_folder(tmp_path, DatasetParams(), index=index, progress=CancelAfter(4))
    done = len(counted)
    assert 4 <= done < 12
    open_folder(tmp_path, DatasetParams(), index=index)
    assert len(counted) == 12


def test_a_repaired_picture_is_noticed_though_its_time_is_the_same(tmp_path, index):
    make_folder(tmp_path, {"1.png": "a", "2.png": "b"})
    good = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(b"x" * len(good))
    os.utime(tmp_path / "2.png", ns=(10**18, 10**18))
    assert len(open_folder(tmp_path, DatasetParams(), index=index)) == 1
    (tmp_path / "2.png").write_bytes(good)
    os.utime(tmp_path / "2.png", ns=(10**18, 10**18))
    assert len(open_folder(tmp_path, DatasetParams(), index=index)) == 2


def exif(orientation):
    data = Image.Exif()
    data[0x0112] = orientation
    return data


PICTURES = {
    "plain.png": ("RGB", {}),
    "grey.png": ("L", {}),
    "bits.png": ("1", {}),
    "palette.png": ("P", {}),
    "alpha.png": ("RGBA", {}),
    "deep.png": ("I;16", {}),
    "clear.png": ("P", {"transparency": 0}),
    "turned.png": ("RGB", {"exif": exif(6)}),
    "plain.jpg": ("RGB", {}),
    "grey.jpg": ("L", {}),
    "cmyk.jpg": ("CMYK", {}),
    "progressive.jpg": ("RGB", {"progressive": True}),
    "turned.jpg": ("RGB", {"exif": exif(8)}),
    "profile.jpg": ("RGB", {"icc_profile": b"x" * 3000}),
    "comment.jpg": ("RGB", {"comment": b"hello"}),
    "a.webp": ("RGB", {}),
    "turned.webp": ("RGB", {"exif": exif(6)}),
    "a.bmp": ("RGB", {}),
    "a.gif": ("P", {}),
    "a.tiff": ("RGB", {}),
    "a.avif": ("RGB", {}),
}


@pytest.mark.parametrize("name", PICTURES)
def test_the_quick_way_sees_what_the_careful_way_sees(tmp_path, name):
    mode, options = PICTURES[name]
    path = tmp_path / name
    Image.new(mode, (90, 40)).save(path, **options)
    careful = read_header(path)
    assert quick_header(path, path.stat().st_size) == careful
    assert careful.orientation == (6 if "turned" in name and "jpg" not in name else 8 if "turned" in name else 1)
    assert (careful.width_px, careful.height_px) == ((40, 90) if "turned" in name else (90, 40))


@pytest.mark.parametrize("name", ["plain.png", "plain.jpg"])
def test_a_file_without_its_end_takes_the_careful_way(tmp_path, name):
    path = tmp_path / name
    Image.effect_noise((300, 200), 90).save(path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(BadPicture, match="cut short"):
        quick_header(path, path.stat().st_size)


def test_exif_in_a_text_chunk_is_not_overlooked(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (90, 40)).save(path)
    data = path.read_bytes()
    text = b"tEXt" + b"Raw profile type exif\0" + b"junk"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    path.write_bytes(data[:33] + chunk + data[33:])
    assert headers._png(path.read_bytes(), path.read_bytes()) is None
    assert quick_header(path, path.stat().st_size).width_px == 90


def test_headers_survive_the_index():
    for header in (
        headers.PictureHeader(width_px=5000, height_px=7000, mode="RGB", has_alpha=False, orientation=6),
        headers.PictureHeader(width_px=8, height_px=9, mode="I;16", has_alpha=True),
    ):
        assert headers.unpacked(headers.packed(header)) == header
    assert headers.unpacked(b"short") is None


def test_content_digests_are_remembered(tmp_path, index, monkeypatch):
    make_folder(tmp_path, {"1.png": None, "2.png": None})
    files = [
        PictureFile(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(tmp_path.glob("*.png"))
    ]
    expected = [bytes.fromhex(content_hash(file.path)) for file in files]
    assert list(content_digests(files, index=index)) == expected
    assert index.get(headers.CONTENT_KIND, file_key(files[0])) == expected[0]
    monkeypatch.setattr(headers, "content_hash", lambda path: "ff" * 16)
    assert list(content_digests(files, index=index)) == expected
    assert list(content_digests(files)) == [b"\xff" * 16] * 2


def test_a_large_photo_is_ordinary(tmp_path):
    Image.new("RGB", (5000, 7000), (200, 10, 10)).save(tmp_path / "photo.jpg", quality=20)
    dataset = open_folder(tmp_path, DatasetParams())
    assert (dataset.width_px[0], dataset.height_px[0]) == (5000, 7000)


@pytest.mark.parametrize("slow_s", [-1.0, 1.0])
def test_many_files_are_asked_for_together_or_one_by_one(tmp_path, monkeypatch, slow_s):
    from lora_atelier.dataset import walk

    monkeypatch.setattr(walk, "_MANY_FILES", 8)
    monkeypatch.setattr(walk, "_FILES_AT_ONCE", 4)
    monkeypatch.setattr(walk, "_SLOW_S", slow_s)
    for number in range(40):
        (tmp_path / f"{number}.txt").write_text("x" * number)
    listing = walk.list_folder(tmp_path, "", walk.Guard(tmp_path))
    assert [(entry.name, entry.size_bytes) for entry in listing.files] == sorted((f"{n}.txt", n) for n in range(40))
