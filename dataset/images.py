"""Pictures: size from the header, decoding to upright RGB on white, content hash, scaling and cropping to a bucket.

The same rules hold at scan time and at decode time: the EXIF orientation is applied (also to the size that a scan
reports), transparency lies on white, 16-bit grey keeps its range, an animation gives its first frame. Whatever cannot
be used raises :class:`BadPicture` with a reason a person can act on.
"""

import functools
import hashlib
import importlib
import importlib.util
import io
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ..core.errors import FormatError
from .buckets import Bucket

if TYPE_CHECKING:
    from .table import Dataset

PICTURE_EXTENSIONS = frozenset(
    {".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".jxl"}
)
"""File name endings (lower case) that are taken for pictures, in any spelling of case."""

MAX_PIXELS = 178_956_970
"""Largest picture that is decoded: twice Pillow's warning level, where Pillow itself refuses."""

MIN_SIDE_PX = 8
"""Pictures with a shorter side than one latent pixel (8 px) hold nothing to learn."""

MAX_ASPECT_RATIO = 16.0
"""Beyond this a bucket's crop would throw nearly all of the picture away."""

# Named explicitly: a `.png` that is really an EPS or PDF must not reach a plug-in that starts another program.
_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "AVIF", "JXL")

_ALPHA_MODES = frozenset({"RGBA", "RGBa", "LA", "La", "PA"})
_PLAIN_MODES = frozenset({"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"})
_DEEP_MODES = frozenset({"I", "F", "I;16", "I;16L", "I;16B", "I;16N"})

_ORIENTATION_TAG = 0x0112
_TIFF_WIDTH_TAG, _TIFF_HEIGHT_TAG = 256, 257
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HASH_CHUNK_BYTES = 1 << 20
_HASH_BYTES = 16
_EMPTY = "the file is empty (0 bytes)"


class BadPicture(FormatError):
    """A picture file that cannot be used.

    Attributes:
        reason: The cause without the file's name, as listed in ``Dataset.skipped``.
    """

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"the picture {str(path)!r} cannot be used: {reason}")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class PictureHeader:
    """What the first bytes of a picture tell, with the EXIF orientation (1..8) applied to the size."""

    width_px: int
    height_px: int
    mode: str
    has_alpha: bool
    orientation: int = 1


class Fitted(NamedTuple):
    """A picture scaled and cropped to its bucket.

    ``pixels`` is uint8 [height, width, 3]; ``crop`` is (left, top, right, bottom) in the scaled picture.
    """

    pixels: NDArray[np.uint8]
    crop: tuple[int, int, int, int]


def is_picture_name(name: str) -> bool:
    """Whether a file name ends like a picture's, in any spelling of case (``.Jpg``)."""
    place = name.rfind(".")  # asked of every file of a folder, so quicker than os.path.splitext
    return place > 0 and name[place:].lower() in PICTURE_EXTENSIONS


def read_header(path: Path | str, *, verify: bool = False) -> PictureHeader:
    """Reads size and mode from the header alone; pixels are decoded only where the file looks cut short.

    Args:
        path: The picture.
        verify: Decode the whole picture as well, so that damage in its middle is found now.

    Raises:
        BadPicture: Empty, not a picture, cut short, too large, too small or too thin, or of a kind not supported.
    """
    size_bytes = _size_bytes(path)
    try:
        with Image.open(path, formats=_formats()) as image:
            _check_kind(path, image)
            width_px, height_px = _upright_size(image)
            check_size(path, width_px, height_px)
            _check_pixels(path, image, size_bytes, verify=verify)
            return PictureHeader(
                width_px=width_px,
                height_px=height_px,
                mode=image.mode,
                has_alpha=_has_alpha(image),
                orientation=_orientation(image),
            )
    except BadPicture:
        raise
    except Exception as error:  # Pillow's plug-ins raise nearly anything on damaged input
        raise BadPicture(path, _reason_of(error, path)) from error


def load_image(path: Path | str, *, least_px: int = 0, data: bytes | None = None) -> Image.Image:
    """Decodes a picture to an upright RGB image on white (first frame of an animation).

    Args:
        path: The picture.
        least_px: A larger JPEG is decoded at 1/2, 1/4 or 1/8 of its size, which is quicker, as long as its longer side
            keeps at least so many pixels; 0 decodes all of it.
        data: The file's bytes where they were read already; ``path`` then only names the picture.

    Raises:
        BadPicture: As :func:`read_header`, and for damage that only decoding finds.
    """
    if data is None:
        _size_bytes(path)
    elif not data:
        raise BadPicture(path, _EMPTY)
    try:
        with Image.open(path if data is None else io.BytesIO(data), formats=_formats()) as image:
            _check_kind(path, image)
            check_size(path, *_upright_size(image))
            if least_px:
                _draft(image, least_px)
            return upright_rgb(image)
    except BadPicture:
        raise
    except Exception as error:
        raise BadPicture(path, _reason_of(error, path)) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """A picture as :func:`load_image` gives it: upright, RGB, what is transparent on white.

    Args:
        image: Any Pillow picture, also one that is not from a file.
    """
    # Pillow's TIFF plug-in turns the pixels itself while it loads them.
    turn = None if image.format == "TIFF" else _TRANSPOSES.get(_orientation(image))
    rgb = _to_rgb(image)
    rgb = rgb if turn is None else rgb.transpose(turn)
    rgb.info.clear()  # the orientation in it was applied here; nobody is to apply it again
    return rgb


def _draft(image: Image.Image, least_px: int) -> None:
    """Lets a JPEG decode at a fraction of its size; other formats ignore it."""
    longer_px = max(image.size)
    factor = next((part for part in (8, 4, 2) if longer_px >= part * least_px), 1)
    if factor > 1 and image.format in ("JPEG", "MPO"):
        image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))


def content_hash(path: Path | str) -> str:
    """Hash (BLAKE2b, 32 hexadecimal digits) of a picture file's bytes.

    Remembered while the process lives, by path, size and modification time.

    Raises:
        BadPicture: The file cannot be read.
    """
    try:
        status = os.stat(path)
        return _content_hash(os.fspath(path), status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise BadPicture(path, _reason_of(error, path)) from error


def content_hash_of(data: bytes) -> bytes:
    """What :func:`content_hash` gives for a file of these bytes, as 16 bytes."""
    return hashlib.blake2b(data, digest_size=_HASH_BYTES).digest()


def load_row(dataset: "Dataset", index: int, *, data: bytes | None = None) -> Image.Image:
    """Decodes a picture of a data set as :func:`load_image` does, and crops it where the table has a crop.

    Raises:
        BadPicture: As :func:`load_image`; or the picture became smaller than its crop.
    """
    path, crop = dataset.path(index), dataset.crop(index)
    image = load_image(path, data=data)
    if crop is None:
        return image
    if crop[2] > image.width or crop[3] > image.height:
        raise BadPicture(path, f"its crop {crop} lies outside its {image.width} x {image.height} px; open it again")
    return image.crop(crop)


def fit_to_bucket(image: Image.Image, bucket: Bucket, focus: tuple[float, float] | None = None) -> Fitted:
    """Scales a picture to cover its bucket and crops around its focal point, by default its centre.

    Shrinking averages areas and enlarging uses Lanczos, as kohya's scripts do (``resize_interpolation`` unset).

    Args:
        image: The upright RGB picture that the bucket was chosen for.
        bucket: From :meth:`BucketRule.assign` with the same size.
        focus: Point 0..1 of the picture that should lie in the middle of what is trained.

    Raises:
        FormatError: The picture has another size than the bucket was chosen for.
    """
    crop = bucket.crop_at(focus)
    cut = scaled_crop(image, bucket.source, bucket.resized, crop, shrinks=bucket.scale < 1.0)
    return Fitted(np.array(cut.convert("RGB"), dtype=np.uint8), crop)


def scaled_crop(
    image: Image.Image,
    source: tuple[int, int],
    resized: tuple[int, int],
    crop: tuple[int, int, int, int],
    *,
    shrinks: bool,
) -> Image.Image:
    """Scales a picture, or a layer of its size, and cuts a part out.

    Args:
        image: Upright.
        source: The size that it must have.
        resized: Width and height in px to scale it to.
        crop: (left, top, right, bottom) in px of the scaled picture.
        shrinks: Whether areas are averaged, else Lanczos is used.

    Raises:
        FormatError: It has another size.
    """
    if image.size != source:
        raise FormatError(
            f"the picture is {image.width} x {image.height} px, but its bucket was chosen for {source[0]} x "
            f"{source[1]} px: it changed after the data set was opened; open the data set again"
        )
    if image.size != resized:
        image = image.resize(resized, Image.Resampling.BOX if shrinks else Image.Resampling.LANCZOS)
    return image.crop(crop)


@functools.lru_cache(maxsize=65536)
def _content_hash(path: str, size_bytes: int, mtime_ns: int) -> str:
    digest = hashlib.blake2b(digest_size=_HASH_BYTES)
    with open(path, "rb") as file:
        while chunk := file.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


@functools.lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """The picture formats that this Pillow can open, JPEG XL among them where its plug-in is installed."""
    if importlib.util.find_spec("pillow_jxl") is not None:
        importlib.import_module("pillow_jxl")
    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _size_bytes(path: Path | str) -> int:
    try:
        size_bytes = os.stat(path).st_size
    except OSError as error:
        raise BadPicture(path, _reason_of(error, path)) from error
    if size_bytes == 0:
        raise BadPicture(path, _EMPTY)
    return size_bytes


def _check_kind(path: Path | str, image: Image.Image) -> None:
    if image.mode not in _PLAIN_MODES | _ALPHA_MODES | _DEEP_MODES:
        raise BadPicture(path, f"its pixel mode {image.mode} is not supported; save it as an RGB PNG or JPEG")


def check_size(path: Path | str, width_px: int, height_px: int) -> None:
    """Refuses sizes that nothing can be learnt from or that are not decoded.

    Raises:
        BadPicture: Too many pixels, too thin, or too small.
    """
    size = f"{width_px} x {height_px} px"
    shorter_px, longer_px = sorted((width_px, height_px))
    if width_px * height_px > MAX_PIXELS:
        raise BadPicture(path, f"{size} is more than the {MAX_PIXELS} pixels allowed; scale it down first")
    if longer_px > shorter_px * MAX_ASPECT_RATIO:
        raise BadPicture(path, f"{size} is thinner than 1:{MAX_ASPECT_RATIO:.0f}; crop it first")
    if shorter_px < MIN_SIDE_PX:
        raise BadPicture(path, f"{size} is smaller than {MIN_SIDE_PX} px")


def _check_pixels(path: Path | str, image: Image.Image, size_bytes: int, *, verify: bool) -> None:
    """Decodes a picture where that was asked for, or where its end is missing."""
    cut_short = _looks_cut_short(path, image, size_bytes)
    if not (verify or cut_short):
        return
    try:
        image.load()
    except Exception as error:  # see read_header
        reason = "the file is cut short (truncated)" if cut_short else _reason_of(error, path)
        raise BadPicture(path, reason) from error


def _has_alpha(image: Image.Image) -> bool:
    return image.mode in _ALPHA_MODES or "transparency" in image.info


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; damaged EXIF counts as upright.

    The base class's reader is called on purpose: the PNG plug-in's own decodes all pixels to look for a trailing tag.
    """
    try:
        value = Image.Image.getexif(image).get(_ORIENTATION_TAG, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, IndexError, OSError, struct.error):
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in px with the EXIF orientation applied, from the header."""
    width_px, height_px = image.size
    if image.format == "TIFF":  # whether the reported size is turned already depends on Pillow's version
        tags: Any = getattr(image, "tag_v2", {})
        width_px, height_px = int(tags.get(_TIFF_WIDTH_TAG, width_px)), int(tags.get(_TIFF_HEIGHT_TAG, height_px))
    return (height_px, width_px) if _orientation(image) >= 5 else (width_px, height_px)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _DEEP_MODES:
        return Image.fromarray(_deep_to_8_bit(np.asarray(image))).convert("RGB")
    if _has_alpha(image):
        with_alpha = image.convert("RGBA")
        white = Image.new("RGB", with_alpha.size, (255, 255, 255))
        white.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return white
    return image.convert("RGB")


def _deep_to_8_bit(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Grey of 16 bits (0..65535) or floating point (0..1, else 0..255) to uint8 [height, width]."""
    if values.dtype.kind == "f":
        finite = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=255.0, neginf=0.0)
        unit_range = finite.size > 0 and float(finite.max()) <= 1.0
        scaled = finite * 255.0 if unit_range else finite
    else:
        scaled = np.clip(values.astype(np.int64), 0, 65535) / 257.0
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _looks_cut_short(path: Path | str, image: Image.Image, size_bytes: int) -> bool:
    """Whether a file lacks its format's end mark: a hint that makes the caller decode it, never a verdict."""
    kind = image.format or ""
    if kind == "TIFF":
        return _tiff_end(image) > size_bytes
    with open(path, "rb") as file:
        head = file.read(12)
        file.seek(max(0, size_bytes - 1024))
        tail = file.read(1024)
    if kind == "PNG":
        return b"IEND" not in tail
    if kind in ("JPEG", "MPO"):
        return b"\xff\xd9" not in tail
    if kind == "GIF":
        return not tail.rstrip(b"\0").endswith(b";")
    if kind == "WEBP":
        return int.from_bytes(head[4:8], "little") + 8 > size_bytes
    if kind == "BMP":
        return int.from_bytes(head[2:6], "little") > size_bytes
    return False


def _tiff_end(image: Image.Image) -> int:
    """Byte position after the last strip or tile that a TIFF directory points at."""
    tags: Any = getattr(image, "tag_v2", {})
    ends = [0]
    for offsets_tag, counts_tag in ((273, 279), (324, 325)):
        offsets, counts = tags.get(offsets_tag, ()), tags.get(counts_tag, ())
        if isinstance(offsets, tuple) and isinstance(counts, tuple):
            ends.extend(offset + count for offset, count in zip(offsets, counts, strict=False))
    return int(max(ends))


def _reason_of(error: Exception, path: Path | str) -> str:
    """Turns what Pillow or the system raised into a reason without addresses and file names."""
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than the {MAX_PIXELS} pixels allowed; scale it down first"
    if isinstance(error, UnidentifiedImageError):
        ending = os.path.splitext(os.fspath(path))[1].lower()
        if ending == ".jxl" and "JXL" not in _formats():
            return "JPEG XL needs a plug-in; run: pip install pillow-jxl-plugin"
        if ending == ".avif" and "AVIF" not in _formats():
            return "AVIF needs a newer Pillow; run: pip install --upgrade pillow"
        return "it is not a picture of a known format, or its header is damaged"
    if isinstance(error, FileNotFoundError):
        return "the file is gone"
    if isinstance(error, PermissionError):
        return "permission to read it was refused"
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    text = str(error).strip().replace(os.fspath(path), "the file")
    if "truncated" in text or "Truncated" in text:
        return "the file is cut short (truncated)"
    return f"it is damaged ({text})" if text else f"it is damaged ({type(error).__name__})"
