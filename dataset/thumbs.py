"""Small versions of pictures, decoded as cheaply as their format allows (JPEG's reduced decoding)."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..core.progress import Progress, SilentProgress
from . import images
from .images import BadPicture

Crop = tuple[int, int, int, int]
"""(left, top, right, bottom) in px of the upright picture."""

WORKERS = min(4, os.cpu_count() or 1)
"""Pictures decoded at once; each may take 4 bytes for every pixel of its full size."""


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """A picture made small.

    Attributes:
        image: Upright RGB on white; its longer side is at most what was asked for.
        source: (width, height) of the upright picture (or crop) in px before.
        transparent: Share of it that is transparent, 0 to 1; None without an alpha channel.
    """

    image: Image.Image
    source: tuple[int, int]
    transparent: float | None


def load_small(path: Path | str, side_px: int, *, crop: Crop | None = None) -> Shrunk:
    """Decodes a picture to a small upright RGB image on white, with averaged areas.

    Args:
        path: The picture.
        side_px: Its longer side becomes at most this long; small pictures stay as they are.
        crop: Only this part of it.

    Raises:
        BadPicture: It cannot be decoded; the reason is a person's.
    """
    images._size_bytes(path)
    try:
        with Image.open(path, formats=images._formats()) as image:
            images._check_kind(path, image)
            size = images._upright_size(image)
            images.check_size(path, *size)
            part = crop or (0, 0, *size)
            longer_px = max(part[2] - part[0], part[3] - part[1])
            if image.format in ("JPEG", "MPO") and longer_px > 2 * side_px:
                factor = 2 * side_px / longer_px
                image.draft(None, (max(1, round(image.width * factor)), max(1, round(image.height * factor))))
            # Pillow turns a TIFF itself while it loads it.
            upright = None if image.format == "TIFF" else images._TRANSPOSES.get(images._orientation(image))
            pixels = image.convert("RGBA") if images._has_alpha(image) else images._to_rgb(image)
            pixels = pixels if upright is None else pixels.transpose(upright)
            small, transparent = _on_white(_shrunk(pixels, part, size, side_px))
    except BadPicture:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged input
        raise BadPicture(path, images._reason_of(error, path)) from error
    return Shrunk(image=small, source=(part[2] - part[0], part[3] - part[1]), transparent=transparent)


def load_all_small(
    paths: Sequence[Path],
    side_px: int,
    *,
    crops: Sequence[Crop | None] | None = None,
    progress: Progress | None = None,
    text: str = "Making small pictures",
) -> Iterator[Shrunk | str]:
    """Small versions of several pictures in their order, decoded several at once; the reason where one is damaged.

    Args:
        paths: The pictures.
        side_px: Longest side of each.
        crops: For each the part that is wanted, or None.
        progress: Told after every picture; may cancel.
        text: What is said while it goes on.
    """
    progress = progress or SilentProgress()
    parts = crops if crops is not None else [None] * len(paths)
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        jobs = [pool.submit(_small_or_reason, path, side_px, part) for path, part in zip(paths, parts, strict=True)]
        try:
            for done, job in enumerate(jobs):
                progress.update(done, len(jobs), text)
                yield job.result()
        finally:
            for job in jobs:
                job.cancel()


def _small_or_reason(path: Path, side_px: int, crop: Crop | None) -> Shrunk | str:
    try:
        return load_small(path, side_px, crop=crop)
    except BadPicture as refusal:
        return refusal.reason


def _shrunk(pixels: Image.Image, part: Crop, size: tuple[int, int], side_px: int) -> Image.Image:
    """A part (in px of the whole picture) of pixels that may be a reduced version of it."""
    factor_x, factor_y = pixels.width / size[0], pixels.height / size[1]
    box = (part[0] * factor_x, part[1] * factor_y, part[2] * factor_x, part[3] * factor_y)
    width_px, height_px = part[2] - part[0], part[3] - part[1]
    scale = min(1.0, side_px / max(width_px, height_px))
    wanted = (max(1, round(width_px * scale)), max(1, round(height_px * scale)))
    # Averaging areas: for RGBA Pillow weighs colours by their alpha.
    return pixels.resize(wanted, Image.Resampling.BOX, box=box)


def _on_white(small: Image.Image) -> tuple[Image.Image, float | None]:
    if small.mode != "RGBA":
        return small, None
    alpha = small.getchannel("A")
    white = Image.new("RGB", small.size, (255, 255, 255))
    white.paste(small, mask=alpha)
    return white, float(1.0 - np.asarray(alpha, dtype=np.float64).mean() / 255.0)
