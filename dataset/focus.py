"""The point of a picture that the crop to its bucket keeps: faces, corners and detail instead of the middle.

Source of the weighting: ``autocrop`` of AUTOMATIC1111's web UI (weighted mean of the centres of faces, of corners and
of the most detailed part). Faces come from a detector or box files; corners are those of Shi and Tomasi, "Good
Features to Track" (1994), equation 13; detail is the entropy of grey values in tiles.
"""

import random
import struct
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import InputError
from ..core.index import Index
from ..core.params import Params, param
from ..core.progress import Progress
from ..core.seeds import derive
from .columns import frozen
from .detect_rows import Boxes, Pass, look_at
from .table import Dataset
from .words import counted, printable

MODES = ("focal point", "centre", "random")
_SIDE_PX = 192
_TILE_PX = 12
_GREYS = 32
_CORNER_QUALITY = 0.04
"""Corners weaker than this share of the strongest do not count, as in the web UI."""
_FLAT = 1e-4
_PACKED = struct.Struct("<4f")
_KIND = "focus:1"
_NUM_EXAMPLES = 5


@dataclass(frozen=True, kw_only=True)
class FocusParams(Params):
    """Where pictures are cropped to their bucket."""

    mode: str = param(
        "focal point",
        doc="focal point: around faces, corners and detail. centre: the middle, as without this node. random: a point "
        "drawn anew for each picture",
        choices=MODES,
    )
    face_weight: float = param(
        0.9, doc="How much faces draw the crop; they need boxes or a detector", minimum=0.0, maximum=1.0, step=0.05
    )
    corner_weight: float = param(0.5, doc="How much corners and edges draw it", minimum=0.0, maximum=1.0, step=0.05)
    entropy_weight: float = param(0.15, doc="How much fine detail draws it", minimum=0.0, maximum=1.0, step=0.05)
    face_classes: str = param(
        "face, head", doc="Names of the detector's classes that are faces, the best first", advanced=True
    )
    seed: int = param(0, doc="Decides the random points", minimum=0, maximum=2**53, advanced=True)


@dataclass(frozen=True, kw_only=True)
class Focused:
    """A data set with focal points, and what was done in words."""

    dataset: Dataset
    report: str


def with_focus(
    dataset: Dataset,
    params: FocusParams,
    *,
    boxes: Boxes | None = None,
    index: Index | None = None,
    progress: Progress | None = None,
) -> Focused:
    """Sets the point around which each picture is cropped to its bucket.

    Args:
        dataset: The pictures.
        params: How the point is found.
        boxes: Where faces are; None for none.
        index: Where points are remembered by content.
        progress: Told after every picture; may cancel.

    Raises:
        InputError: All weights are 0, or only faces count and there are no boxes.
    """
    if params.mode == "centre":
        note = f"crop of {counted(len(dataset), 'picture')} around the centre"
        return Focused(dataset=replace(dataset, focus=None, history=(*dataset.history, note)), report=note + ".")
    problems: tuple[str, ...] = ()
    if params.mode == "random":
        points = _random_points(dataset, params.seed)
        lines = [f"Random points for {counted(len(dataset), 'picture')}, seed {params.seed}."]
    else:
        points, lines, problems = _focal_points(dataset, params, boxes, index, progress)
    note = f"crop around {'a focal point' if params.mode == 'focal point' else 'random points'}: " + counted(
        int(np.isfinite(points[:, 0]).sum()), "picture"
    )
    lines += _examples(dataset, points)
    lines += [f"  ! {problem}" for problem in problems[:20]]
    result = replace(dataset, focus=frozen(points), history=(*dataset.history, note))
    return Focused(dataset=result, report="\n".join(lines))


def saliency(image: Image.Image) -> tuple[tuple[float, float], tuple[float, float]]:
    """Centre of the corners and centre of the detail of a picture, each (x, y) in 0..1; nan where it has none."""
    scale = min(1.0, _SIDE_PX / max(image.size))
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    grey = np.asarray(image.convert("L").resize(size, Image.Resampling.BOX), dtype=np.float32) / 255.0
    return _corner_centre(grey), _entropy_centre(grey)


def _focal_points(
    dataset: Dataset, params: FocusParams, boxes: Boxes | None, index: Index | None, progress: Progress | None
) -> tuple[NDArray[np.float32], list[str], tuple[str, ...]]:
    parts = {"faces": params.face_weight, "corners": params.corner_weight, "detail": params.entropy_weight}
    if not any(parts.values()):
        raise InputError("face_weight, corner_weight and entropy_weight are all 0; give one of them, or choose centre")
    if boxes is None and not (params.corner_weight or params.entropy_weight):
        raise InputError("only faces have a weight but no boxes are given; choose a detector, or weigh corners too")
    way = Pass(kind=_KIND, side_px=2 * _SIDE_PX, look=_look, text="Looking for focal points")
    places = range(len(dataset)) if params.corner_weight or params.entropy_weight else range(0)
    centres = np.full((len(dataset), 3, 2), np.nan)
    for row, data in look_at(dataset, places, way, index=index, progress=progress):
        centres[row, 1:] = np.array(_PACKED.unpack(data)).reshape(2, 2)
    with_face = 0
    for row, centre in (_face_centres(dataset, boxes, params.face_classes) if boxes is not None else {}).items():
        centres[row, 0] = centre
        with_face += params.face_weight > 0
    weights = np.array([params.face_weight, params.corner_weight, params.entropy_weight])
    points = weighted_points(centres, weights)
    blank = int(np.isnan(points[:, 0]).sum())
    lines = [
        f"Focal points for {len(dataset) - blank} of {counted(len(dataset), 'picture')}"
        + (f"; {blank} have none and are cropped around the centre." if blank else "."),
        "Weights: " + ", ".join(f"{name} {weight:g}" for name, weight in parts.items()) + ".",
    ]
    if boxes is not None:
        lines.append(f"A face on {counted(with_face, 'picture')}; boxes from {boxes.origin}.")
    return points, lines, (*way.problems, *(boxes.problems if boxes is not None else ()))


def weighted_points(centres: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Mean of the centres that are there, by weight.

    Args:
        centres: [pictures, parts, 2], nan where a part is missing.
        weights: [parts].

    Returns:
        float32 [pictures, 2] in 0..1; nan where every part is missing or weighs nothing.
    """
    there = np.isfinite(centres).all(axis=2)
    factors = np.where(there, weights, 0.0)
    total = factors.sum(axis=1, keepdims=True)
    points = (np.nan_to_num(centres) * factors[..., None]).sum(axis=1) / np.where(total > 0, total, 1.0)
    return np.where(total > 0, np.clip(points, 0.0, 1.0), np.nan).astype(np.float32)


def _face_centres(dataset: Dataset, boxes: Boxes, classes: str) -> dict[int, tuple[float, float]]:
    """Mean centre of the faces of each picture that has any, of the first class that it has."""
    wanted = [name.strip().casefold() for name in classes.split(",") if name.strip()]
    centres: dict[int, tuple[float, float]] = {}
    for row, found in boxes.rows.items():
        for name in wanted:
            faces = [item.box for item in found if item.name.casefold() == name]
            if faces:
                x = sum(left + right for left, _, right, _ in faces) / (2 * len(faces))
                y = sum(top + bottom for _, top, _, bottom in faces) / (2 * len(faces))
                centres[row] = x / int(dataset.width_px[row]), y / int(dataset.height_px[row])
                break
    return centres


def _look(image: Image.Image) -> bytes:
    corners, detail = saliency(image)
    return _PACKED.pack(*corners, *detail)


def _corner_centre(grey: NDArray[np.floating[Any]]) -> tuple[float, float]:
    """Mean place of the corners: local maxima of the smaller eigenvalue of the structure tensor."""
    down, right = np.gradient(grey)
    xx, yy, xy = _blurred(right * right), _blurred(down * down), _blurred(right * down)
    smaller = (xx + yy) / 2 - np.sqrt(np.maximum(((xx - yy) / 2) ** 2 + xy**2, 0.0))
    strongest = float(smaller.max())
    if strongest < _FLAT:
        return np.nan, np.nan
    peaks = (smaller >= _highest_around(smaller)) & (smaller >= _CORNER_QUALITY * strongest)
    rows, columns = np.nonzero(peaks)
    return (float(columns.mean()) + 0.5) / grey.shape[1], (float(rows.mean()) + 0.5) / grey.shape[0]


def _entropy_centre(grey: NDArray[np.float32]) -> tuple[float, float]:
    """Centre of the tiles weighed by how much more entropy they have than the tile in the middle of all."""
    levels = np.minimum((grey * _GREYS).astype(np.int64), _GREYS - 1)
    down, across = max(1, grey.shape[0] // _TILE_PX), max(1, grey.shape[1] // _TILE_PX)
    row = np.minimum(np.arange(grey.shape[0]) * down // grey.shape[0], down - 1)
    column = np.minimum(np.arange(grey.shape[1]) * across // grey.shape[1], across - 1)
    tile = row[:, None] * across + column[None, :]
    counts = np.bincount((tile * _GREYS + levels).reshape(-1), minlength=down * across * _GREYS)
    shares = counts.reshape(-1, _GREYS) / np.maximum(1, counts.reshape(-1, _GREYS).sum(axis=1, keepdims=True))
    entropy = -(shares * np.log2(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    above = np.maximum(entropy - np.median(entropy), 0.0)
    if above.sum() <= _FLAT:
        return np.nan, np.nan
    above = above.reshape(down, across) / above.sum()
    x = float((above.sum(axis=0) * (np.arange(across) + 0.5)).sum()) / across
    return x, float((above.sum(axis=1) * (np.arange(down) + 0.5)).sum()) / down


def _blurred(values: NDArray[Any]) -> NDArray[Any]:
    """Mean over 5 x 5."""
    for axis in (0, 1):
        values = _shifted(values, axis).mean(axis=0)
    return values


def _highest_around(values: NDArray[Any]) -> NDArray[Any]:
    """Maximum over 5 x 5."""
    for axis in (0, 1):
        values = _shifted(values, axis).max(axis=0)
    return values


def _shifted(values: NDArray[Any], axis: int) -> NDArray[Any]:
    """Five copies, moved by -2 to 2 along an axis, edges repeated."""
    padded = np.pad(values, [(2, 2) if place == axis else (0, 0) for place in (0, 1)], mode="edge")
    return np.stack([np.take(padded, range(step, step + values.shape[axis]), axis=axis) for step in range(5)])


def _random_points(dataset: Dataset, seed: int) -> NDArray[np.float32]:
    points = np.empty((len(dataset), 2), dtype=np.float32)
    for row, name in enumerate(dataset.names):
        draw = random.Random(derive(seed, "focus", dataset.subset_of(row).folder.name, name)).random
        points[row] = draw(), draw()
    return points


def _examples(dataset: Dataset, points: NDArray[np.float32]) -> list[str]:
    rows = np.flatnonzero(np.isfinite(points[:, 0]))[:_NUM_EXAMPLES]
    return [f"  {printable(dataset.names[int(row)])}: {points[row, 0]:.2f}, {points[row, 1]:.2f}" for row in rows]
