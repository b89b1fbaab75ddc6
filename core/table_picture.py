"""A small table drawn as a picture, for results beside a grid."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from .fonts import font_for
from .labels import fit_label

_FONT_PX = 20
_MAX_COLUMN_PX = 420
_INK = (17, 17, 17)
_LINE = (190, 190, 190)
_HEAD = (235, 238, 244)


def draw_table(rows: Sequence[Sequence[str]], *, title: str = "", font_px: int = _FONT_PX) -> Image.Image:
    """Draw rows of texts, the first as a header; long texts are wrapped.

    Args:
        rows: Texts, every row of the same length.
        title: Line above the table.
        font_px: Size of the text.
    """
    pad_px = font_px // 2
    labels = [
        [fit_label(text, width_px=_MAX_COLUMN_PX, height_px=font_px * 20, font_px=font_px) for text in row]
        for row in rows
    ]
    widths = [max(row[index].width_px for row in labels) + 2 * pad_px for index in range(len(rows[0]))]
    heights = [max(label.height_px for label in row) + 2 * pad_px for row in labels]
    title_font = font_for(title, font_px)
    title_px = math.ceil(font_px * 1.25) + 2 * pad_px if title else 0
    width = max(sum(widths), math.ceil(title_font.getlength(title)) + 2 * pad_px)
    picture = Image.new("RGB", (width + 1, title_px + sum(heights) + 1), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.text((pad_px, pad_px), title, fill=_INK, font=title_font)
    y = title_px
    for number, (row, height) in enumerate(zip(labels, heights, strict=True)):
        if number == 0:
            draw.rectangle((0, y, sum(widths), y + height), fill=_HEAD)
        draw.line((0, y, sum(widths), y), fill=_LINE)
        x = 0
        for label, column_px in zip(row, widths, strict=True):
            line_y = y + pad_px
            for line in label.lines:
                draw.text((x + pad_px, line_y), line, fill=_INK, font=label.font)
                line_y += label.line_px
            x += column_px
        y += height
    draw.line((0, y, sum(widths), y), fill=_LINE)
    return picture
