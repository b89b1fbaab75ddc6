"""The doctor's report as a picture: one row per finding, with what to do and some of the pictures concerned."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

from ..core.labels import Label, clip_label, write_label
from ..core.progress import Progress
from .cards import ALARM, CARD, EDGE, GROUND, INK, MAT, MUTED, Colour
from .doctor import ERROR, NOTE, WARNING, Finding, Report
from .thumbs import Shrunk, load_all_small
from .words import counted

if TYPE_CHECKING:
    from .table import Dataset

COLOURS: Mapping[str, Colour] = {ERROR: (190, 30, 45), WARNING: (214, 128, 0), NOTE: (66, 114, 170)}
CLEAN: Colour = (62, 134, 84)

_WIDTH_PX = 1280
_MARGIN_PX = 24
_PAD_PX = 14
_THUMB_PX = 104
_MAX_THUMBS = 4
_DETAIL_LINES = 4
_TITLE_PX, _HEAD_PX, _TEXT_PX = 26, 17, 14


@dataclass(frozen=True, kw_only=True)
class _Row:
    finding: Finding
    heading: Label
    texts: tuple[tuple[Label, Colour], ...]
    thumbs: tuple[Shrunk | str, ...]

    @property
    def height_px(self) -> int:
        text_px = self.heading.height_px + sum(label.height_px + 4 for label, _ in self.texts)
        return 2 * _PAD_PX + max(text_px, _THUMB_PX if self.thumbs else 0)


def draw_report(report: Report, dataset: "Dataset", *, progress: Progress | None = None) -> Image.Image:
    """Draws a report.

    Args:
        report: What the doctor said.
        dataset: The data set it was said of, for the small pictures.
        progress: Told per small picture; may cancel.
    """
    thumbs = _thumbs(report, dataset, progress)
    rows = [_row(finding, thumbs) for finding in report.findings]
    width_px = _WIDTH_PX - 2 * _MARGIN_PX
    head: list[tuple[Label, Colour]] = [
        (clip_label(f"Data set doctor: {dataset.root.name}", width_px=width_px, max_lines=2, font_px=_TITLE_PX), INK),
        (clip_label(report.headline(), width_px=width_px, max_lines=2, font_px=_HEAD_PX), MUTED),
    ]
    head += [(clip_label(fact, width_px=width_px, max_lines=2, font_px=_TEXT_PX), MUTED) for fact in report.facts]
    foot = _foot(report, width_px)
    height_px = 2 * _MARGIN_PX + sum(label.height_px + 5 for label, _ in (*head, *foot)) + 20
    height_px += sum(row.height_px + 8 for row in rows)
    picture = Image.new("RGB", (_WIDTH_PX, height_px), GROUND)
    draw = ImageDraw.Draw(picture)
    y = _write_all(draw, head, _MARGIN_PX) + 10
    for row in rows:
        _draw_row(picture, draw, row, y)
        y += row.height_px + 8
    _write_all(draw, foot, y + 6)
    return picture


def _thumbs(report: Report, dataset: "Dataset", progress: Progress | None) -> dict[int, Shrunk | str]:
    rows = sorted({row for finding in report.findings for row in finding.rows[:_MAX_THUMBS]})
    small = load_all_small(
        [dataset.path(row) for row in rows],
        _THUMB_PX,
        crops=[dataset.crop(row) for row in rows],
        progress=progress,
        text="Drawing the report",
    )
    return dict(zip(rows, small, strict=True))


def _row(finding: Finding, thumbs: Mapping[int, Shrunk | str]) -> _Row:
    shown = tuple(thumbs[row] for row in finding.rows[:_MAX_THUMBS])
    taken_px = (_THUMB_PX + 8) * len(shown) + _PAD_PX
    width_px = _WIDTH_PX - 2 * _MARGIN_PX - 2 * _PAD_PX - 10 - taken_px
    details = list(finding.details[:_DETAIL_LINES])
    if len(finding.details) > _DETAIL_LINES:
        details[-1] = f"{details[-1]}; and {len(finding.details) - _DETAIL_LINES} more"
    details = details or ([f"e.g. {', '.join(finding.examples[:3])}"] if finding.examples else [])
    texts = [(clip_label(line, width_px=width_px, max_lines=2, font_px=_TEXT_PX), MUTED) for line in details]
    texts.append((clip_label(finding.advice, width_px=width_px, max_lines=3, font_px=_TEXT_PX), INK))
    heading = f"{finding.title}: {counted(finding.files, finding.unit)}"
    return _Row(
        finding=finding,
        heading=clip_label(heading, width_px=width_px, max_lines=2, font_px=_HEAD_PX),
        texts=tuple(texts),
        thumbs=shown,
    )


def _draw_row(picture: Image.Image, draw: ImageDraw.ImageDraw, row: _Row, y: int) -> None:
    colour = COLOURS[row.finding.severity]
    right = _WIDTH_PX - _MARGIN_PX
    draw.rectangle((_MARGIN_PX, y, right - 1, y + row.height_px - 1), fill=CARD, outline=EDGE)
    draw.rectangle((_MARGIN_PX, y, _MARGIN_PX + 7, y + row.height_px - 1), fill=colour)
    x, text_y = _MARGIN_PX + _PAD_PX + 10, y + _PAD_PX
    write_label(draw, row.heading, (x, text_y, right, text_y), ink=colour, align="left")
    text_y += row.heading.height_px + 4
    for label, ink in row.texts:
        write_label(draw, label, (x, text_y, right, text_y), ink=ink, align="left")
        text_y += label.height_px + 4
    x = right - _PAD_PX - len(row.thumbs) * (_THUMB_PX + 8) + 8
    for thumb in row.thumbs:
        box = (x, y + _PAD_PX, x + _THUMB_PX, y + _PAD_PX + _THUMB_PX)
        draw.rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=MAT)
        if isinstance(thumb, str):
            reason = clip_label(thumb, width_px=_THUMB_PX - 8, max_lines=6, font_px=11)
            write_label(draw, reason, box, ink=ALARM)
        else:
            image = thumb.image
            picture.paste(image, (x + (_THUMB_PX - image.width) // 2, box[1] + (_THUMB_PX - image.height) // 2))
        x += _THUMB_PX + 8


def _foot(report: Report, width_px: int) -> list[tuple[Label, Colour]]:
    lines: list[tuple[str, Colour]] = []
    if report.clean:
        lines.append((f"Looked for and not found: {', '.join(report.clean)}.", CLEAN))
    if report.not_done:
        lines.append((f"Not looked at: {'; '.join(report.not_done)}.", MUTED))
    return [(clip_label(text, width_px=width_px, max_lines=6, font_px=_TEXT_PX), ink) for text, ink in lines]


def _write_all(draw: ImageDraw.ImageDraw, lines: list[tuple[Label, Colour]], y: int) -> int:
    for label, ink in lines:
        write_label(draw, label, (_MARGIN_PX, y, _WIDTH_PX, y), ink=ink, align="left")
        y += label.height_px + 5
    return y
