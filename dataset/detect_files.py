"""Boxes that stand in files beside the pictures, in one file for all of them, or in the pictures' names.

Formats: YOLO label files (``class cx cy w h [score]`` or a polygon per line, as shares of the picture), JSON lists,
LabelMe's JSON, one COCO file for all pictures, and kohya's file-name hint ``_cx_cy_w_h`` in px.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import FormatError, StorageError
from .beside import SeenFolders
from .detect import Box, Found
from .detect_rows import Boxes
from .table import Dataset
from .words import printable

BESIDE = ".boxes"
"""What stands between name and ending of a box file beside its picture; a plain .txt there is the caption."""
ENDINGS = (".txt", ".json")
CLASS_FILES = ("classes.txt", "names.txt", "labels.txt")
HINT_CLASS = "head"
"""What a file-name hint marks; kohya's scripts read it as the face."""
MAX_BYTES = 256 << 20
_HINT = re.compile(r"_(\d{1,6})_(\d{1,6})_(\d{1,6})_(\d{1,6})$")
_MAX_PROBLEMS = 200


def boxes_from_files(dataset: Dataset, place: Path | None) -> Boxes:
    """Reads the box file of every picture.

    Args:
        dataset: The pictures.
        place: A folder of files named as the pictures (``.txt`` or ``.json``; in the same sub-folders, in one named as
            the pictures' folder, or in none), or one JSON file for all; None looks beside the pictures for
            NAME.boxes.txt and NAME.boxes.json.

    Raises:
        FormatError: The one file for all is not JSON or of no known kind.
        StorageError: The folder or file is not there, or no picture has a box file.
    """
    if place is not None and not place.exists():
        raise StorageError(f"there are no boxes at {place}; give a folder of .txt or .json files, or one .json file")
    if place is not None and place.is_file():
        return _from_one_file(dataset, place)
    classes = _class_list(place)
    rows: dict[int, list[Found]] = {}
    problems: list[str] = []
    files = 0
    seen = SeenFolders()
    for row in range(len(dataset)):
        path = _box_file(dataset, row, place, seen)
        if path is None:
            continue
        files += 1
        try:
            whole = dataset.full_size(row)
            text = _read(path)
            found = (
                _from_json(_parsed(text), whole) if path.suffix.lower() == ".json" else _from_yolo(text, whole, classes)
            )
            _put(rows, dataset, row, found)
        except (FormatError, StorageError) as refusal:
            problems.append(f"{printable(path.name)}: {refusal}")
    if not files:
        where = f"in {place}" if place is not None else "beside the pictures"
        example = Path(dataset.names[0]).stem
        names = f"{example}.txt or {example}.json" if place is not None else f"{example}{BESIDE}.txt"
        raise StorageError(f"no picture has a box file {where}; name them as the pictures, such as {names}")
    if not rows and problems:
        raise FormatError(f"none of the {files} box files can be used ({problems[0]}); correct them")
    return Boxes(rows=rows, problems=tuple(problems[:_MAX_PROBLEMS]), origin=f"{files} box files")


def boxes_from_names(dataset: Dataset) -> Boxes:
    """Reads ``_cx_cy_w_h`` at the end of file names: centre and size of the head in px of the whole picture.

    Raises:
        FormatError: No name ends so.
    """
    rows: dict[int, list[Found]] = {}
    problems: list[str] = []
    for row, name in enumerate(dataset.names):
        hint = _HINT.search(os.path.splitext(name)[0])
        if hint is None:
            continue
        x, y, width, height = map(int, hint.groups())
        full_width, full_height = dataset.full_size(row)
        if not (width and height and x < full_width and y < full_height):
            problems.append(f"{printable(name)}: {hint[0][1:]} is no box inside its {full_width} x {full_height} px")
            continue
        box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        _put(rows, dataset, row, [Found(name=HINT_CLASS, score=1.0, box=box)])
    if not rows:
        first = f" ({problems[0]})" if problems else ""
        raise FormatError(
            "no file name ends in a box _cx_cy_w_h (centre and size in px), such as photo_512_300_180_200.png" + first
        )
    return Boxes(rows=rows, problems=tuple(problems[:_MAX_PROBLEMS]), origin="file names")


def _put(rows: dict[int, list[Found]], dataset: Dataset, row: int, found: Sequence[Found]) -> None:
    """Adds boxes given in px of the whole picture, as px of the part that is used."""
    crop = dataset.crop(row) or (0, 0, *dataset.full_size(row))
    for item in found:
        left, top = max(item.box[0], crop[0]) - crop[0], max(item.box[1], crop[1]) - crop[1]
        right, bottom = min(item.box[2], crop[2]) - crop[0], min(item.box[3], crop[3]) - crop[1]
        if right - left >= 1 and bottom - top >= 1:
            cut = Found(name=item.name, score=item.score, box=(left, top, right, bottom))
            rows.setdefault(row, []).append(cut)


def _box_file(dataset: Dataset, row: int, place: Path | None, seen: SeenFolders) -> Path | None:
    name = dataset.names[row]
    stem = os.path.splitext(name)[0]
    own = dataset.subset_of(row).folder
    if place is None:
        return seen.first((f"{own}/{base}{BESIDE}" for base in (stem, name)), ENDINGS)
    bases = dict.fromkeys((f"{own.name}/{stem}", stem, name, os.path.basename(stem), os.path.basename(name)))
    return seen.first((f"{place}/{base}" for base in bases), ENDINGS)


def _class_list(place: Path | None) -> tuple[str, ...]:
    for name in CLASS_FILES if place is not None else ():
        path = place / name  # type: ignore[operator]
        if path.is_file():
            return tuple(line.strip() for line in _read(path).splitlines() if line.strip())
    return ()


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FormatError(f"{path.name} is larger than {MAX_BYTES >> 20} MiB, which no list of boxes is")
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as cause:
        raise FormatError(f"{path.name} is not UTF-8 text; save it again as UTF-8") from cause
    except OSError as cause:
        raise StorageError(f"{path.name} cannot be read ({cause.strerror}); check its permissions") from cause


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as cause:
        raise FormatError(f"it is not JSON ({cause})") from cause


def _from_yolo(text: str, size: tuple[int, int], classes: Sequence[str]) -> list[Found]:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        values = [_number(word) for word in words[1:]]
        if len(values) < 4 or not all(-0.01 <= value <= 1.01 for value in values):
            raise FormatError(
                f"line {number} is {line[:60]!r}; a YOLO label is: class cx cy w h, as shares 0..1 of the picture"
            )
        if len(values) in (4, 5):
            x, y, width, height = values[:4]
            box = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        else:  # a polygon of x y pairs
            box = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
        place = int(words[0]) if words[0].isdigit() else -1
        name = classes[place] if 0 <= place < len(classes) else words[0]
        score = values[4] if len(values) == 5 else 1.0
        found.append(Found(name=name, score=score, box=_in_px(box, size)))
    return found


def _from_json(value: Any, size: tuple[int, int]) -> list[Found]:
    """Boxes of one picture: a list of objects, the same under "boxes", or LabelMe's "shapes"."""
    entries = value.get("boxes", value.get("shapes")) if isinstance(value, dict) else value
    if not isinstance(entries, list):
        raise FormatError('it holds neither a list of boxes nor an object with "boxes" or "shapes"')
    return [_entry(entry, size, number) for number, entry in enumerate(entries, 1)]


def _entry(entry: Any, size: tuple[int, int], number: int) -> Found:
    if isinstance(entry, dict):
        name = next((entry[key] for key in ("name", "label", "class") if key in entry), HINT_CLASS)
        corners, score = entry.get("box", entry.get("points")), entry.get("score", 1.0)
    else:
        name, corners, score = HINT_CLASS, entry, 1.0
    if isinstance(corners, list) and corners and all(isinstance(point, list) and len(point) == 2 for point in corners):
        across, down = [_number(point[0]) for point in corners], [_number(point[1]) for point in corners]
        values = [min(across), min(down), max(across), max(down)]
    else:
        values = [_number(side) for side in corners] if isinstance(corners, list) else []
    if len(values) != 4 or not all(map(math.isfinite, values)) or values[0] >= values[2] or values[1] >= values[3]:
        raise FormatError(f"box {number} is {str(corners)[:60]}; a box is [left, top, right, bottom] with left < right")
    box = (values[0], values[1], values[2], values[3])
    shares = max(values) <= 1.0
    return Found(name=str(name), score=min(1.0, max(0.0, _number(score))), box=_in_px(box, size) if shares else box)


def _from_one_file(dataset: Dataset, path: Path) -> Boxes:
    """One JSON file for all pictures: COCO's, or an object of lists by file name."""
    try:
        value = _parsed(_read(path))
    except FormatError as refusal:
        raise FormatError(f"{path.name}: {refusal}") from refusal
    if not isinstance(value, dict):
        raise FormatError(f"{path.name} is no object; give a COCO file, or an object of box lists by file name")
    by_name: Mapping[str, Any] = dict(_coco(value, path.name)) if "annotations" in value else value
    rows: dict[int, list[Found]] = {}
    problems: list[str] = []
    named = 0
    for row, name in enumerate(dataset.names):
        base = name.rpartition("/")[2]
        key = next((form for form in (name, base, os.path.splitext(base)[0]) if form in by_name), None)
        if key is None:
            continue
        named += 1
        try:
            _put(rows, dataset, row, _from_json(by_name[key], dataset.full_size(row)))
        except FormatError as refusal:
            problems.append(f"{printable(name)}: {refusal}")
    if not named:
        raise FormatError(f"{path.name} names none of the pictures; its keys must be their file names")
    return Boxes(rows=rows, problems=tuple(problems[:_MAX_PROBLEMS]), origin=f"{path.name} ({named} pictures)")


def _coco(value: Mapping[str, Any], name: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(file name, boxes) of every picture of a COCO file."""
    try:
        classes = {entry["id"]: str(entry["name"]) for entry in value.get("categories", [])}
        files = {entry["id"]: str(entry["file_name"]).replace("\\", "/") for entry in value["images"]}
        boxes: dict[Any, list[dict[str, Any]]] = {number: [] for number in files}
        for entry in value["annotations"]:
            left, top, width, height = (float(side) for side in entry["bbox"])
            box = [left, top, left + width, top + height]
            kind = classes.get(entry["category_id"], str(entry["category_id"]))
            boxes[entry["image_id"]].append({"name": kind, "box": box, "score": entry.get("score", 1.0)})
    except (KeyError, TypeError, ValueError) as cause:
        raise FormatError(
            f"{name} is not a COCO file ({type(cause).__name__}: {cause}); it needs images, annotations with image_id, "
            "category_id and bbox, and categories"
        ) from cause
    for number, file in files.items():
        yield file, boxes[number]
        yield file.rpartition("/")[2], boxes[number]


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def _in_px(box: Box, size: tuple[int, int]) -> Box:
    return box[0] * size[0], box[1] * size[1], box[2] * size[0], box[3] * size[1]
