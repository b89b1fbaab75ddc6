"""Detectors in all layouts, box files of all formats, file-name hints, and passes that go on where they stopped."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.onnx_detector import v5, v8, write_detector
from atelier_tests.helpers.pictures import make_folder
from lora_atelier.core.errors import AtelierError, FormatError, StorageError
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.dataset.detect import Found, decode, from_bytes, letterbox, open_detector, select, to_bytes
from lora_atelier.dataset.detect_files import boxes_from_files, boxes_from_names
from lora_atelier.dataset.detect_rows import find_boxes
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.pico import judge, train_detector, world

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ROWS = [(32, 32, 40, 60, 0.9, 0.1), (33, 32, 40, 60, 0.8, 0.1), (30, 14, 16, 20, 0.05, 0.7), (60, 60, 2, 2, 0.01, 0.02)]
"""A person, the same again, a head, and next to nothing; in px of a 64 px input."""


def boxes_of(found):
    return [(item.name, round(item.score, 2), tuple(round(side) for side in item.box)) for item in found]


EXPECTED = [("person", 0.9, (24, 4, 104, 124)), ("head", 0.7, (44, 8, 76, 48))]
"""In a picture of 128 px: twice the input."""


@pytest.mark.parametrize("layout", ["v8", "v8 rows", "v5", "selected", "v8 in shares"])
def test_every_layout_gives_the_same_boxes(tmp_path, layout):
    rows = np.array(ROWS, dtype=np.float32)
    output = v8(ROWS)
    if layout == "v8 rows":
        output = output.transpose(0, 2, 1).copy()
    if layout == "v8 in shares":
        output[:, :4] /= 64
    if layout == "v5":
        output = v5([(*row[:4], 1.0, *row[4:]) for row in ROWS])
    if layout == "selected":
        half = rows[:, 2:4] / 2
        best = rows[:, 4:].max(axis=1, keepdims=True), rows[:, 4:].argmax(axis=1)[:, None]
        output = np.concatenate([rows[:, :2] - half, rows[:, :2] + half, *best], axis=1)[None]
    detector = open_detector(write_detector(tmp_path / "d.onnx", output))
    assert boxes_of(detector.find(Image.new("RGB", (128, 128)))) == EXPECTED
    assert detector.names == ("person", "head")


@pytest.mark.parametrize(("dtype", "size"), [("FLOAT16", 64), ("UINT8", 64), ("FLOAT", "free")])
def test_other_inputs(tmp_path, dtype, size):
    rows = ROWS if size == 64 else [tuple(10 * side for side in row[:4]) + row[4:] for row in ROWS]
    detector = open_detector(write_detector(tmp_path / "d.onnx", v8(rows), dtype=dtype, size_px=size))
    assert boxes_of(detector.find(Image.new("RGB", (128, 128)))) == EXPECTED


def test_boxes_come_back_from_the_letterbox_and_stay_inside(tmp_path):
    detector = open_detector(write_detector(tmp_path / "d.onnx", v8([(32, 32, 64, 64, 0.9, 0)])))
    assert boxes_of(detector.find(Image.new("RGB", (200, 100)))) == [("person", 0.9, (0, 0, 200, 100))]
    detector = open_detector(write_detector(tmp_path / "d.onnx", v8([(16, 24, 16, 16, 0.9, 0)])))
    assert boxes_of(detector.find(Image.new("RGB", (200, 100)))) == [("person", 0.9, (25, 0, 75, 50))]


def test_a_letterbox_is_grey_centred_and_in_proportion():
    pixels, scale, (left, top) = letterbox(Image.new("RGB", (40, 80), (255, 0, 0)), 64, 64)
    assert (scale, left, top) == (0.8, 16, 0)
    assert pixels[0, 0].tolist() == [114, 114, 114]
    assert pixels[0, 16].tolist() == [255, 0, 0]
    assert pixels[63, 47].tolist() == [255, 0, 0]
    assert pixels[63, 48].tolist() == [114, 114, 114]


def test_selection_agrees_with_a_plain_reference():
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 80, (60, 2))
    boxes = np.concatenate([low, low + rng.uniform(5, 40, (60, 2))], axis=1)
    scores, classes = rng.random(60), rng.integers(0, 2, 60)
    kept: list[int] = []
    for place in np.argsort(-scores):
        same = [other for other in kept if classes[other] == classes[place]]
        if all(train_detector.box_overlap(tuple(boxes[place]), tuple(boxes[other])) <= 0.45 for other in same):
            kept.append(int(place))
    assert select(boxes, scores, classes) == kept


@pytest.mark.parametrize(
    ("metadata", "file", "expected"),
    [
        ('{"0": "a", "2": "c"}', None, ("a", "1", "c")),
        ("['x', 'y']", None, ("x", "y")),
        (None, ("d.txt", "face\n\nbody\n"), ("face", "body")),
        (None, ("classes.txt", "\ufeffface\nbody"), ("face", "body")),
        (None, None, ()),
    ],
)
def test_where_class_names_come_from(tmp_path, metadata, file, expected):
    if file:
        (tmp_path / file[0]).write_text(file[1], encoding="utf-8")
    rows = [(*row[:4], *([0.5] * max(2, len(expected)))) for row in ROWS]
    detector = open_detector(write_detector(tmp_path / "d.onnx", v8(rows), names=metadata))
    assert detector.names == expected
    assert detector.find(Image.new("RGB", (64, 64)))[0].name == (expected[0] if expected else "0")


def test_what_is_remembered_comes_back():
    found = [Found(name="kopf \u00fc", score=0.51234, box=(1.0, 2.5, 3.25, 4.0))]
    assert from_bytes(to_bytes(found)) == [Found(name="kopf \u00fc", score=0.5123, box=(1.0, 2.5, 3.25, 4.0))]


def bad_detectors():
    good = v8(ROWS)
    return {
        "segmentation": (dict(output=good[0]), "gives output0 of shape [6, 20]; a YOLO detector gives"),
        "grey input": (dict(output=good, channels=1), "takes tensor(float) of shape [1, 1, 64, 64]"),
        "whole numbers": (dict(output=good, dtype="INT32"), "takes tensor(int32)"),
        "logits": (dict(output=good * np.array([1, 1, 1, 1, 9, 9])[None, :, None]), "gives scores outside 0..1"),
        "nan": (dict(output=np.where(good == 0, np.nan, good)), "gives scores outside 0..1"),
        "names": (dict(output=good, names="{0: 'a', 1: 'b', 2: 'c'}"), "does not fit its 3 class names"),
        "a classifier": (dict(output=np.zeros((1, 3, 3)), names=None), "a YOLO detector gives [4 + classes, anchors]"),
        "broken names": (dict(output=good, names="{0: 'a'"), "class names in d.onnx cannot be read"),
        "names no list": (dict(output=good, names="7"), "class names in d.onnx are '7', not a list"),
    }


@pytest.mark.parametrize("kind", bad_detectors())
def test_what_is_no_detector_says_why(tmp_path, kind):
    arguments, message = bad_detectors()[kind]
    path = write_detector(tmp_path / "d.onnx", **arguments)
    with pytest.raises(FormatError) as refusal:
        open_detector(path).find(Image.new("RGB", (64, 64)))
    assert message in str(refusal.value)


def test_missing_and_doubled_detectors(tmp_path):
    with pytest.raises(StorageError, match=r"there is no detector .*head.onnx; put a detection model exported to ONNX"):
        open_detector(tmp_path / "head.onnx")
    (tmp_path / "two").mkdir()
    with pytest.raises(StorageError, match=r"two holds no .onnx file; put one there"):
        open_detector(tmp_path / "two")
    for name in ("a.onnx", "b.onnx"):
        write_detector(tmp_path / "two" / name, v8(ROWS))
    with pytest.raises(StorageError, match=r"two holds 2 .onnx files"):
        open_detector(tmp_path / "two")
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(FormatError, match="is not an ONNX graph"):
        open_detector(tmp_path / "x.onnx")


def test_the_committed_detector_finds_bodies_and_heads():
    overlaps = train_detector.detector_overlap(judge.DETECTOR_FILE, number=120)
    assert overlaps["body"] > 0.88
    assert overlaps["head"] > 0.85


def test_outlines_hold_what_is_drawn():
    rng = random.Random(0)
    for _ in range(40):
        scene = world.concept_scene(rng, world.CONCEPTS["kest"])
        picture = np.asarray(world.draw(scene), dtype=int)
        left, top, right, bottom = world.outlines(scene)[0].body
        drawn = np.abs(picture - picture[1, 1]).sum(axis=2) > 60
        rows, columns = np.nonzero(drawn)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        assert np.abs(np.array(seen) - np.array((left, top, right, bottom))).max() <= 1.5


# passes --------------------------------------------------------------------------------------------------------
def drawn_folder(root, count=6):
    root.mkdir()
    rng = random.Random(2)
    for number in range(count):
        scene = world.concept_scene(rng, world.CONCEPTS["kest"])
        world.draw(scene).resize((scene.width_px * 3, scene.height_px * 3)).save(root / f"{number}.png")
        (root / f"{number}.txt").write_text("lumo kest, hat", encoding="utf-8")
    return open_folder(root, DatasetParams())


def test_a_pass_is_remembered_and_scaled_to_the_picture(tmp_path):
    dataset = drawn_folder(tmp_path / "set")
    detector = open_detector(judge.DETECTOR_FILE)
    with Index(tmp_path / "index.sqlite") as index:
        first = find_boxes(dataset, detector, least_score=0.4, index=index)
        assert "6 of 6 pictures anew" in first.origin
        again = find_boxes(dataset, detector, least_score=0.4, index=index)
    assert "0 of 6 pictures anew" in again.origin
    assert first.rows == again.rows
    assert first.names() == {"body": 6, "head": 6}
    for row, found in first.rows.items():
        body = next(item.box for item in found if item.name == "body")
        assert body[3] <= dataset.height_px[row]
        assert body[3] - body[1] > 96


def test_a_cancelled_pass_keeps_what_it_has_and_a_damaged_picture_is_left_out(tmp_path):
    dataset = drawn_folder(tmp_path / "set")
    (tmp_path / "set" / "5.png").write_bytes((tmp_path / "set" / "5.png").read_bytes()[:300])
    detector = open_detector(judge.DETECTOR_FILE)

    class Impatient(SilentProgress):
        def update(self, done, total, text=""):
            if done == 3:
                raise Cancelled

    with Index(tmp_path / "index.sqlite") as index:
        with pytest.raises(Cancelled):
            find_boxes(dataset, detector, least_score=0.4, index=index, progress=Impatient())
        boxes = find_boxes(dataset, detector, least_score=0.4, index=index)
    assert "2 of 6 pictures anew" in boxes.origin
    assert sorted(boxes.rows) == [0, 1, 2, 3, 4]
    assert len(boxes.problems) == 1
    assert boxes.problems[0].startswith("5.png: ")


# files ---------------------------------------------------------------------------------------------------------
def table(tmp_path, *names):
    make_folder(tmp_path / "set", {name: "a" for name in names or ("1.png", "sub/2.png", "3.png")}, (200, 100))
    return open_folder(tmp_path / "set", DatasetParams())


def write(path: Path, text) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")


HEAD = [("head", 1.0, (50, 20, 100, 60))]


@pytest.mark.parametrize(
    "text",
    [
        "1 0.375 0.4 0.25 0.4\n",
        "1 0.375 0.4 0.25 0.4 1.0",
        "1 0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6",
        "head 0.375 0.4 0.25 0.4",
    ],
)
def test_yolo_labels(tmp_path, text):
    dataset = table(tmp_path)
    write(tmp_path / "labels" / "1.txt", text)
    write(tmp_path / "labels" / "classes.txt", "person\nhead\n")
    boxes = boxes_from_files(dataset, tmp_path / "labels")
    assert {row: boxes_of(found) for row, found in boxes.rows.items()} == {0: HEAD}


@pytest.mark.parametrize(
    "value",
    [
        [{"name": "head", "box": [50, 20, 100, 60]}],
        {"boxes": [{"label": "head", "box": [0.25, 0.2, 0.5, 0.6]}]},
        [[50, 20, 100, 60]],
        {"shapes": [{"label": "head", "points": [[100, 60], [50, 20]]}], "imageWidth": 200},
    ],
)
def test_json_boxes(tmp_path, value):
    dataset = table(tmp_path)
    write(tmp_path / "labels" / "sub" / "2.json", value)
    boxes = boxes_from_files(dataset, tmp_path / "labels")
    place = list(dataset.names).index("sub/2.png")
    assert {row: boxes_of(found) for row, found in boxes.rows.items()} == {place: HEAD}


def test_boxes_beside_the_pictures(tmp_path):
    dataset = table(tmp_path)
    write(tmp_path / "set" / "1.boxes.txt", "head 0.375 0.4 0.25 0.4")
    write(tmp_path / "set" / "3.boxes.json", [[50, 20, 100, 60]])
    boxes = boxes_from_files(dataset, None)
    assert sorted(dataset.names[row] for row in boxes.rows) == ["1.png", "3.png"]
    assert boxes.origin == "2 box files"


def test_one_file_for_all(tmp_path):
    dataset = table(tmp_path)
    coco = {
        "images": [{"id": 7, "file_name": "other\\1.png"}, {"id": 8, "file_name": "sub/2.png"}],
        "categories": [{"id": 3, "name": "head"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [50, 20, 50, 40]}],
    }
    write(tmp_path / "coco.json", coco)
    boxes = boxes_from_files(dataset, tmp_path / "coco.json")
    assert {dataset.names[row]: boxes_of(found) for row, found in boxes.rows.items()} == {"1.png": HEAD}
    write(tmp_path / "own.json", {"3": [[50, 20, 100, 60]], "1.png": []})
    boxes = boxes_from_files(dataset, tmp_path / "own.json")
    assert {dataset.names[row]: boxes_of(found) for row, found in boxes.rows.items()} == {"3.png": HEAD}


def test_a_hint_in_the_name_and_a_crop(tmp_path):
    dataset = table(tmp_path, "a_75_40_50_40.png", "b.png", "c_900_40_50_40.png")
    boxes = boxes_from_names(dataset)
    assert {dataset.names[row]: boxes_of(found) for row, found in boxes.rows.items()} == {"a_75_40_50_40.png": HEAD}
    assert boxes.problems == ("c_900_40_50_40.png: 900_40_50_40 is no box inside its 200 x 100 px",)
    crops = np.array([[40, 0, 90, 50], [0] * 4, [0] * 4], dtype=np.int32)
    cropped = boxes_from_names(dataset.with_crops(crops, note="crop"))
    assert boxes_of(cropped.rows[0]) == [("head", 1.0, (10, 20, 50, 50))]


BAD_FILES = {
    "no file": ({}, "no picture has a box file in .*labels; name them as the pictures, such as 1.txt"),
    "px in yolo": ({"1.txt": "head 75 40 50 40"}, "none of the 1 box files can be used .*line 1 is 'head 75 40 50 40'"),
    "too few": ({"1.txt": "head 0.5 0.5 0.1"}, "line 1 .* a YOLO label is: class cx cy w h"),
    "not json": ({"1.json": "{"}, "1.json: it is not JSON"),
    "no list": ({"1.json": {"head": 1}}, 'neither a list of boxes nor an object with "boxes"'),
    "turned": ({"1.json": [[100, 20, 50, 60]]}, "box 1 is .*a box is .left, top, right, bottom. with left < right"),
    "words": ({"1.json": [["a", "b", "c", "d"]]}, "box 1 is"),
    "not utf-8": ({"1.json": b"\xff\xfe\x00"}, "1.json is not UTF-8 text"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_box_files_say_why(tmp_path, kind):
    files, message = BAD_FILES[kind]
    dataset = table(tmp_path)
    (tmp_path / "labels").mkdir()
    for name, content in files.items():
        if isinstance(content, bytes):
            (tmp_path / "labels" / name).write_bytes(content)
        else:
            write(tmp_path / "labels" / name, content)
    with pytest.raises(AtelierError, match=message):
        boxes_from_files(dataset, tmp_path / "labels")


def test_one_bad_box_file_among_good_ones_is_named(tmp_path):
    dataset = table(tmp_path)
    write(tmp_path / "labels" / "1.txt", "head 9 9 9 9")
    write(tmp_path / "labels" / "3.txt", "head 0.375 0.4 0.25 0.4")
    boxes = boxes_from_files(dataset, tmp_path / "labels")
    assert len(boxes.rows) == 1
    assert len(boxes.problems) == 1
    assert "1.txt: line 1" in boxes.problems[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "all.json is no object"),
        ({"annotations": []}, "all.json is not a COCO file .KeyError: 'images'."),
        ({"other.png": []}, "all.json names none of the pictures"),
        ("{", "all.json: it is not JSON"),
    ],
)
def test_bad_single_files(tmp_path, value, message):
    dataset = table(tmp_path)
    write(tmp_path / "all.json", value)
    with pytest.raises(FormatError, match=message):
        boxes_from_files(dataset, tmp_path / "all.json")


def test_no_place_and_no_hint(tmp_path):
    dataset = table(tmp_path)
    with pytest.raises(StorageError, match="there are no boxes at"):
        boxes_from_files(dataset, tmp_path / "missing")
    with pytest.raises(FormatError, match="no file name ends in a box _cx_cy_w_h"):
        boxes_from_names(dataset)


def test_decode_refuses_batches():
    with pytest.raises(FormatError, match=r"gave shape \[2, 6, 20\]; one picture gives"):
        decode(np.zeros((2, 6, 20), dtype=np.float32), 2)
