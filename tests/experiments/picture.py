"""One row of pictures per arm, all of the same prompts and noise, out of the kept sheets."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from lora_atelier.core.fonts import font_for

from .world import SIDE_PX

TILE_PX = (SIDE_PX + 8, SIDE_PX + 64)
"""Width and height of a picture with its prompt on a sheet."""
SHEET_COLUMNS = 8
LABEL_PX = 150
GAP_PX = 6
INK, PAPER = (30, 30, 30), (255, 255, 255)


def rows_of_arms(sheets: Sequence[tuple[str, Path]], shown: Sequence[int] = range(8)) -> Image.Image:
    """Some pictures of each sheet in a row, behind the arm's name.

    Args:
        sheets: (name of the arm, its sheet).
        shown: Numbers of the pictures, the same of every sheet.
    """
    step = SIDE_PX + GAP_PX
    found = Image.new("RGB", (LABEL_PX + len(shown) * step, len(sheets) * step + GAP_PX), PAPER)
    pen = ImageDraw.Draw(found)
    for row, (name, path) in enumerate(sheets):
        top = GAP_PX + row * step
        pen.text((GAP_PX, top + SIDE_PX // 2), name, fill=INK, font=font_for(name, 16), anchor="lm")
        with Image.open(path) as sheet:
            for column, number in enumerate(shown):
                x, y = number % SHEET_COLUMNS * TILE_PX[0], number // SHEET_COLUMNS * TILE_PX[1]
                found.paste(sheet.crop((x, y, x + SIDE_PX, y + SIDE_PX)), (LABEL_PX + column * step, top))
    return found
