"""An export is a folder that reads back as the same data set, and never touches what lies elsewhere."""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.pictures import make_folder, save_picture
from atelier_tests.helpers.progress import CancelAfter
from lora_atelier.core.errors import AtelierError
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset.columns import TextColumn
from lora_atelier.dataset.export import ExportParams, export_dataset
from lora_atelier.dataset.masks import load_mask
from lora_atelier.dataset.scan import DatasetParams, open_folder


@pytest.fixture
def dataset(tmp_path):
    make_folder(tmp_path / "set" / "3_zwx cat", {"1.png": "zwx, cat", "deep/1.png": "zwx, deep", "b.Jpg": "zwx"})
    make_folder(tmp_path / "set" / "2_x", {"photo.jpg": "photo", "bare.png": None})
    save_picture(tmp_path / "set" / "2_x" / "moving.gif")
    exif = Image.Exif()
    exif[0x0112] = 6
    save_picture(tmp_path / "set" / "2_x" / "turned.jpg", exif=exif)
    make_folder(tmp_path / "reg", {"r.png": "cat"})
    opened = open_folder(tmp_path / "set", DatasetParams(flip=True), reg_folder=tmp_path / "reg")
    options = [replace(opened.subsets[0], caption_prefix='say "hi"', tag_dropout=0.25), *opened.subsets[1:]]
    return opened.with_subsets(options, note="options")


def exported(dataset, target, **params):
    progress = params.pop("progress", None)
    return export_dataset(dataset, target, ExportParams(**params), progress=progress)


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_the_folder_holds_links_captions_and_what_a_link_cannot_say(tmp_path, dataset):
    result = exported(dataset, tmp_path / "out")
    assert listed(result.folder) == [
        "atelier-export.json",
        "dataset.toml",
        "img/2_x/bare.png",
        "img/2_x/bare.txt",
        "img/2_x/moving.png",
        "img/2_x/moving.txt",
        "img/2_x/photo.jpg",
        "img/2_x/photo.txt",
        "img/2_x/turned.jpg",
        "img/2_x/turned.txt",
        "img/3_zwx cat/1.png",
        "img/3_zwx cat/1.txt",
        "img/3_zwx cat/b.jpg",
        "img/3_zwx cat/b.txt",
        "img/3_zwx cat/deep~1.png",
        "img/3_zwx cat/deep~1.txt",
        "reg/1_reg/r.png",
        "reg/1_reg/r.txt",
    ]
    assert not any(path.is_symlink() for path in result.folder.rglob("*"))
    photo = result.folder / "img" / "2_x" / "photo.jpg"
    assert os.path.samefile(photo, tmp_path / "set" / "2_x" / "photo.jpg")
    with Image.open(result.folder / "img" / "2_x" / "turned.jpg") as turned:
        assert (turned.size, turned.format) == ((64, 96), "JPEG")
        assert Image.Image.getexif(turned).get(0x0112, 1) == 1
    assert result.report.counts["drawn anew (cropped, turned, or of another format)"] == 2


def test_it_reads_back_as_the_same_data_set(tmp_path, dataset):
    result = exported(dataset, tmp_path / "out", pictures="copy")
    back = open_folder(result.folder, DatasetParams(flip=True), allowed=lambda path: False)
    assert int(back.is_reg.sum()) == int(dataset.is_reg.sum()) == 1
    assert sorted(back.caption(row) for row in range(len(back))) == sorted(
        dataset.caption(row) for row in range(len(dataset))
    )
    assert sorted(back.repeats.tolist()) == sorted(dataset.repeats.tolist())
    by_toml = open_folder(result.folder / "dataset.toml", DatasetParams())
    assert [
        (s.repeats, s.is_reg, s.shuffle_captions, s.keep_tokens, s.caption_prefix, s.tag_dropout, s.flip)
        for s in by_toml.subsets
    ] == [
        (s.repeats, s.is_reg, s.shuffle_captions, s.keep_tokens, s.caption_prefix, s.tag_dropout, s.flip)
        for s in dataset.subsets
    ]
    assert len(by_toml) == len(dataset)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib came with Python 3.11")
def test_the_toml_file_is_toml(tmp_path, dataset):
    import tomllib

    result = exported(dataset, tmp_path / "out", resolution_px=768, batch_size=4)
    data = tomllib.loads((result.folder / "dataset.toml").read_text(encoding="utf-8"))
    assert data["datasets"][0]["resolution"] == 768
    assert data["datasets"][0]["subsets"][0]["caption_prefix"] == 'say "hi", '


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_metadata_files(tmp_path, dataset, kind):
    result = exported(dataset, tmp_path / "out", metadata=kind, captions=".caption")
    text = (result.folder / f"metadata.{kind}").read_text(encoding="utf-8")
    if kind == "json":
        data = json.loads(text)
    else:
        data = {entry["image_path"]: entry for entry in map(json.loads, text.splitlines())}
    assert data["img/3_zwx cat/deep~1.png"]["caption"] == "zwx, deep"
    assert data["reg/1_reg/r.png"]["image_size"] == [96, 64]
    assert set(data) == {name for name in listed(result.folder) if name.endswith((".png", ".jpg"))}


def test_crops_are_applied(tmp_path, dataset):
    crops = np.zeros((len(dataset), 4), dtype=np.int32)
    crops[0] = (10, 5, 60, 45)
    cropped = dataset.with_crops(crops, note="cropped")
    result = exported(cropped, tmp_path / "out")
    sizes = {}
    for path in (result.folder / "img" / "2_x").glob("*.png"):
        with Image.open(path) as image:
            sizes[path.stem] = image.size
    assert (50, 40) in sizes.values()


def test_masks_go_along_and_what_a_folder_cannot_hold_is_said(tmp_path):
    make_folder(tmp_path / "set" / "2_cat", {"1.png": "a", "2.png": "b"})
    make_folder(tmp_path / "set" / "1_dog", {"3.png": "c"})
    mask = Image.new("L", (96, 64), 0)
    mask.paste(255, (0, 0, 48, 64))
    mask.save(tmp_path / "1.png")
    opened = open_folder(tmp_path / "set", DatasetParams())
    rows = {name: row for row, name in enumerate(opened.names)}
    masks = ["" if name != "1.png" else str(tmp_path / "1.png") for name in opened.names]
    crops = np.zeros((3, 4), dtype=np.int32)
    crops[rows["1.png"]] = (24, 0, 72, 64)
    dataset = replace(opened.with_crops(crops, note="x"), masks=TextColumn.from_strings(masks),
                      weights=np.ones(3, dtype=np.float32))  # fmt: skip
    result = exported(dataset, tmp_path / "out")
    assert [name for name in listed(result.folder) if name.startswith("masks/")] == [
        "masks/img/2_cat/1.png", "masks/img/2_cat/2.png",
    ]  # fmt: skip
    assert result.report.counts["masks"] == 1
    assert "A folder cannot hold loss weights" in result.report.text()
    back = open_folder(result.folder / "dataset.toml", DatasetParams())
    read = {name: load_mask(back, row) for row, name in enumerate(back.names)}
    assert read["1.png"].size == (48, 64)
    assert np.array_equal(np.asarray(read["1.png"])[0] > 127, np.arange(48) < 24)
    assert read["2.png"].getextrema() == (255, 255)
    assert read["3.png"] is None
    plain = open_folder(result.folder, DatasetParams())
    assert sorted(plain.names) == ["1.png", "2.png", "3.png"]


def test_the_same_again_does_nothing_and_another_gets_a_number(tmp_path, dataset):
    first = exported(dataset, tmp_path / "out")
    stamp = (first.folder / "dataset.toml").stat().st_mtime_ns
    again = exported(dataset, tmp_path / "out")
    assert again.folder == first.folder
    assert "lies there already" in again.report.text()
    assert (first.folder / "dataset.toml").stat().st_mtime_ns == stamp
    other = exported(dataset.with_tags({0: ["new"]}, note="x"), tmp_path / "out")
    assert other.folder == tmp_path / "out-002"
    assert "out was taken, so it is called out-002." in other.report.text()


def test_cancel_leaves_nothing(tmp_path, dataset):
    with pytest.raises(Cancelled):
        exported(dataset, tmp_path / "out", progress=CancelAfter(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["reg", "set"]


def test_a_broken_picture_is_listed_and_the_rest_is_written(tmp_path, dataset):
    dataset.path(0).write_bytes(b"broken now")
    result = exported(dataset, tmp_path / "out")
    (refused,) = result.report.refused
    assert "not a picture of a known format" in refused.reason
    assert result.report.counts["pictures"] == len(dataset) - 1


def test_targets_that_would_do_harm_are_refused(tmp_path, dataset):
    (tmp_path / "file").write_text("x")
    with pytest.raises(AtelierError, match="is a file; give the name of a new folder"):
        exported(dataset, tmp_path / "file")
    with pytest.raises(AtelierError, match="lies inside the data set's own folder '3_zwx cat'"):
        exported(dataset, dataset.subsets[1].folder / "out")


def test_names_that_differ_only_in_case_or_folder_stay_apart(tmp_path):
    make_folder(tmp_path / "set", {"a/1.png": "one", "a~1.png": "two", "A~1.jpg": "three"})
    result = exported(open_folder(tmp_path / "set", DatasetParams()), tmp_path / "out")
    stems = [name for name in listed(result.folder) if name.endswith(".txt")]
    assert len({stem.casefold() for stem in stems}) == 3
