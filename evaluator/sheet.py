"""The sheet: cells side by side under labels that are wrapped to their place and never overlap."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from ..core.errors import InputError, StorageError
from ..core.labels import Label, fit_label, write_label

MAX_PIXELS = 64_000_000
"""Largest sheet; as an IMAGE of float32 it takes 768 MB. Cells are made smaller to stay below."""
MAX_SIDE_PX = 30_000
"""Longest side; image viewers and browsers give up a little above."""

MAX_FONT_PX = 40
MIN_PITCH_PX = 56
"""Narrowest column and lowest row when there are labels, so that labels of tiny cells stay readable."""
_GAP_PX = 2
_GROUND = (255, 255, 255)
_MISSING = (225, 225, 225)

Picture = Image.Image | Path | None


@dataclass(frozen=True, kw_only=True)
class _Layout:
    cell_px: tuple[int, int]
    pitch_px: tuple[int, int]
    margin_px: int
    left_px: int
    head_px: int
    title_px: int
    columns: tuple[Label, ...]
    rows: tuple[Label, ...]
    title: Label | None

    def size_px(self, num_columns: int, num_rows: int) -> tuple[int, int]:
        width = self.left_px + num_columns * self.pitch_px[0] + (num_columns - 1) * _GAP_PX
        height = self.title_px + self.head_px + num_rows * self.pitch_px[1] + (num_rows - 1) * _GAP_PX
        return width, height


def draw_sheet(
    images: Sequence[Picture],
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    title: str = "",
    *,
    max_pixels: int = MAX_PIXELS,
    max_side_px: int = MAX_SIDE_PX,
) -> Image.Image:
    """Draw a grid of pictures with labels.

    Args:
        images: Row by row, as many as columns times rows: pictures, files (opened one at a time), or None for a cell
            that is missing. Smaller pictures are centred in the place of the largest.
        x_labels: Label of each column; empty for a single column without one.
        y_labels: Label of each row; empty for a single row without one.
        title: Line above everything.
        max_pixels: The sheet is made no larger; cells shrink together to fit.
        max_side_px: Neither side is made longer.

    Returns:
        The sheet, RGB. Cells have their own size unless the sheet would be too large.

    Raises:
        InputError: The number of pictures is not columns times rows.
        StorageError: A picture file cannot be read.
    """
    num_columns, num_rows = max(1, len(x_labels)), max(1, len(y_labels))
    if len(images) != num_columns * num_rows:
        raise InputError(f"A sheet of {num_columns} x {num_rows} cells got {len(images)} pictures; give one per cell.")
    sizes = [size for size in map(_size, images) if size]
    natural = (max((size[0] for size in sizes), default=64), max((size[1] for size in sizes), default=64))
    scale = 1.0
    for _ in range(40):
        layout = _layout(natural, scale, x_labels, y_labels, title, num_columns)
        width, height = layout.size_px(num_columns, num_rows)
        if (width * height <= max_pixels and max(width, height) <= max_side_px) or layout.cell_px == (1, 1):
            break
        scale *= min(math.sqrt(max_pixels / (width * height)), max_side_px / max(width, height), 0.95)
    sheet = Image.new("RGB", (width, height), _GROUND)
    _paste_cells(sheet, images, layout, num_columns)
    _write_labels(sheet, layout, num_columns)
    return sheet


def _size(picture: Picture) -> tuple[int, int] | None:
    if not isinstance(picture, Path):
        return picture.size if picture else None
    with _opened(picture) as image:
        size: tuple[int, int] = image.size
    return size


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except OSError as cause:
        raise StorageError(
            f"The cell {path.name} cannot be read ({cause}); delete it and run the grid again."
        ) from cause


def _layout(
    natural: tuple[int, int],
    scale: float,
    x_labels: Sequence[str],
    y_labels: Sequence[str],
    title: str,
    num_columns: int,
) -> _Layout:
    cell = (max(1, round(natural[0] * scale)), max(1, round(natural[1] * scale)))
    labelled = bool(x_labels or y_labels) and scale == 1.0
    pitch = (max(cell[0], MIN_PITCH_PX), max(cell[1], MIN_PITCH_PX)) if labelled else cell
    font_px = max(12, min(MAX_FONT_PX, round(min(pitch[0], 1.5 * pitch[1]) / 14)))
    margin = max(3, font_px // 3)
    columns = _column_labels(x_labels, pitch, font_px, margin)
    rows, left = _row_labels(y_labels, pitch, font_px, margin)
    width = left + num_columns * (pitch[0] + _GAP_PX)
    head = max((label.height_px for label in columns), default=0)
    title_label = None
    if title.strip():
        size_px = min(MAX_FONT_PX, round(font_px * 1.15))
        title_label = fit_label(title, width_px=width - 2 * margin, height_px=size_px * 5, font_px=size_px)
    return _Layout(
        cell_px=cell,
        pitch_px=pitch,
        margin_px=margin,
        left_px=left,
        head_px=head + 2 * margin if columns else 0,
        title_px=title_label.height_px + 2 * margin if title_label else 0,
        columns=columns,
        rows=rows,
        title=title_label,
    )


def _column_labels(texts: Sequence[str], pitch: tuple[int, int], font_px: int, margin: int) -> tuple[Label, ...]:
    height = max(7 * font_px, round(0.6 * pitch[1]))
    width = max(1, pitch[0] - 2 * margin)
    return tuple(fit_label(text, width_px=width, height_px=height, font_px=font_px) for text in texts)


def _row_labels(
    texts: Sequence[str], pitch: tuple[int, int], font_px: int, margin: int
) -> tuple[tuple[Label, ...], int]:
    """Return the labels of the rows and the width they take: as much of a cell's width as keeps the font readable."""
    if not texts:
        return (), 0
    height = max(1, pitch[1] - 2 * margin)
    for share in (0.5, 0.75, 1.0, 1.5, 2.0):
        width = max(72, round(share * pitch[0]))
        labels = tuple(fit_label(text, width_px=width, height_px=height, font_px=font_px) for text in texts)
        if all(label.line_px >= math.ceil(font_px * 1.25) and not label.lines[-1].endswith("…") for label in labels):
            break
    return labels, max(label.width_px for label in labels) + 4 * margin


def _places(layout: _Layout, num_columns: int, count: int) -> Iterator[tuple[int, int]]:
    for index in range(count):
        row, column = divmod(index, num_columns)
        yield (
            layout.left_px + column * (layout.pitch_px[0] + _GAP_PX),
            layout.title_px + layout.head_px + row * (layout.pitch_px[1] + _GAP_PX),
        )


def _paste_cells(sheet: Image.Image, images: Sequence[Picture], layout: _Layout, num_columns: int) -> None:
    draw = ImageDraw.Draw(sheet)
    for picture, (x, y) in zip(images, _places(layout, num_columns, len(images)), strict=True):
        box = (x, y, x + layout.pitch_px[0] - 1, y + layout.pitch_px[1] - 1)
        if picture is None:
            draw.rectangle(box, fill=_MISSING)
            continue
        image = _rgb(_opened(picture) if isinstance(picture, Path) else picture)
        image.thumbnail(layout.cell_px, Image.Resampling.LANCZOS)
        sheet.paste(image, (x + (layout.pitch_px[0] - image.width) // 2, y + (layout.pitch_px[1] - image.height) // 2))


def _rgb(image: Image.Image) -> Image.Image:
    with image:
        if image.mode in ("RGBA", "LA", "PA"):
            ground = Image.new("RGBA", image.size, (*_GROUND, 255))
            return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
        return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _write_labels(sheet: Image.Image, layout: _Layout, num_columns: int) -> None:
    draw = ImageDraw.Draw(sheet)
    if layout.title:
        write_label(draw, layout.title, (0, 0, sheet.width, layout.title_px))
    top = layout.title_px
    for column, label in enumerate(layout.columns):
        x = layout.left_px + column * (layout.pitch_px[0] + _GAP_PX)
        write_label(draw, label, (x, top, x + layout.pitch_px[0], top + layout.head_px))
    for row, label in enumerate(layout.rows):
        y = top + layout.head_px + row * (layout.pitch_px[1] + _GAP_PX)
        write_label(draw, label, (0, y, layout.left_px, y + layout.pitch_px[1]))
