"""Fonts for labels: Pillow's own for Latin text, the system's where a label needs more, such as Chinese or Japanese."""

import functools
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

SYSTEM_FONTS = (
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKjp-Regular.otf",
    "NotoSansCJKsc-Regular.otf",
    "SourceHanSans-Regular.ttc",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "msyh.ttc",
    "YuGothM.ttc",
    "meiryo.ttc",
    "msgothic.ttc",
    "malgun.ttf",
    "simhei.ttf",
    "simsun.ttc",
    "\u30d2\u30e9\u30ae\u30ce\u89d2\u30b4\u30b7\u30c3\u30af W3.ttc",
    "Hiragino Sans GB.ttc",
    "PingFang.ttc",
    "AppleSDGothicNeo.ttc",
    "Arial Unicode.ttf",
    "ipagp.ttf",
    "ipag.ttf",
    "TakaoPGothic.ttf",
    "VL-PGothic-Regular.ttf",
    "NanumGothic.ttf",
    "DroidSansFallbackFull.ttf",
    "DroidSansFallback.ttf",
    "DejaVuSans.ttf",
    "segoeui.ttf",
    "arial.ttf",
)
"""File names looked for, best first; the CJK fonts cover Latin too."""

_PROBE_PX = 24
_ABSENT = "\U0010fffe"


def font_for(text: str, size_px: int) -> Font:
    """Return a font that can draw a text.

    Pillow's bundled font is taken when it has every character, so that plain labels look the same everywhere; else the
    first system font that has them all, else the one that has most.

    Args:
        text: What is to be drawn.
        size_px: Height of the font.
    """
    return _font(font_path_for(text), size_px)


def font_path_for(text: str) -> str | None:
    """Return the file of the system font that :func:`font_for` takes for a text; None for Pillow's bundled one."""
    needed = sorted({char for char in text if not char.isspace()})
    best: str | None = None
    most = sum(_has(None, char) for char in needed)
    if most < len(needed):
        for path in _installed():
            covered = sum(_has(path, char) for char in needed)
            if covered > most:
                best, most = path, covered
            if most == len(needed):
                break
    return best


@functools.lru_cache(maxsize=128)
def _font(path: str | None, size_px: int) -> Font:
    return ImageFont.load_default(size_px) if path is None else ImageFont.truetype(path, size_px)


@functools.lru_cache(maxsize=20_000)
def _has(path: str | None, char: str) -> bool:
    """Say whether a font draws a character as something else than its box for missing ones."""
    font = _font(path, _PROBE_PX)
    if isinstance(font, ImageFont.ImageFont):
        return ord(char) < 256
    return bytes(font.getmask(char)) != bytes(font.getmask(_ABSENT))


def font_folders() -> list[Path]:
    """Return the folders where this system keeps fonts, in the order they are searched."""
    home = Path.home()
    if sys.platform == "win32":
        windows = Path(os.environ.get("WINDIR", "C:/Windows"))
        local = Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"))
        return [windows / "Fonts", local / "Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    return [
        Path("/usr/share/fonts"),
        Path("/usr/local/share/fonts"),
        home / ".local/share/fonts",
        home / ".fonts",
    ]


@functools.lru_cache(maxsize=1)
def _installed() -> tuple[str, ...]:
    """Return the usable system fonts in the order of `SYSTEM_FONTS`."""
    by_name: dict[str, str] = {}
    for folder in font_folders():
        for path in _files(folder):
            by_name.setdefault(path.name.casefold(), str(path))
    wanted = (by_name.get(name.casefold()) for name in SYSTEM_FONTS)
    return tuple(path for path in wanted if path and _opens(path))


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        for name in names:
            yield Path(root, name)


def _opens(path: str) -> bool:
    try:
        _font(path, _PROBE_PX)
    except OSError:  # damaged or unreadable: the next font in the list serves as well
        return False
    return True
