"""Pictures as a tagger's graph wants them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..dataset.images import upright_rgb
from .taggers._spec import Pad, TaggerSpec

PREPARE_VERSION = 2
"""Part of the key of every stored score: raised when the same file comes to reach a graph otherwise than before."""

_FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
}

SQUARE_PX = 8192
"""Side up to which every picture is padded at full size; a larger square may hold twice the picture's own pixels."""


def prepare(image: Image.Image, spec: TaggerSpec, *, height_px: int, width_px: int) -> NDArray[np.float32]:
    """Return a picture as the graph's input, without its batch axis.

    Transparent parts become white. Most taggers want the picture made square at full size and then resized, some the
    other way round (``fit_first``); the published thresholds were measured with the one or the other.

    Args:
        image: Any Pillow picture; EXIF rotation is applied.
        spec: The tagger's facts.
        height_px: Height the graph takes.
        width_px: Width the graph takes.

    Returns:
        Array [height, width, 3] or [3, height, width], float32.
    """
    is_ready = image.mode == "RGB" and not image.info and type(image) is Image.Image  # as `load_image` gives it
    picture = image if is_ready else upright_rgb(image)
    if spec.fit_first:
        picture = pad_to(fit(picture, width_px, height_px, spec), width_px, height_px, spec.pad)
    else:
        picture = pad_square(picture, spec.pad)
        if picture.size != (width_px, height_px):
            picture = picture.resize((width_px, height_px), _FILTERS[spec.resample])
    pixels = np.asarray(picture)
    if spec.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    values = np.ascontiguousarray(pixels, dtype=np.float32)
    if spec.scale != 255.0:
        values *= np.float32(spec.scale / 255.0)
    shape = (3, 1, 1) if spec.layout == "NCHW" else (1, 1, 3)
    if any(spec.mean):
        values -= np.asarray(spec.mean, np.float32).reshape(shape)
    if any(part != 1.0 for part in spec.deviation):
        values /= np.asarray(spec.deviation, np.float32).reshape(shape)
    return values


def fit(image: Image.Image, width_px: int, height_px: int, spec: TaggerSpec) -> Image.Image:
    """Return a picture scaled in its proportions to just fit; sides are rounded down but never to nothing."""
    factor = min(width_px / image.width, height_px / image.height)
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image if size == image.size else image.resize(size, _FILTERS[spec.resample])


def pad_square(image: Image.Image, pad: Pad) -> Image.Image:
    """Return a picture in the middle of a square of its longer side; unchanged for ``none``.

    A very long picture is made smaller first: a square of 60,000 px would take 10 GiB to end at some hundred pixels.
    """
    if pad == "none":
        return image
    most_px = max(SQUARE_PX, math.isqrt(2 * image.width * image.height))
    if max(image.size) > most_px:
        image = _smaller(image, most_px)
    side = max(image.size)
    return pad_to(image, side, side, pad)


def pad_to(image: Image.Image, width_px: int, height_px: int, pad: Pad) -> Image.Image:
    """Return a picture in the middle of a canvas; what is over goes right and below."""
    if image.size == (width_px, height_px) or pad == "none":
        return image
    left, top = (width_px - image.width) // 2, (height_px - image.height) // 2
    if pad == "edge":
        rest = ((top, height_px - image.height - top), (left, width_px - image.width - left), (0, 0))
        return Image.fromarray(np.pad(np.asarray(image), rest, mode="edge"))
    canvas = Image.new("RGB", (width_px, height_px), _colour(image, pad))
    canvas.paste(image, (left, top))
    return canvas


def _smaller(image: Image.Image, side_px: int) -> Image.Image:
    """The picture with its longer side of the given length, in its proportions, at least one pixel wide."""
    factor = side_px / max(image.size)
    width_px, height_px = (max(1, round(length * factor)) for length in image.size)
    return image.resize((width_px, height_px), Image.Resampling.BOX)


def _colour(image: Image.Image, pad: Pad) -> tuple[int, ...]:
    if isinstance(pad, tuple):
        return pad
    if pad == "mean":
        means: Any = np.asarray(image).reshape(-1, 3).mean(axis=0)
        return tuple(round(float(value)) for value in means)
    return {"white": (255, 255, 255), "black": (0, 0, 0)}[pad]
