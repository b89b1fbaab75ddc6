"""Sizes of pictures by the thousand: straight from the first bytes where that is safe, else through Pillow.

A plain PNG or JPEG is read in one go; whatever is unusual (EXIF, XMP, several frames, a missing end mark) takes the
careful way of :func:`images.read_header`. Read headers are remembered by (path, size, time) in the index.
"""

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

from ..core.index import Index
from .images import BadPicture, PictureHeader, check_size, content_hash, read_header

HEADER_KIND = "header:1"
CONTENT_KIND = "content:1"
MODES = ("", "1", "L", "P", "RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr", "HSV", "RGBX", "RGBa", "La", "I", "F", "I;16")
WORKERS = min(8, 2 * (os.cpu_count() or 1))
"""Threads that read headers: files on a slow disk or a network are waited for together."""
FILES_AT_ONCE = 2048
"""Files between two looks for Cancel, and between two transactions of the index."""

_ROW = struct.Struct("<IIBBB")
_HEAD_BYTES = 4096
_TAIL_BYTES = 1024
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_PNG_PLAIN_CHUNKS = frozenset(
    [b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs", b"tIME", b"hIST", b"cICP"]
)
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_SIZES = frozenset([0xC0, 0xC1, 0xC2])
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class PictureFile(NamedTuple):
    """A file as a scan found it."""

    path: str
    size_bytes: int
    mtime_ns: int


def file_key(file: PictureFile) -> bytes:
    """Key of what is remembered about a file as long as its size and time stay the same."""
    return f"{file.path}\0{file.size_bytes}\0{file.mtime_ns}".encode("utf-8", "surrogatepass")


def read_headers(
    files: Sequence[PictureFile], *, index: Index | None = None, verify: bool = False, pool: ThreadPoolExecutor
) -> list[PictureHeader | BadPicture]:
    """Headers of some files (a few thousand at most), from the index or the disk; refusals stand in their places.

    Args:
        files: The files.
        index: Where headers are remembered; refusals are not, so a repaired disk is noticed.
        verify: Decode every picture; nothing is taken from the index then.
        pool: Threads to read with.
    """
    keys = [file_key(file) for file in files]
    known: list[bytes | None] = [None] * len(files)
    if index is not None and not verify:
        known = index.get_many(HEADER_KIND, keys)
    result: list[PictureHeader | BadPicture | None] = [None if row is None else unpacked(row) for row in known]
    missing = [place for place, header in enumerate(result) if header is None]

    def read(place: int) -> PictureHeader | BadPicture:
        try:
            return quick_header(files[place].path, files[place].size_bytes, verify=verify)
        except BadPicture as refusal:
            return refusal

    for place, header in zip(missing, in_threads(read, missing, pool), strict=True):
        result[place] = header
    if index is not None and missing:
        fresh = ((place, result[place]) for place in missing)
        index.put_many(
            HEADER_KIND, [(keys[place], packed(row)) for place, row in fresh if isinstance(row, PictureHeader)]
        )
    return [header for header in result if header is not None]


def in_threads(work: Callable[[_Item], _Result], items: Sequence[_Item], pool: ThreadPoolExecutor) -> list[_Result]:
    """``work`` of every item in order; a few items per job, since a job costs more than a small file."""
    step = max(1, min(64, -(-len(items) // WORKERS)))
    parts = [items[start : start + step] for start in range(0, len(items), step)]
    return [result for part in pool.map(lambda part: [work(item) for item in part], parts) for result in part]


def content_digests(
    files: Iterable[PictureFile], *, index: Index | None = None, status: Callable[[], None] | None = None
) -> Iterator[bytes | BadPicture]:
    """Content hash (16 bytes, see :func:`images.content_hash`) of each file, read only where it is not remembered.

    Args:
        files: The files.
        index: Where the hashes are remembered.
        status: Called before each file that is read; may cancel, what was read until then is kept.
    """
    batch: list[PictureFile] = []
    for file in files:
        batch.append(file)
        if len(batch) == FILES_AT_ONCE:
            yield from _digests_of(batch, index, status)
            batch = []
    yield from _digests_of(batch, index, status)


def _digests_of(
    files: Sequence[PictureFile], index: Index | None, status: Callable[[], None] | None
) -> list[bytes | BadPicture]:
    keys = [file_key(file) for file in files]
    known = [None] * len(files) if index is None else index.get_many(CONTENT_KIND, keys)
    result: list[bytes | BadPicture] = []
    fresh: list[tuple[bytes, bytes]] = []
    try:
        for file, key, digest in zip(files, keys, known, strict=True):
            if digest is not None:
                result.append(digest)
                continue
            if status is not None:
                status()
            try:
                result.append(bytes.fromhex(content_hash(file.path)))
                fresh.append((key, result[-1]))  # type: ignore[arg-type]
            except BadPicture as refusal:
                result.append(refusal)
    finally:
        if index is not None:
            index.put_many(CONTENT_KIND, fresh)
    return result


def packed(header: PictureHeader) -> bytes:
    """A header as a row of the index."""
    mode = MODES.index(header.mode) if header.mode in MODES else 0
    return _ROW.pack(header.width_px, header.height_px, header.has_alpha, mode, header.orientation)


def unpacked(row: bytes) -> PictureHeader | None:
    """A header out of a row of the index; None when it is not such a row."""
    if len(row) != _ROW.size:
        return None
    width_px, height_px, has_alpha, mode, orientation = _ROW.unpack(row)
    return PictureHeader(
        width_px=width_px,
        height_px=height_px,
        mode=MODES[mode] if mode < len(MODES) else "",
        has_alpha=bool(has_alpha),
        orientation=orientation,
    )


def quick_header(path: Path | str, size_bytes: int, *, verify: bool = False) -> PictureHeader:
    """As :func:`images.read_header`, several times faster for plain PNG and JPEG files.

    Raises:
        BadPicture: See there.
    """
    if not verify:
        try:
            with open(path, "rb") as file:
                head = file.read(_HEAD_BYTES)
                tail = head[-_TAIL_BYTES:]
                if size_bytes > _HEAD_BYTES:
                    file.seek(max(0, size_bytes - _TAIL_BYTES))
                    tail = file.read(_TAIL_BYTES)
        except OSError:  # said with its reason by the careful way
            return read_header(path)
        header = _png(head, tail) if head.startswith(b"\x89PNG\r\n\x1a\n") else _jpeg(head, tail)
        if header is not None:
            check_size(path, header.width_px, header.height_px)
            return header
    return read_header(path, verify=verify)


def _png(head: bytes, tail: bytes) -> PictureHeader | None:
    """Header of a plain PNG; None when anything about it is unusual."""
    if len(head) < 33 or head[12:16] != b"IHDR" or b"IEND" not in tail:
        return None
    width_px, height_px, depth, colour = struct.unpack(">IIBB", head[16:26])
    if colour not in _PNG_MODES or width_px == 0 or height_px == 0:
        return None
    transparent = colour in (4, 6)
    place = 33
    while True:
        if place + 8 > len(head):
            return None
        length, kind = struct.unpack(">I4s", head[place : place + 8])
        if kind == b"IDAT":
            break
        if kind not in _PNG_PLAIN_CHUNKS:  # EXIF, text (may hold EXIF or XMP), animation
            return None
        transparent = transparent or kind == b"tRNS"
        place += 12 + length
    mode = _PNG_MODES[colour]
    if colour == 0 and depth in (1, 16):
        mode = "1" if depth == 1 else "I;16"
    return PictureHeader(width_px=width_px, height_px=height_px, mode=mode, has_alpha=transparent)


def _jpeg(head: bytes, tail: bytes) -> PictureHeader | None:
    """Header of a plain JPEG; None when anything about it is unusual."""
    if not head.startswith(b"\xff\xd8\xff") or b"\xff\xd9" not in tail:
        return None
    place = 2
    while place + 10 <= len(head):
        if head[place] != 0xFF:
            return None
        marker = head[place + 1]
        length = int.from_bytes(head[place + 2 : place + 4], "big")
        if marker in _JPEG_SIZES:
            depth, height_px, width_px, channels = struct.unpack(">BHHB", head[place + 4 : place + 10])
            if depth != 8 or channels not in _JPEG_MODES or not width_px or not height_px:
                return None
            mode = _JPEG_MODES[channels]
            return PictureHeader(width_px=width_px, height_px=height_px, mode=mode, has_alpha=False)
        # JFIF (APP0), ICC and the like (no APP1: EXIF, XMP; no APP2: several pictures), tables, comments.
        if not (marker == 0xE0 or 0xE3 <= marker <= 0xEF or marker in (0xDB, 0xC4, 0xDD, 0xFE)) or length < 2:
            return None
        place += 2 + length
    return None
