import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.pictures import gradient, make_folder, save_picture
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset.layout import parse_repeat_name
from lora_atelier.dataset.scan import DatasetParams, fingerprint_folder, open_folder, with_regularisation
from lora_atelier.dataset.table import CAPTION_FILE, CAPTION_FOLDER, CAPTION_NONE, Dataset
from lora_atelier.dataset.walk import natural_key


def opened(folder, **params) -> Dataset:
    return open_folder(folder, DatasetParams(**params))


def names(dataset: Dataset) -> list[str]:
    return list(dataset.names)


def reasons(dataset: Dataset) -> dict[str, str]:
    return {entry.path: entry.reason for entry in dataset.skipped}


def test_a_kohya_parent_is_read_with_repeats_and_texts(tmp_path):
    make_folder(tmp_path / "10_zwx cat", {"1.png": "zwx, cat", "2.png": None})
    make_folder(tmp_path / "3_sks_dog_big", {"a.jpg": "sks, dog"})
    dataset = opened(tmp_path)
    assert [(subset.repeats, subset.concept) for subset in dataset.subsets] == [(3, "sks_dog_big"), (10, "zwx cat")]
    assert names(dataset) == ["a.jpg", "1.png", "2.png"]
    assert [dataset.caption(row) for row in range(3)] == ["sks, dog", "zwx, cat", "zwx cat"]
    assert dataset.caption_source.tolist() == [CAPTION_FILE, CAPTION_FILE, CAPTION_FOLDER]
    assert dataset.repeats.tolist() == [3, 10, 10]
    assert dataset.layout == f"Read {tmp_path.name!r} as a kohya folder of N_name folders (2)."
    assert dataset.path(1) == tmp_path / "10_zwx cat" / "1.png"


def test_what_kohya_leaves_out_is_named_with_its_reason(tmp_path):
    make_folder(tmp_path / "2_cat", {"1.png": "cat"})
    make_folder(tmp_path / "more cats", {"1.png": "cat"})
    make_folder(tmp_path / "0_never", {"1.png": "cat"})
    make_folder(tmp_path / "5_empty", {})
    make_folder(tmp_path, {"loose.png": "cat"})
    dataset = opened(tmp_path)
    assert names(dataset) == ["1.png"]
    found = reasons(dataset)
    assert "does not begin with a repeat count" in found["more cats/"]
    assert "does not begin with a repeat count" in found["0_never/"]
    assert found["5_empty/"] == "it holds no pictures"
    assert "beside the N_name folders" in found["loose.png"]
    assert "more cats/: its name does not begin" in dataset.summary()


def test_one_kohya_folder_is_read_alone(tmp_path):
    make_folder(tmp_path / "7_zwx", {"1.png": None})
    dataset = opened(tmp_path / "7_zwx")
    assert dataset.repeats.tolist() == [7]
    assert dataset.caption(0) == "zwx"
    assert dataset.layout == "Read '7_zwx' as one kohya folder: 7 repeats, text 'zwx'."


def test_a_plain_folder_is_read_with_its_sub_folders(tmp_path):
    make_folder(tmp_path / "cats", {"10.png": "ten", "2.png": "two"})
    make_folder(tmp_path / "cats" / "more" / "deep", {"1.png": "deep"})
    dataset = opened(tmp_path / "cats", repeats=4)
    assert names(dataset) == ["2.png", "10.png", "more/deep/1.png"]
    assert dataset.repeats.tolist() == [4, 4, 4]
    assert dataset.layout == "Read 'cats' as a plain folder."
    assert names(opened(tmp_path / "cats", recursive=False)) == ["2.png", "10.png"]


def test_the_parent_of_kohyas_gui_is_found_one_level_down(tmp_path):
    make_folder(tmp_path / "img" / "5_cat", {"1.png": "cat"})
    (tmp_path / "log").mkdir()
    (tmp_path / "model").mkdir()
    dataset = opened(tmp_path)
    assert dataset.repeats.tolist() == [5]
    assert "Read the folder 'img'" in dataset.layout
    make_folder(tmp_path / "reg" / "1_cat", {"1.png": "cat"})
    for reg_folder in (None, tmp_path / "reg"):
        both = open_folder(tmp_path, DatasetParams(), reg_folder=reg_folder)
        assert both.is_reg.tolist() == [False, True]
        assert [subset.folder.parent.name for subset in both.subsets] == ["img", "reg"]
    assert opened(tmp_path, layout="plain").is_reg.tolist() == [False, False]
    make_folder(tmp_path / "img2" / "1_cat", {"1.png": "cat"})
    with pytest.raises(InputError, match=r"several folders with N_name folders in them \(img, img2, reg\)"):
        opened(tmp_path)


def test_the_layout_can_be_forced(tmp_path):
    make_folder(tmp_path / "2019_summer", {"1.png": "beach"})
    make_folder(tmp_path / "2020_winter", {"1.png": "snow"})
    as_kohya = opened(tmp_path)
    assert as_kohya.repeats.tolist() == [2019, 2020]
    assert any("choose the layout plain" in note for note in as_kohya.notes)
    as_plain = opened(tmp_path, layout="plain")
    assert as_plain.repeats.tolist() == [1, 1]
    assert names(as_plain) == ["2019_summer/1.png", "2020_winter/1.png"]
    make_folder(tmp_path / "flat", {"1.png": "x"})
    with pytest.raises(InputError, match="holds no folder named N_name"):
        opened(tmp_path / "flat", layout="kohya")


def test_sub_folders_of_a_kohya_folder_are_taken_with_it(tmp_path):
    make_folder(tmp_path / "2_cat" / "inner", {"1.png": "cat"})
    make_folder(tmp_path / "2_cat", {"2.png": "cat"})
    dataset = opened(tmp_path)
    assert names(dataset) == ["2.png", "inner/1.png"]
    assert "In sub-folders of N_name folders, and taken with them: 1 picture." in dataset.notes
    assert names(opened(tmp_path, recursive=False)) == ["2.png"]


@pytest.mark.parametrize(
    ("name", "parsed"),
    [
        ("10_cat", (10, "cat")),
        ("1_", (1, "")),
        ("007_sks_dog", (7, "sks_dog")),
        ("10_ cat ", (10, "cat")),
        ("10", None),
        ("0_cat", None),
        ("-1_cat", None),
        ("1.5_cat", None),
        ("cat_10", None),
        ("99999999999999999999_cat", None),
        ("20000_cat", None),
        ("\u0661_cat", None),
    ],
)
def test_repeat_names(name, parsed):
    assert parse_repeat_name(name) == parsed


def test_order_is_natural_and_does_not_depend_on_the_system(tmp_path, monkeypatch):
    wanted = ["1.png", "2.png", "03.png", "10.png", "A1.png", "a2.png", "b.png", "\u00e9.png"]
    make_folder(tmp_path, {name: name for name in reversed(wanted)})
    assert names(opened(tmp_path)) == wanted
    straight = opened(tmp_path).fingerprint()
    real_scandir = os.scandir

    class Reversed:
        def __init__(self, path):
            with real_scandir(path) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *details):
            return None

        def close(self):
            return None

    monkeypatch.setattr(os, "scandir", Reversed)
    assert opened(tmp_path).fingerprint() == straight
    assert natural_key("a") != natural_key("A")


def test_captions_of_every_encoding_are_read(tmp_path):
    text = "zwx, caf\u00e9, \u732b"
    for name, data in {
        "plain": text.encode(),
        "bom": text.encode("utf-8-sig"),
        "crlf": text.encode() + b"\r\nsecond line\r\n",
        "utf16": text.encode("utf-16"),
        "blank_first": b"\r\n  \n" + text.encode(),
    }.items():
        save_picture(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_bytes(data)
    dataset = opened(tmp_path)
    assert {dataset.caption(row) for row in range(5)} == {text}
    assert dataset.tags.vocabulary == ("zwx", "caf\u00e9", "\u732b")
    assert "Of several lines, of which the first counts: 1 caption." in dataset.notes


def test_captions_may_end_in_caption_or_be_odd_in_case_or_form(tmp_path):
    composed = unicodedata.normalize("NFC", "e\u0301")
    for name in ("a.Jpg", "b.PNG", "c.png", f"{unicodedata.normalize('NFD', composed)}.png", "d.png", "e.png"):
        save_picture(tmp_path / name)
    (tmp_path / "a.txt").write_text("from txt")
    (tmp_path / "a.caption").write_text("not this one")
    (tmp_path / "b.caption").write_text("from caption")
    (tmp_path / "c.TXT").write_text("from TXT")
    (tmp_path / f"{composed}.txt").write_text("from another form")
    (tmp_path / "d.tags").write_text("from tags")
    dataset = opened(tmp_path)
    captions = {unicodedata.normalize("NFC", dataset.names[row]): dataset.caption(row) for row in range(6)}
    assert captions == {
        "a.Jpg": "from txt",
        "b.PNG": "from caption",
        "c.png": "from TXT",
        f"{composed}.png": "from another form",
        "d.png": "from, tags",
        "e.png": "",
    }
    assert int((dataset.caption_source == CAPTION_NONE).sum()) == 1
    tagged = opened(tmp_path, caption_extension=".tags")
    assert [tagged.caption(row) for row in range(6) if tagged.names[row] == "d.png"] == ["from, tags"]


def test_a_missing_caption_takes_the_folders_text_or_the_given_one(tmp_path):
    make_folder(tmp_path / "plain", {"1.png": None, "2.png": "own"})
    dataset = opened(tmp_path / "plain", class_text="zwx, thing")
    assert [dataset.caption(row) for row in range(2)] == ["zwx, thing", "own"]
    make_folder(tmp_path / "kohya" / "1_cat", {"1.png": None})
    assert opened(tmp_path / "kohya", class_text="other").caption(0) == "cat"


def test_empty_captions_stay_empty_and_are_told(tmp_path):
    make_folder(tmp_path / "2_cat", {"1.png": "", "2.png": " \n "})
    dataset = opened(tmp_path)
    assert dataset.caption(0) == dataset.caption(1) == ""
    assert "Empty: 2 caption files; trained without a caption." in dataset.notes


def test_pictures_that_share_a_caption_are_told(tmp_path):
    make_folder(tmp_path, {"1.png": "same", "1.jpg": None, "2.png": "own"})
    dataset = opened(tmp_path)
    assert dataset.caption(0) == dataset.caption(1) == "same"
    assert "Sharing a caption file with another of the same name (1.png, 1.jpg): 2 pictures." in dataset.notes


def test_sizes_are_upright_already_when_scanned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(gradient((96, 64))).save(tmp_path / "phone.jpg", exif=exif)
    dataset = opened(tmp_path)
    assert (dataset.width_px[0], dataset.height_px[0]) == (64, 96)
    row = dataset.image(0)
    assert (row.width_px, row.height_px) == (64, 96)


def test_options_reach_every_subset(tmp_path):
    make_folder(tmp_path / "2_cat", {"1.png": "cat"})
    options = {
        "shuffle_captions": False,
        "keep_tokens": 3,
        "caption_prefix": "zwx",
        "caption_dropout": 0.25,
        "tag_dropout": 0.5,
        "flip": True,
    }
    subset = opened(tmp_path, repeats=5, **options).subsets[0]
    assert {name: getattr(subset, name) for name in options} == options
    assert subset.repeats == 10


def test_files_of_other_kinds_are_counted(tmp_path):
    make_folder(tmp_path, {"1.png": "x"})
    for name in ("a.psd", "b.psd", "clip.mp4", "1.npz", "1.json"):
        (tmp_path / name).write_bytes(b"x")
    assert "Files of other kinds are not read: 2 .psd, 1 .mp4." in opened(tmp_path).notes


def test_regularisation_pictures_keep_their_own_folder(tmp_path):
    make_folder(tmp_path / "train" / "2_cat", {"1.png": "zwx, cat"})
    make_folder(tmp_path / "reg" / "1_cat", {"1.png": None, "2.png": "cat, grass"})
    dataset = open_folder(tmp_path / "train", DatasetParams(), reg_folder=tmp_path / "reg")
    assert dataset.is_reg.tolist() == [False, True, True]
    assert dataset.path(2) == tmp_path / "reg" / "1_cat" / "2.png"
    assert [dataset.caption(row) for row in range(3)] == ["zwx, cat", "cat", "cat, grass"]
    assert "1_cat: 2 pictures for regularisation" in dataset.summary()
    by_hand = with_regularisation(opened(tmp_path / "train"), opened(tmp_path / "reg"))
    assert by_hand.fingerprint() == dataset.fingerprint()
    assert by_hand.history[-1] == "added 2 regularisation pictures from 'reg'"


def test_a_regularisation_folder_inside_the_data_set_is_not_trained(tmp_path):
    make_folder(tmp_path, {"1.png": "zwx"})
    make_folder(tmp_path / "reg", {"1.png": "other"})
    assert names(opened(tmp_path)) == ["1.png", "reg/1.png"]
    dataset = open_folder(tmp_path, DatasetParams(), reg_folder=tmp_path / "reg")
    assert [dataset.caption(row) for row in range(2)] == ["zwx", "other"]
    assert dataset.is_reg.tolist() == [False, True]
    assert reasons(dataset)["reg/"] == "it is used for regularisation"
    for train in (tmp_path, tmp_path / "reg"):
        with pytest.raises(InputError, match="is or lies in the regularisation folder"):
            open_folder(train, DatasetParams(), reg_folder=tmp_path)


def test_progress_is_told_and_can_cancel(tmp_path):
    make_folder(tmp_path, {f"{number}.png": None for number in range(70)}, size=(16, 16))
    progress = RecordingProgress()
    open_folder(tmp_path, DatasetParams(), progress=progress)
    with pytest.raises(Cancelled):
        open_folder(tmp_path, DatasetParams(), progress=CancelAfter(2))


def test_the_folder_fingerprint_sees_every_change(tmp_path):
    make_folder(tmp_path / "2_cat", {"1.png": "cat", "2.png": "dog"})
    picture, caption = tmp_path / "2_cat" / "1.png", tmp_path / "2_cat" / "1.txt"
    seen = {fingerprint_folder(tmp_path)}
    assert fingerprint_folder(str(tmp_path)) in seen

    def changed() -> bool:
        now = fingerprint_folder(tmp_path)
        new = now not in seen
        seen.add(now)
        return new

    caption.write_text("cats", encoding="utf-8")
    assert changed()
    os.utime(caption, ns=(10**18, 10**18))  # same size, another time
    assert changed()
    os.utime(picture, ns=(10**18 + 1, 10**18 + 1))
    assert changed()
    save_picture(tmp_path / "2_cat" / "3.png")
    assert changed()
    (tmp_path / "2_cat" / "3.png").rename(tmp_path / "2_cat" / "4.png")
    assert changed()
    (tmp_path / "2_cat").rename(tmp_path / "5_cat")
    assert changed()
    (tmp_path / "5_cat" / "2.txt").unlink()
    assert changed()
    (tmp_path / "5_cat" / "notes.md").write_text("not a caption")
    assert not changed()
    assert fingerprint_folder(tmp_path / "gone") == "missing"


def test_the_folder_fingerprint_opens_no_file(tmp_path, monkeypatch):
    make_folder(tmp_path, {"1.png": "cat"})
    monkeypatch.setattr("builtins.open", None)
    monkeypatch.setattr(Image, "open", None)
    assert len(fingerprint_folder(tmp_path)) == 32


def test_pixels_are_not_decoded_by_a_scan(tmp_path, monkeypatch):
    make_folder(tmp_path, {"1.png": "a", "2.jpg": "b", "3.webp": "c", "4.bmp": "d", "5.gif": "e", "6.tiff": "f"})

    def refuse(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert len(opened(tmp_path)) == 6


def test_twenty_thousand_rows_cost_little(tmp_path):
    """The scan itself is exercised on real files elsewhere; here the table is built from the same columns."""
    from lora_atelier.dataset.columns import TagColumn, TextColumn
    from lora_atelier.dataset.table import Subset

    rows = 20_000
    vocabulary = [f"tag number {number}" for number in range(3_000)]
    picks = np.random.default_rng(0).integers(0, len(vocabulary), size=(rows, 30))
    tags = TagColumn.from_rows([vocabulary[tag] for tag in row] for row in picks.tolist())
    column = np.full(rows, 512, dtype=np.int32)
    dataset = Dataset(
        root=tmp_path,
        subsets=(Subset(folder=tmp_path),),
        names=TextColumn.from_strings(f"folder/some picture {number:06d}.png" for number in range(rows)),
        width_px=column,
        height_px=column,
        size_bytes=column.astype(np.int64),
        mtime_ns=column.astype(np.int64),
        subset_index=np.zeros(rows, dtype=np.int32),
        caption_source=np.ones(rows, dtype=np.uint8),
        tags=tags,
        layout="",
    )
    # 200,000 pictures with 30 tags must stay under 300 MB, with ten changed copies under 450; this is a tenth of that.
    assert dataset.nbytes < 6_000_000
    copies = [dataset.with_tags({row: ["x"] for row in range(start, rows, 10)}, note="n") for start in range(10)]
    assert sum(copy.tags.nbytes for copy in copies) + dataset.nbytes < 45_000_000
    assert all(copy.names is dataset.names and copy.width_px is dataset.width_px for copy in copies)
    assert len({copy.fingerprint() for copy in copies}) == 10
