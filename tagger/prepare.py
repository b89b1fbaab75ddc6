"""Pictures as a tagger's graph wants them."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .taggers._spec import Pad, TaggerSpec

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

    Transparent parts become white; the picture is made square at full size and then resized, in that order, because
    the published thresholds were measured so.

    Args:
        image: Any Pillow picture; EXIF rotation is applied.
        spec: The tagger's facts.
        height_px: Height the graph takes.
        width_px: Width the graph takes.

    Returns:
        Array [height, width, 3] or [3, height, width], float32.
    """
    picture = pad_square(flatten(image), spec.pad)
    if picture.size != (width_px, height_px):
        picture = picture.resize((width_px, height_px), _FILTERS[spec.resample])
    pixels = np.asarray(picture, dtype=np.float32)
    if spec.channels == "BGR":
        pixels = pixels[:, :, ::-1]
    pixels = pixels * np.float32(spec.scale / 255.0)
    pixels = (pixels - np.asarray(spec.mean, np.float32)) / np.asarray(spec.deviation, np.float32)
    if spec.layout == "NCHW":
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels, dtype=np.float32)


def flatten(image: Image.Image) -> Image.Image:
    """Return a picture as RGB, upright, with what is transparent on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, (255, 255, 255, 255)), layer).convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        return Image.fromarray((np.asarray(image).astype(np.float64) / 257.0).clip(0, 255).astype(np.uint8)).convert(
            "RGB"
        )
    return image.convert("RGB")


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
    if image.size == (side, side):
        return image
    left, top = (side - image.width) // 2, (side - image.height) // 2
    if pad == "edge":
        rest = ((top, side - image.height - top), (left, side - image.width - left), (0, 0))
        return Image.fromarray(np.pad(np.asarray(image), rest, mode="edge"))
    square = Image.new("RGB", (side, side), _colour(image, pad))
    square.paste(image, (left, top))
    return square


def _smaller(image: Image.Image, side_px: int) -> Image.Image:
    """The picture with its longer side of the given length, in its proportions, at least one pixel wide."""
    factor = side_px / max(image.size)
    width_px, height_px = (max(1, round(length * factor)) for length in image.size)
    return image.resize((width_px, height_px), Image.Resampling.BOX)


def _colour(image: Image.Image, pad: Pad) -> tuple[int, ...]:
    if pad == "mean":
        means: Any = np.asarray(image).reshape(-1, 3).mean(axis=0)
        return tuple(round(float(value)) for value in means)
    return {"white": (255, 255, 255), "black": (0, 0, 0)}[pad]
