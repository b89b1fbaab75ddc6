"""Each kind of bad input is named with its reason; what is good is still used, and nothing left is one clear error."""

import os
import socket

import pytest

from atelier_tests.helpers.pictures import make_folder, png_header_only, save_picture
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.scan import DatasetParams, fingerprint_folder, open_folder

LINKS = hasattr(os, "symlink") and os.name != "nt"
BROKEN_PICTURES = {
    "zero.png": (b"", "the file is empty (0 bytes)"),
    "text.jpg": (b"not a picture at all", "it is not a picture of a known format, or its header is damaged"),
    "thin.png": (png_header_only(1, 10_000), "1 x 10000 px is thinner than 1:16; crop it first"),
    "tiny.png": (png_header_only(4, 4), "4 x 4 px is smaller than 8 px"),
    "bomb.png": (
        png_header_only(60_000, 60_000),
        "60000 x 60000 px is more than the 178956970 pixels allowed; scale it down first",
    ),
    "cut.png": (png_header_only(640, 480)[:60], "the file is cut short (truncated)"),
}
BROKEN_CAPTIONS = {
    "latin": (b"caf\xe9, zwx", "its caption file 'latin.txt' is not UTF-8 text (byte 3); save it as UTF-8"),
    "nul": (b"zwx\0\0", "its caption file 'nul.txt' holds NUL characters; save it as UTF-8 text"),
    "huge": (b"a, " * 200_000, "its caption file 'huge.txt' is larger than 256 KiB; a caption is a line of text"),
    "half16": (b"\xff\xfea\0b", "its caption file 'half16.txt' is not UTF-8 text (byte 4); save it as UTF-8"),
}


def opened(folder, **options):
    return open_folder(folder, DatasetParams(), **options)


def reasons(dataset):
    return {entry.path: entry.reason for entry in dataset.skipped}


@pytest.mark.parametrize("name", BROKEN_PICTURES)
def test_a_broken_picture_is_left_out(tmp_path, name):
    content, reason = BROKEN_PICTURES[name]
    make_folder(tmp_path, {"good.png": "good"})
    (tmp_path / name).write_bytes(content)
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["good.png"]
    assert reasons(dataset) == {name: reason}


@pytest.mark.parametrize("name", BROKEN_CAPTIONS)
def test_a_picture_with_a_broken_caption_is_left_out(tmp_path, name):
    content, reason = BROKEN_CAPTIONS[name]
    make_folder(tmp_path, {"good.png": "good"})
    save_picture(tmp_path / f"{name}.png")
    (tmp_path / f"{name}.txt").write_bytes(content)
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["good.png"]
    assert reasons(dataset) == {f"{name}.png": reason}


def test_a_caption_that_is_a_folder_leaves_its_picture_out(tmp_path):
    make_folder(tmp_path, {"good.png": "good", "bad.png": None})
    (tmp_path / "bad.txt").mkdir()
    assert reasons(opened(tmp_path)) == {"bad.png": "its caption file 'bad.txt' is a folder; rename it"}


def test_a_folder_with_a_picture_name_is_only_a_folder(tmp_path):
    make_folder(tmp_path / "folder.png", {"1.png": "inside"})
    assert list(opened(tmp_path).names) == ["folder.png/1.png"]


@pytest.mark.skipif(not LINKS, reason="needs symbolic links")
def test_links_out_of_the_folder_are_refused_unless_allowed(tmp_path):
    outside = make_folder(tmp_path / "outside", {"secret.png": "secret"})
    root = make_folder(tmp_path / "root", {"good.png": "good"})
    (root / "link.png").symlink_to(outside / "secret.png")
    (root / "linked").symlink_to(outside, target_is_directory=True)
    (root / "nowhere.png").symlink_to(tmp_path / "missing.png")
    dataset = opened(root)
    assert list(dataset.names) == ["good.png"]
    found = reasons(dataset)
    assert found["link.png"] == "it is a link that leads out of the data set folder; copy the file instead"
    assert found["linked/"] == "it is a link that leads out of the data set folder; copy the folder instead"
    assert found["nowhere.png"] == "it is a link that leads nowhere"
    allowed = opened(root, allowed=lambda path: path.is_relative_to(outside.resolve()))
    assert list(allowed.names) == ["good.png", "link.png", "linked/secret.png"]
    before = fingerprint_folder(root), fingerprint_folder(root, allowed=lambda path: True)
    os.utime(outside / "secret.png", ns=(10**18, 10**18))
    assert fingerprint_folder(root) == before[0]
    assert fingerprint_folder(root, allowed=lambda path: True) != before[1]


@pytest.mark.skipif(not LINKS, reason="needs symbolic links")
def test_a_caption_link_out_of_the_folder_is_not_read(tmp_path):
    root = make_folder(tmp_path / "root", {"1.png": None, "2.png": "two"})
    (tmp_path / "secret.txt").write_text("the secret")
    (root / "1.txt").symlink_to(tmp_path / "secret.txt")
    dataset = opened(root)
    assert "the secret" not in dataset.tags.vocabulary
    assert list(dataset.names) == ["2.png"]
    assert "leads out of the data set folder" in reasons(dataset)["1.png"]


@pytest.mark.skipif(not LINKS, reason="needs symbolic links")
def test_a_link_in_a_circle_ends(tmp_path):
    root = make_folder(tmp_path / "root", {"1.png": "x"})
    (root / "again").symlink_to(root, target_is_directory=True)
    dataset = opened(root)
    assert list(dataset.names) == ["1.png"]
    assert reasons(dataset)["again/"] == "it was reached before through a link"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_special_files_are_not_opened(tmp_path):
    make_folder(tmp_path, {"1.png": "x", "2.png": None})
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "2.txt")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.jpg"))
    found = reasons(opened(tmp_path))
    assert found["pipe.png"] == found["s.jpg"] == "it is not an ordinary file"
    assert "2.txt" in found["2.png"]


def test_hidden_things_and_thumbnails_are_left_alone(tmp_path):
    make_folder(tmp_path, {"1.png": "x", "._1.png": None})
    make_folder(tmp_path / ".ipynb_checkpoints", {"1.png": "x"})
    make_folder(tmp_path / "@eaDir", {"1.png": "x"})
    (tmp_path / ".DS_Store").write_bytes(b"x")
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["1.png"]
    assert set(reasons(dataset)) == {"._1.png", ".ipynb_checkpoints/", "@eaDir/"}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_names_that_are_not_unicode_are_left_out(tmp_path):
    make_folder(tmp_path, {"1.png": "x"})
    try:
        os.rename(save_picture(tmp_path / "odd.png"), os.fsencode(tmp_path) + b"/\xff\xfe.png")
    except OSError:
        pytest.skip("this file system has no such names")
    dataset = opened(tmp_path)
    assert list(dataset.names) == ["1.png"]
    assert "not valid Unicode" in dataset.summary()
    dataset.summary().encode("utf-8")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such names")
def test_control_characters_in_names_are_shown_escaped(tmp_path):
    make_folder(tmp_path, {"1.png": "x"})
    (tmp_path / "a\n\x1b[31mb.png").write_bytes(b"")
    summary = opened(tmp_path).summary()
    assert "\x1b" not in summary
    assert "a\\n\\x1b[31mb.png: the file is empty" in summary


def test_odd_names_are_used(tmp_path):
    odd = ["a b.png", "\u732b \U0001f431.png", "100%.png", "it's (1).png", "semi;colon,comma.png", "n" * 200 + ".png"]
    make_folder(tmp_path, dict.fromkeys(odd, "x"))
    dataset = opened(tmp_path)
    assert sorted(dataset.names) == sorted(odd)
    assert all(dataset.caption(row) == "x" for row in range(len(odd)))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_locked_sub_folder_is_named(tmp_path):
    make_folder(tmp_path, {"1.png": "x"})
    locked = make_folder(tmp_path / "locked", {"1.png": "x"})
    locked.chmod(0)
    try:
        assert "cannot be read" in reasons(opened(tmp_path))["locked/"]
    finally:
        locked.chmod(0o700)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="does not exist; check the name"):
        opened(tmp_path / "gone")
    with pytest.raises(InputError, match="the regularisation folder .* does not exist"):
        opened(make_folder(tmp_path / "a", {"1.png": "x"}), reg_folder=tmp_path / "gone")


def test_a_file_is_not_a_folder(tmp_path):
    with pytest.raises(InputError, match="is a file; give the folder"):
        opened(save_picture(tmp_path / "1.png"))


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(InputError, match="holds no pictures; give a folder of png"):
        opened(tmp_path)


def test_a_folder_of_other_files_says_what_it_found(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.psd"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"holds no pictures; it holds 2 \.mp4, 1 \.psd"):
        opened(tmp_path)


def test_only_broken_pictures_is_an_error_with_the_first_reasons(tmp_path):
    for name, (content, _) in BROKEN_PICTURES.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"no picture in .* can be used \(bomb\.png: .*; and 3 more\)"):
        opened(tmp_path)


def test_a_kohya_parent_of_empty_folders_is_an_error(tmp_path):
    (tmp_path / "5_cat").mkdir()
    with pytest.raises(InputError, match="holds no pictures; left out: 5_cat/: it holds no pictures"):
        opened(tmp_path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"repeats": 0}, "repeats is 0"),
        ({"layout": "kohia"}, "did you mean 'kohya'"),
        ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
        ({"caption_dropout": float("nan")}, "finite"),
        ({"keep_tokens": -1}, "keep_tokens is -1"),
        ({"caption_extension": "txt"}, "allowed is a dot and letters"),
        ({"caption_extension": "../x"}, "allowed is a dot and letters"),
        ({"caption_extension": ".t/x"}, "allowed is a dot and letters"),
    ],
)
def test_bad_options_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        DatasetParams(**values)
