"""Labels in pictures: texts wrapped to their place, in a font that has their characters, never overlapping."""

import functools
import math
import re
from dataclasses import dataclass

from PIL import ImageDraw

from .fonts import Font, font_for

MIN_FONT_PX = 9
MAX_LABEL_CHARS = 600
INK = (17, 17, 17)
_WIDE = "\u1100-\u11ff\u2e80-\ua4cf\uac00-\ud7af\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff"
_PIECE = re.compile(
    rf"\s+|[{_WIDE}][\u3001\u3002\uff0c\uff0e\uff01\uff1f\uff1a\uff1b\uff09\u300d\u300f\u3011\u3015\u3009\u300b\u30fc\u2026\u3005]*"
    rf"|[^\s{_WIDE}]+?(?:[-_/\\.,;:|]+|(?=[\s{_WIDE}])|$)"
)
"""A stretch of text that is not broken: closing CJK punctuation stays with the character before it."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A text broken into lines, in one font.

    Attributes:
        lines: The lines, top first.
        font: Font that has the characters.
        line_px: Height of one line.
    """

    lines: tuple[str, ...]
    font: Font
    line_px: int

    @property
    def height_px(self) -> int:
        """Height of all lines."""
        return self.line_px * len(self.lines)

    @property
    def width_px(self) -> int:
        """Width of the widest line."""
        return math.ceil(max((self.font.getlength(line) for line in self.lines), default=0))


def wrap(text: str, font: Font, width_px: int) -> list[str]:
    """Break a text into lines no wider than a width.

    Breaks come at spaces, after separators inside file names, between CJK characters, and, where one piece alone is
    too wide, anywhere. A line break in the text is kept.
    """
    lines: list[str] = []
    for paragraph in text.strip().splitlines() or [""]:
        line = ""
        for match in _PIECE.finditer(paragraph):
            piece = match.group() if line else match.group().lstrip()
            if font.getlength((line + piece).rstrip()) <= width_px:
                line += piece
                continue
            if line.strip():
                lines.append(line.rstrip())
            *full, line = _cut(piece.lstrip(), font, width_px)
            lines += full
        lines.append(line.rstrip())
    return lines


def _cut(piece: str, font: Font, width_px: int) -> list[str]:
    """Cut a piece without break opportunities; every part but the last fills its line."""
    parts = []
    while len(piece) > 1 and font.getlength(piece) > width_px:
        count = 1
        while count < len(piece) and font.getlength(piece[: count + 1]) <= width_px:
            count += 1
        if count == len(piece):
            break
        parts.append(piece[:count])
        piece = piece[count:]
    return [*parts, piece]


@functools.lru_cache(maxsize=4096)
def fit_label(text: str, *, width_px: int, height_px: int, font_px: int) -> Label:
    """Wrap a label into a box; the font shrinks to 9 px, then what is left over is cut with an ellipsis."""
    text = text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "…"
    label = _wrapped(text, width_px, font_px)
    if label.height_px <= height_px:
        return label
    label, smallest = _wrapped(text, width_px, MIN_FONT_PX), MIN_FONT_PX
    if label.height_px > height_px:
        kept = label.lines[: max(1, height_px // label.line_px)]
        last = kept[-1]
        while last and label.font.getlength(last + "…") > width_px:
            last = last[:-1]
        return Label(lines=(*kept[:-1], last + "…"), font=label.font, line_px=label.line_px)
    too_large = font_px
    while too_large - smallest > 1:
        size_px = (too_large + smallest) // 2
        trial = _wrapped(text, width_px, size_px)
        if trial.height_px <= height_px:
            label, smallest = trial, size_px
        else:
            too_large = size_px
    return label


@functools.lru_cache(maxsize=4096)
def clip_label(text: str, *, width_px: int, max_lines: int, font_px: int) -> Label:
    """Wrap a label at one font size; what is more than some lines is cut with an ellipsis."""
    text = text if len(text) <= MAX_LABEL_CHARS else text[: MAX_LABEL_CHARS - 1] + "…"
    label = _wrapped(text, width_px, font_px)
    if len(label.lines) <= max_lines:
        return label
    *kept, last = label.lines[: max(1, max_lines)]
    while last and label.font.getlength(last + "…") > width_px:
        last = last[:-1]
    return Label(lines=(*kept, last + "…"), font=label.font, line_px=label.line_px)


def _wrapped(text: str, width_px: int, font_px: int) -> Label:
    font = font_for(text, font_px)
    return Label(lines=tuple(wrap(text, font, width_px)), font=font, line_px=math.ceil(font_px * 1.25))


def write_label(
    draw: ImageDraw.ImageDraw,
    label: Label,
    box: tuple[int, int, int, int],
    *,
    ink: tuple[int, int, int] = INK,
    align: str = "centre",
) -> None:
    """Write a label into a box: lines centred, or from its top left corner with ``align="left"``."""
    left, top, right, bottom = box
    y = top if align == "left" else top + (bottom - top - label.height_px) // 2
    for line in label.lines:
        x = float(left) if align == "left" else left + (right - left - label.font.getlength(line)) / 2
        draw.text((x, y), line, fill=ink, font=label.font)
        y += label.line_px
