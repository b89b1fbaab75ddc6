"""Small pictures and data set folders for tests."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image


def save_picture(path: Path, size: tuple[int, int] = (96, 64), *, shade: int = 0, **options: object) -> Path:
    """Writes a small RGB gradient, different for every shade, in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(gradient(size, shade=shade)).save(path, **options)
    return path


def gradient(size: tuple[int, int], *, shade: int = 0) -> np.ndarray:
    """Pixels uint8 [height, width, 3]: red grows to the right, green downwards, blue is the shade."""
    width, height = size
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = np.linspace(0, 255, width, dtype=np.uint8)[None, :]
    pixels[..., 1] = np.linspace(0, 255, height, dtype=np.uint8)[:, None]
    pixels[..., 2] = shade % 256
    return pixels


def make_folder(root: Path, captions: Mapping[str, str | None], size: tuple[int, int] = (96, 64)) -> Path:
    """Writes a picture for every name, and its caption beside it where there is one."""
    root.mkdir(parents=True, exist_ok=True)
    for shade, (name, caption) in enumerate(captions.items()):
        path = save_picture(root / name, size, shade=shade)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return root


def png_header_only(width_px: int, height_px: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width_px, height_px, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )
