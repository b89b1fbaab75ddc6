"""Finding heads and persons in pictures with a detector graph of the YOLO kind that the user brings.

Three layouts of the output are read, told apart by their shape and the number of classes: rows of YOLOv8 and later
[1, 4 + classes, anchors], of YOLOv5 and v7 [1, anchors, 5 + classes], and of graphs with the selection built in
[1, boxes, 6]. Letterboxing, selection and scaling back are done here.
"""

import ast
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import FormatError, StorageError
from ..core.files import known_sha256
from ..core.onnx import OnnxSession, OnnxValue, open_session

Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in px of a picture, as floating point numbers."""

NAME_FILES = ("{stem}.txt", "classes.txt", "names.txt", "labels.txt")
"""Files beside a graph that may hold its class names, one per line."""
FREE_SIZE_PX = 640
"""Side of the input where the graph leaves it free; what YOLO models are trained at."""
PAD_GREY = 114
LEAST_SCORE = 0.05
"""Boxes below are never kept, so that a stored result serves every threshold above."""
MAX_OVERLAP = 0.45
MAX_CANDIDATES = 3000
_INPUT_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_opened: dict[tuple[str, int, int], "Detector"] = {}


@dataclass(frozen=True, kw_only=True)
class Found:
    """One thing that was found in a picture.

    Attributes:
        name: What it is, e.g. ``head``.
        score: How sure, 0..1.
        box: Where, in px of the picture.
    """

    name: str
    score: float
    box: Box


class Detector:
    """An opened detector; see :func:`open_detector`."""

    def __init__(self, *, name: str, session: OnnxSession, names: tuple[str, ...], identity: str) -> None:
        """Checks that it takes pictures and gives boxes.

        Raises:
            FormatError: It does not.
        """
        self.name = name
        self.names = names
        self.identity = identity
        self._session = session
        self._input = session.inputs[0]
        self.height_px, self.width_px = _input_size(self._input, name)
        output = session.outputs[0]
        if len(output.shape) != 3:
            raise FormatError(
                f"the graph of {name} gives {output.name} of shape {list(output.shape)}; a YOLO detector gives "
                "[1, 4 + classes, anchors] or [1, anchors, 5 + classes]: export the model for detection, without masks"
            )

    @property
    def providers(self) -> tuple[str, ...]:
        """What really computes, first choice first."""
        return self._session.providers

    def find(self, image: Image.Image, *, least_score: float = LEAST_SCORE) -> list[Found]:
        """Finds everything in a picture, surest first.

        Args:
            image: An RGB picture of any size.
            least_score: Boxes below this score are left out.

        Raises:
            FormatError: The graph failed or gave what is no result of a detector.
        """
        pixels, scale, (left, top) = letterbox(image, self.width_px, self.height_px)
        values = pixels.transpose(2, 0, 1)[None]
        kind = _INPUT_TYPES[self._input.dtype]
        feed = values if kind is np.uint8 else (values.astype(np.float32) / 255.0).astype(kind)
        output = np.asarray(self._session.run({self._input.name: np.ascontiguousarray(feed)})[0], dtype=np.float32)
        boxes, scores, classes = decode(output, len(self.names), name=self.name)
        if boxes.size and float(np.abs(boxes).max()) <= 2.0:  # shares of the input instead of px
            boxes = boxes * np.array([self.width_px, self.height_px] * 2, dtype=np.float32)
        boxes = (boxes - np.array([left, top] * 2, dtype=np.float32)) / np.float32(scale)
        sure = np.flatnonzero(scores >= max(least_score, LEAST_SCORE))
        sure = sure[np.argsort(-scores[sure], kind="stable")[:MAX_CANDIDATES]]
        kept = sure[select(boxes[sure], scores[sure], classes[sure])]
        return [
            Found(name=self._class_name(int(classes[place])), score=float(scores[place]), box=box)
            for place in kept
            if (box := _clipped(boxes[place], image.size)) is not None
        ]

    def _class_name(self, number: int) -> str:
        return self.names[number] if number < len(self.names) else str(number)


def open_detector(path: Path, *, threads: int | None = None) -> Detector:
    """Opens a detector from its graph, or from a folder that holds one; an opened one is kept and given again.

    Class names come from the graph's metadata (``names``), else from a text file beside it, else they are numbers.

    Args:
        path: The ``.onnx`` file or its folder.
        threads: CPU threads; None leaves the choice to onnxruntime.

    Raises:
        StorageError: There is no graph; the message says which file belongs where.
        FormatError: It is no detector.
        MissingLibraryError: onnxruntime is not installed.
    """
    graph = _graph_path(Path(path))
    status = graph.stat()
    key = (str(graph), status.st_size, status.st_mtime_ns)
    if key not in _opened:
        session = open_session(graph, threads=threads)
        name = graph.parent.name if graph.name == "model.onnx" else graph.stem
        names = class_names(session.metadata, graph)
        detector = Detector(name=name, session=session, names=names, identity=known_sha256(graph)[:16])
        _opened.clear()  # one model at a time
        _opened[key] = detector
    return _opened[key]


def class_names(metadata: "dict[str, str]", graph: Path) -> tuple[str, ...]:
    """Names of a detector's classes by number; empty where nobody says them.

    Raises:
        FormatError: The metadata or the text file with them is damaged.
    """
    if "names" in metadata:
        return _names_of(metadata["names"], graph.name)
    for pattern in NAME_FILES:
        path = graph.with_name(pattern.format(stem=graph.stem))
        if path.is_file():
            try:
                lines = path.read_text(encoding="utf-8-sig").splitlines()
            except UnicodeDecodeError as cause:
                raise FormatError(f"{path.name} is not UTF-8 text; save the class names again as UTF-8") from cause
            return tuple(line.strip() for line in lines if line.strip())
    return ()


def letterbox(image: Image.Image, width_px: int, height_px: int) -> tuple[NDArray[np.uint8], float, tuple[int, int]]:
    """Puts a picture into the middle of a grey input of the given size, in its proportions.

    Source: ``letterbox`` of Ultralytics' YOLO (grey 114, rounding of the borders).

    Returns:
        uint8 [height, width, 3], the scale, and (left, top) of the picture in the input.
    """
    scale = min(width_px / image.width, height_px / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    small = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR, reducing_gap=3.0)
    left, top = round((width_px - size[0]) / 2 - 0.1), round((height_px - size[1]) / 2 - 0.1)
    canvas = np.full((height_px, width_px, 3), PAD_GREY, dtype=np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = np.asarray(small.convert("RGB"))
    return canvas, scale, (left, top)


def decode(
    output: NDArray[np.float32], num_names: int, *, name: str = "the detector"
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
    """Reads the raw output of a detector.

    Args:
        output: float32 [1, ., .] in one of the three layouts; see the module.
        num_names: How many class names are known, 0 for none.
        name: The detector, for messages.

    Returns:
        Boxes float32 [n, 4] as left, top, right, bottom in px of the input, scores float32 [n], classes int64 [n].

    Raises:
        FormatError: The shape fits no layout or not the class names, or the numbers are no scores.
    """
    if output.ndim != 3 or output.shape[0] != 1:
        raise FormatError(f"the graph of {name} gave shape {list(output.shape)}; one picture gives [1, ., .]")
    rows = output[0]
    layout = "selected" if _is_selected(rows) else _layout(rows.shape, num_names)
    if layout is None:
        raise FormatError(_no_layout(rows.shape, num_names, name))
    if layout == "selected":
        boxes, scores, classes = rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)
    else:
        if layout == "v8":
            rows = rows.T
        first = 5 if layout == "v5" else 4
        by_class = rows[:, first:]
        classes = by_class.argmax(axis=1)
        scores = by_class[np.arange(len(rows)), classes] * (rows[:, 4] if layout == "v5" else np.float32(1))
        half = rows[:, 2:4] / 2
        boxes = np.concatenate([rows[:, :2] - half, rows[:, :2] + half], axis=1)
    if not np.isfinite(rows).all() or scores.min(initial=0.0) < -1e-3 or scores.max(initial=0.0) > 1.001:
        raise FormatError(
            f"the graph of {name} gives scores outside 0..1, so its output is not that of a finished YOLO export; "
            "export it with the library it was trained with"
        )
    return boxes, scores, classes


def select(boxes: NDArray[Any], scores: NDArray[Any], classes: NDArray[Any]) -> list[int]:
    """Drops boxes that overlap a surer one of their class by more than :data:`MAX_OVERLAP` (greedy suppression).

    Returns:
        Places of the boxes that stay, surest first.
    """
    order = np.argsort(-scores, kind="stable")
    areas = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=1)
    kept: list[int] = []
    while len(order):
        best, rest = int(order[0]), order[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[rest, :2]), np.minimum(boxes[best, 2:], boxes[rest, 2:])
        both = np.prod(np.clip(high - low, 0, None), axis=1)
        overlap = both / np.maximum(areas[best] + areas[rest] - both, 1e-9)
        order = rest[(overlap <= MAX_OVERLAP) | (classes[rest] != classes[best])]
    return kept


def to_bytes(found: Sequence[Found]) -> bytes:
    """What was found as it is remembered; scores and places are rounded to what matters."""
    rows = [[item.name, round(item.score, 4), *(round(side, 2) for side in item.box)] for item in found]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode("utf-8")


def from_bytes(data: bytes) -> list[Found]:
    """What :func:`to_bytes` wrote."""
    return [
        Found(name=name, score=score, box=(left, top, right, bottom))
        for name, score, left, top, right, bottom in json.loads(data)
    ]


def _is_selected(rows: NDArray[np.float32]) -> bool:
    """Whether rows are left, top, right, bottom, score, class: six columns, the last of whole numbers."""
    if rows.shape[1] != 6:
        return False
    ordered = bool((rows[:, 2] >= rows[:, 0]).all() and (rows[:, 3] >= rows[:, 1]).all())
    return ordered and bool((rows[:, 5] == np.rint(rows[:, 5])).all())


def _layout(shape: tuple[int, ...], num_names: int) -> str | None:
    first, second = shape
    if num_names:
        if first == 4 + num_names and second != 5 + num_names:
            return "v8"
        if second == 5 + num_names:
            return "v5"
        return "v8 rows" if second == 4 + num_names else None
    if 5 <= first < second:
        return "v8"
    return "v5" if 6 <= second < first else None


def _no_layout(shape: tuple[int, ...], num_names: int, name: str) -> str:
    if num_names:
        return (
            f"the graph of {name} gives {list(shape)} per picture, which does not fit its {num_names} class names "
            f"(expected [{4 + num_names}, anchors] or [anchors, {5 + num_names}]); correct the list of class names"
        )
    return (
        f"the graph of {name} gives {list(shape)} per picture; a YOLO detector gives [4 + classes, anchors] or "
        "[anchors, 5 + classes]: export the model for detection"
    )


def _names_of(text: str, file: str) -> tuple[str, ...]:
    """Class names out of metadata: a Python or JSON dictionary by number, or a list."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError) as cause:
        raise FormatError(f"the class names in {file} cannot be read ({text[:60]!r}); put them into a .txt") from cause
    if isinstance(value, dict) and value:
        numbered = {int(number): str(name) for number, name in value.items() if str(number).isdigit()}
        return tuple(numbered.get(number, str(number)) for number in range(max(numbered, default=-1) + 1))
    if isinstance(value, (list, tuple)):
        return tuple(str(name) for name in value)
    raise FormatError(f"the class names in {file} are {text[:60]!r}, not a list; put them into a .txt beside it")


def _graph_path(path: Path) -> Path:
    if path.is_dir():
        found = sorted(path.glob("*.onnx"))
        usual = [graph for graph in found if graph.name == "model.onnx"] or found
        if len(usual) == 1:
            return usual[0]
        problem = "holds no .onnx file" if not usual else f"holds {len(usual)} .onnx files"
        raise StorageError(f"the detector folder {path} {problem}; put one there: a detection model exported to ONNX")
    if not path.is_file():
        raise StorageError(
            f"there is no detector {path}; put a detection model exported to ONNX there (YOLOv5 to v11), and its class "
            "names beside it as a .txt where the file does not hold them"
        )
    return path


def _input_size(node: OnnxValue, name: str) -> tuple[int, int]:
    """Height and width that the graph takes, in px."""
    fits = len(node.shape) == 4 and node.shape[0] in (1, None) and node.shape[1] in (3, None)
    if not fits or node.dtype not in _INPUT_TYPES:
        raise FormatError(
            f"the graph of {name} takes {node.dtype} of shape {list(node.shape)}; a YOLO detector takes pictures as "
            "tensor(float) [1, 3, height, width]"
        )
    return node.shape[2] or FREE_SIZE_PX, node.shape[3] or FREE_SIZE_PX


def _clipped(box: NDArray[np.float32], size: tuple[int, int]) -> Box | None:
    """A box cut at the picture's borders; None when less than a pixel is left."""
    left, right = (min(max(0.0, float(box[place])), float(size[0])) for place in (0, 2))
    top, bottom = (min(max(0.0, float(box[place])), float(size[1])) for place in (1, 3))
    return (left, top, right, bottom) if right - left >= 1.0 and bottom - top >= 1.0 else None
