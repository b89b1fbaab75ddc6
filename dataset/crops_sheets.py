"""Sheets to look at: what is cut out of each picture, what a mask covers, around which point a picture is cropped."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from ..core.progress import Progress
from .cards import Card, Section, draw_cards
from .contact import spread
from .crops import Pairs
from .images import BadPicture
from .masks import load_mask
from .thumbs import Shrunk, load_all_small
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

MAX_PICTURES = 12
CELL_PX = 200
COLUMNS = 6
_DIMMED = (203, 75, 22)
_POINT = (31, 95, 168)


def pair_sheet(pairs: Pairs, *, progress: Progress | None = None) -> Image.Image:
    """The head crops and their twins, each as a frame in its whole picture, with its caption."""
    parts = [("Head crops, for training", pairs.heads)]
    if pairs.persons is not None:
        parts.append(("Person crops, for regularisation", pairs.persons))
    sections = []
    for title, dataset in parts:
        rows = _some(dataset)
        smalls = load_all_small([dataset.path(row) for row in rows], CELL_PX, progress=progress)
        cards = [_crop_card(dataset, row, small) for row, small in zip(rows, smalls, strict=True)]
        sections.append(Section(title=f"{title} ({counted(len(dataset), 'picture')})", cards=cards))
    return draw_cards(sections, title="Subject crops", columns=COLUMNS, cell_px=CELL_PX, text_lines=4)


def mask_sheet(dataset: "Dataset", *, progress: Progress | None = None) -> Image.Image:
    """Pictures with what their masks leave out in orange."""
    rows = _some(dataset, [row for row in range(len(dataset)) if dataset.mask(row) != ""])
    crops = [dataset.crop(row) for row in rows]
    smalls = load_all_small([dataset.path(row) for row in rows], CELL_PX, crops=crops, progress=progress)
    cards = [_mask_card(dataset, row, small) for row, small in zip(rows, smalls, strict=True)]
    return draw_cards(
        [Section(title="", cards=cards)],
        title="Masks",
        note="orange does not count in the loss",
        columns=COLUMNS,
        cell_px=CELL_PX,
        text_lines=2,
    )


def focus_sheet(dataset: "Dataset", *, progress: Progress | None = None) -> Image.Image:
    """Pictures with the point around which they are cropped."""
    rows = _some(dataset, [row for row in range(len(dataset)) if dataset.focal_point(row) is not None])
    crops = [dataset.crop(row) for row in rows]
    smalls = load_all_small([dataset.path(row) for row in rows], CELL_PX, crops=crops, progress=progress)
    cards = [_focus_card(dataset, row, small) for row, small in zip(rows, smalls, strict=True)]
    return draw_cards(
        [Section(title="", cards=cards)], title="Focal points", columns=COLUMNS, cell_px=CELL_PX, text_lines=2
    )


def _some(dataset: "Dataset", rows: Sequence[int] | None = None) -> list[int]:
    places = list(range(len(dataset))) if rows is None else list(rows)
    return [places[place] for place in spread(len(places), min(MAX_PICTURES, len(places)))]


def _crop_card(dataset: "Dataset", row: int, small: Shrunk | str) -> Card:
    width_px, height_px = dataset.full_size(row)
    left, top, right, bottom = dataset.crop(row) or (0, 0, width_px, height_px)
    return Card(
        image=small if isinstance(small, str) else small.image,
        heading=printable(dataset.names[row]),
        text=printable(dataset.caption(row)),
        crop=(left / width_px, top / height_px, right / width_px, bottom / height_px),
        badge=f"{right - left} x {bottom - top}",
    )


def _mask_card(dataset: "Dataset", row: int, small: Shrunk | str) -> Card:
    heading = printable(dataset.names[row])
    try:
        mask = load_mask(dataset, row)
    except BadPicture as refusal:
        return Card(image=refusal.reason, heading=heading, alarm=True)
    if isinstance(small, str) or mask is None:
        return Card(image=small if isinstance(small, str) else small.image, heading=heading, alarm=mask is None)
    layer = mask.resize(small.image.size, Image.Resampling.BOX)
    dimmed = Image.blend(small.image, Image.new("RGB", small.image.size, _DIMMED), 0.6)
    white = float(np.asarray(layer).mean()) / 255.0
    return Card(
        image=Image.composite(small.image, dimmed, layer), heading=heading, text=f"{white:.0%} of the picture counts"
    )


def _focus_card(dataset: "Dataset", row: int, small: Shrunk | str) -> Card:
    heading = printable(dataset.names[row])
    point = dataset.focal_point(row)
    if isinstance(small, str) or point is None:
        return Card(image=small if isinstance(small, str) else small.image, heading=heading)
    image = small.image.copy()
    x, y = point[0] * image.width, point[1] * image.height
    pen = ImageDraw.Draw(image)
    for reach, colour in ((9, (255, 255, 255)), (8, _POINT), (6, _POINT), (5, (255, 255, 255))):
        pen.ellipse((x - reach, y - reach, x + reach, y + reach), outline=colour)
    return Card(image=image, heading=heading, text=f"at {point[0]:.2f}, {point[1]:.2f}")
