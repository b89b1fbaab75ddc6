"""Cards: small pictures with text below, in rows under titles; drawn so that nothing overlaps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..core.labels import Label, clip_label, write_label

Colour = tuple[int, int, int]

GROUND: Colour = (246, 246, 243)
CARD: Colour = (255, 255, 255)
EDGE: Colour = (221, 221, 216)
INK: Colour = (24, 24, 24)
MUTED: Colour = (104, 104, 104)
MAT: Colour = (232, 232, 228)
ACCENT: Colour = (31, 95, 168)
ALARM: Colour = (203, 75, 22)

MAX_PIXELS = 48_000_000
_PAD_PX = 10
_GAP_PX = 12
_MARGIN_PX = 20
_HEADING_PX = 13
_TEXT_PX = 13
_SECTION_PX = 15
_TITLE_PX = 24


@dataclass(frozen=True, kw_only=True)
class Card:
    """One picture on a sheet.

    Attributes:
        image: The small picture, or the reason why there is none.
        heading: Line in bold ink below it.
        text: Further text below, wrapped.
        crop: Part that is trained, as (left, top, right, bottom) in shares 0..1 of the picture.
        badge: Short text in the picture's corner.
        alarm: Draw crop and badge in the colour of a warning.
    """

    image: Image.Image | str
    heading: str = ""
    text: str = ""
    crop: tuple[float, float, float, float] | None = None
    badge: str = ""
    alarm: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """Cards under a title of their own."""

    title: str
    cards: Sequence[Card]


@dataclass(frozen=True, kw_only=True)
class _Placed:
    card: Card
    heading: Label
    text: Label | None

    def height_px(self, cell_px: int) -> int:
        text = self.text.height_px + 2 if self.text else 0
        return cell_px + 2 * _PAD_PX + self.heading.height_px + text + 4


def draw_cards(
    sections: Sequence[Section], *, title: str, note: str = "", columns: int, cell_px: int, text_lines: int
) -> Image.Image:
    """Draws sections of cards one below the other.

    Args:
        sections: The cards; a section without a title has no line of its own.
        title: Line above everything.
        note: Smaller line below it.
        columns: Cards side by side; fewer where no section has so many.
        cell_px: Side of the square each picture is centred in; smaller where the sheet would grow too large.
        text_lines: Most lines of text under a card.
    """
    columns = max(1, min(columns, sum(len(section.cards) for section in sections)))
    count = sum(-(-len(section.cards) // columns) for section in sections) * columns
    while cell_px > 64 and count * (cell_px + 30) * (cell_px + 60 + text_lines * 17) > MAX_PIXELS:
        cell_px -= 8
    width_px = 2 * _MARGIN_PX + columns * (cell_px + 2 * _PAD_PX) + (columns - 1) * _GAP_PX
    width_px = max(width_px, 420)
    head = [_head_label(title, _TITLE_PX, width_px), _head_label(note, _TEXT_PX, width_px)]
    head_px = _MARGIN_PX + sum(label.height_px + 4 for label in head if label) + 8
    bands = _bands(sections, columns)
    blocks = [[_block(section, columns, cell_px, text_lines) for section in band] for band in bands]
    height_px = head_px + _MARGIN_PX + sum(max(block.height_px for block in band) for band in blocks)
    sheet = Image.new("RGB", (width_px, height_px), GROUND)
    draw = ImageDraw.Draw(sheet)
    y = _MARGIN_PX
    for label, ink in zip(head, (INK, MUTED), strict=True):
        if label:
            write_label(draw, label, (_MARGIN_PX, y, width_px, y), ink=ink, align="left")
            y += label.height_px + 4
    y = head_px
    for band in blocks:
        x = _MARGIN_PX
        title_px = max(block.title_px for block in band)
        for block in band:
            _draw_block(sheet, draw, block, (x, y), cell_px, title_px)
            x += block.columns * (cell_px + 2 * _PAD_PX + _GAP_PX)
        y += max(block.height_px - block.title_px for block in band) + title_px
    return sheet


@dataclass(frozen=True, kw_only=True)
class _Block:
    """A section as it is placed: its cards in rows under its title."""

    title: Label | None
    cards: Sequence[_Placed]
    columns: int
    row_heights: Sequence[int]

    @property
    def title_px(self) -> int:
        return self.title.height_px + 16 if self.title else 0

    @property
    def height_px(self) -> int:
        return self.title_px + sum(row_px + _GAP_PX for row_px in self.row_heights)


def _bands(sections: Sequence[Section], columns: int) -> list[list[Section]]:
    """Sections side by side where they fit, in their order."""
    bands: list[list[Section]] = []
    used = columns
    for section in sections:
        needed = min(columns, len(section.cards))
        if used + needed > columns:
            bands.append([])
            used = 0
        bands[-1].append(section)
        used += needed
    return bands


def _block(section: Section, columns: int, cell_px: int, text_lines: int) -> _Block:
    columns = max(1, min(columns, len(section.cards)))
    cards = [_placed(card, cell_px, text_lines) for card in section.cards]
    title = None
    if section.title.strip():
        width_px = columns * (cell_px + 2 * _PAD_PX + _GAP_PX) - _GAP_PX
        title = clip_label(section.title, width_px=width_px, max_lines=4, font_px=_SECTION_PX)
    return _Block(title=title, cards=cards, columns=columns, row_heights=_row_heights(cards, columns, cell_px))


def _draw_block(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    block: _Block,
    place: tuple[int, int],
    cell_px: int,
    title_px: int,
) -> None:
    left, y = place
    if block.title:
        right = left + block.columns * (cell_px + 2 * _PAD_PX + _GAP_PX) - _GAP_PX
        draw.line((left, y, right - 1, y), fill=ACCENT, width=2)
        write_label(draw, block.title, (left, y + 7, right, y), ink=ACCENT, align="left")
    y += title_px
    for number, row_px in enumerate(block.row_heights):
        for column, entry in enumerate(block.cards[number * block.columns : (number + 1) * block.columns]):
            x = left + column * (cell_px + 2 * _PAD_PX + _GAP_PX)
            _draw_card(sheet, draw, entry, (x, y), cell_px, row_px)
        y += row_px + _GAP_PX


def _head_label(text: str, font_px: int, width_px: int) -> Label | None:
    if not text.strip():
        return None
    return clip_label(text, width_px=width_px - 2 * _MARGIN_PX, max_lines=2, font_px=font_px)


def _placed(card: Card, cell_px: int, text_lines: int) -> _Placed:
    text = None
    if card.text and text_lines:
        text = clip_label(card.text, width_px=cell_px, max_lines=text_lines, font_px=_TEXT_PX)
    return _Placed(
        card=card, heading=clip_label(card.heading, width_px=cell_px, max_lines=2, font_px=_HEADING_PX), text=text
    )


def _row_heights(cards: Sequence[_Placed], columns: int, cell_px: int) -> list[int]:
    return [
        max(entry.height_px(cell_px) for entry in cards[start : start + columns])
        for start in range(0, len(cards), columns)
    ]


def _draw_card(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, entry: _Placed, place: tuple[int, int], cell_px: int, row_px: int
) -> None:
    x, y = place
    card = entry.card
    draw.rectangle((x, y, x + cell_px + 2 * _PAD_PX - 1, y + row_px - 1), fill=CARD, outline=EDGE)
    mat = (x + _PAD_PX, y + _PAD_PX, x + _PAD_PX + cell_px, y + _PAD_PX + cell_px)
    draw.rectangle((mat[0], mat[1], mat[2] - 1, mat[3] - 1), fill=MAT)
    if isinstance(card.image, str):
        reason = clip_label(card.image, width_px=cell_px - 16, max_lines=8, font_px=_TEXT_PX)
        write_label(draw, reason, mat, ink=ALARM)
    else:
        _draw_picture(sheet, draw, card, mat)
    if card.badge:
        _draw_badge(draw, card, (mat[0], mat[1]))
    y += _PAD_PX + cell_px + 4
    write_label(draw, entry.heading, (x + _PAD_PX, y, x, y), ink=INK, align="left")
    if entry.text:
        write_label(draw, entry.text, (x + _PAD_PX, y + entry.heading.height_px + 2, x, y), ink=MUTED, align="left")


def _draw_picture(sheet: Image.Image, draw: ImageDraw.ImageDraw, card: Card, mat: tuple[int, int, int, int]) -> None:
    image = card.image
    if isinstance(image, str):
        return
    side_px = mat[2] - mat[0]
    factor = min(1.0 if card.crop is None else math.inf, side_px / max(image.size))
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    if size != image.size:
        image = image.resize(size, Image.Resampling.BOX if factor < 1.0 else Image.Resampling.BICUBIC)
    left, top = mat[0] + (side_px - image.width) // 2, mat[1] + (side_px - image.height) // 2
    if card.crop is None:
        sheet.paste(image, (left, top))
        return
    inner = (
        round(card.crop[0] * image.width), round(card.crop[1] * image.height),
        round(card.crop[2] * image.width), round(card.crop[3] * image.height),
    )  # fmt: skip
    dimmed = Image.blend(image, Image.new("RGB", image.size, MAT), 0.68)
    dimmed.paste(image.crop(inner), inner[:2])
    sheet.paste(dimmed, (left, top))
    frame = (left + inner[0], top + inner[1], left + inner[2] - 1, top + inner[3] - 1)
    draw.rectangle(frame, outline=ALARM if card.alarm else ACCENT, width=2)


def _draw_badge(draw: ImageDraw.ImageDraw, card: Card, place: tuple[int, int]) -> None:
    label = clip_label(card.badge, width_px=120, max_lines=1, font_px=12)
    x, y = place
    box = (x, y, x + label.width_px + 10, y + label.height_px + 4)
    draw.rectangle(box, fill=ALARM if card.alarm else ACCENT)
    write_label(draw, label, box, ink=(255, 255, 255))
