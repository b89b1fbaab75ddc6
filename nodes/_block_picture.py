"""The block map as a picture: the way in on the left, the way out on the right, joined by skips side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, ImageDraw

from ..core.errors import unknown_name
from ..core.fonts import Font, font_for
from ..core.labels import clip_label
from ..merger.lora.block_map import BlockMap, BlockRow

Colour = tuple[int, int, int]

_OVERSAMPLING = 2
"""Shapes are drawn this many times as large, so that their edges are smooth."""

WIDTH_PX = 1040
_MARGIN_PX = 30
_ROW_PX = 34
_BAR_PX = 20
_NAME_PX = 62
"""Width of a block's name; two stand side by side in the middle."""
_TEXT_PX = 128
"""Room for the numbers beyond the longest bar."""
_HEAD_PX = 104
_NOTE_PX = 20


@dataclass(frozen=True, kw_only=True)
class Theme:
    """Colours of a picture; the bar's solid colour by kind of block."""

    ground: Colour
    band: Colour
    ink: Colour
    quiet: Colour
    line: Colour
    bars: Mapping[str, Colour]
    pale: float

    def pale_of(self, kind: str) -> Colour:
        """A bar's colour where block weights take it away."""
        red, green, blue = (
            round(ground + (colour - ground) * self.pale)
            for ground, colour in zip(self.ground, self.bars[kind], strict=True)
        )
        return red, green, blue


THEMES: Mapping[str, Theme] = {
    "light": Theme(
        ground=(255, 255, 255),
        band=(245, 247, 250),
        ink=(27, 36, 48),
        quiet=(112, 124, 140),
        line=(216, 222, 230),
        bars={"TE": (124, 92, 191), "IN": (47, 111, 190), "MID": (214, 133, 35), "OUT": (35, 140, 104)},
        pale=0.26,
    ),
    "dark": Theme(
        ground=(24, 27, 33),
        band=(32, 36, 43),
        ink=(233, 236, 241),
        quiet=(146, 154, 167),
        line=(58, 64, 74),
        bars={"TE": (176, 146, 240), "IN": (98, 162, 244), "MID": (242, 176, 84), "OUT": (84, 197, 154)},
        pale=0.32,
    ),
}


def draw_block_map(found: BlockMap, *, theme: str = "light") -> Image.Image:
    """Draw the map: a bar per block, as long as its energy; pale as the file has it, solid with weights and strengths.

    Raises:
        UnknownNameError: There is no such theme.
    """
    if theme not in THEMES:
        raise unknown_name("theme", theme, THEMES)
    return _Sheet(found, THEMES[theme]).drawn()


class _Sheet:
    def __init__(self, found: BlockMap, theme: Theme) -> None:
        self.found, self.theme = found, theme
        by_name = {row.block: row for row in found.rows}
        self.texts = [row for row in found.rows if row.block.startswith("TE")]
        ins = [row for row in found.rows if row.block.startswith("IN")]
        outs = [row for row in found.rows if row.block.startswith("OUT")]
        self.pairs = list(zip(ins, reversed(outs), strict=True))
        self.middle = by_name["MID"]
        self.largest = max(max(row.energy, row.weighted) for row in found.rows) or 1.0
        self.is_weighted = any(row.num_modules and row.factors != (1.0, 1.0) for row in found.rows)
        rows = len(self.texts) + len(self.pairs) + 1
        height = _HEAD_PX + rows * _ROW_PX + 2 * 10 + _MARGIN_PX + _NOTE_PX
        size = (WIDTH_PX * _OVERSAMPLING, height * _OVERSAMPLING)
        self.picture = Image.new("RGB", size, theme.ground)
        self.draw = ImageDraw.Draw(self.picture)
        self.centre = WIDTH_PX / 2
        self.longest_px = self.centre - _MARGIN_PX - _NAME_PX - _TEXT_PX

    def drawn(self) -> Image.Image:
        self._head()
        top = float(_HEAD_PX)
        for row in self.texts:
            self._centred(row, top)
            top += _ROW_PX
        top += 10
        for index, (left, right) in enumerate(self.pairs):
            if index % 2 == 0:
                self._box(_MARGIN_PX / 2, top, WIDTH_PX - _MARGIN_PX / 2, top + _ROW_PX, self.theme.band, radius=6)
            self._side(left, top, direction=-1)
            self._side(right, top, direction=1)
            top += _ROW_PX
        top += 10
        self._centred(self.middle, top)
        words = "bar: Frobenius norm of the change; percent: share of the squared norm; number: modules"
        self._text(words, self.centre, top + _ROW_PX + 18, size=12, colour=self.theme.quiet, anchor="mm")
        size = (self.picture.width // _OVERSAMPLING, self.picture.height // _OVERSAMPLING)
        return self.picture.resize(size, Image.Resampling.LANCZOS)

    def _head(self) -> None:
        rows = [row for row in self.found.rows if row.num_modules]
        name = clip_label(self.found.name, width_px=WIDTH_PX - 2 * _MARGIN_PX - 330, max_lines=1, font_px=22)
        self._text("".join(name.lines), _MARGIN_PX, 34, size=22, anchor="lm")
        facts = (
            f"{self.found.title}   {len(rows)} of {len(self.found.rows)} blocks   "
            f"{sum(row.num_modules for row in rows)} modules   {sum(row.num_keys for row in rows)} keys   "
            f"energy {self.found.energy:.4g}"
        )
        self._text(facts, _MARGIN_PX, 62, size=14, colour=self.theme.quiet, anchor="lm")
        self._legend()
        y = _HEAD_PX - 14
        self._line(_MARGIN_PX, y, WIDTH_PX - _MARGIN_PX, y)

    def _legend(self) -> None:
        if not self.is_weighted:
            return
        words = self.found.weights.strip() or "strengths"
        label = clip_label(words, width_px=230, max_lines=1, font_px=13)
        right = WIDTH_PX - _MARGIN_PX
        shown = f"solid: with {''.join(label.lines)}"
        self._text(shown, right, 36, size=13, colour=self.theme.quiet, anchor="rm")
        self._text("pale: as the file has it", right, 60, size=13, colour=self.theme.quiet, anchor="rm")

    def _centred(self, row: BlockRow, top: float) -> None:
        """A block without a partner: its bar grows both ways from the middle."""
        y, kind = top + _ROW_PX / 2, "MID" if row.block == "MID" else "TE"
        colour = self.theme.ink if row.num_modules else self.theme.quiet
        name_px = _NAME_PX * 0.62
        for direction in (-1, 1):
            start = self.centre + direction * name_px
            for length, fill in self._bars(row, kind):
                ends = sorted((start, start + direction * length / 2))
                self._box(ends[0], y - _BAR_PX / 2, ends[1], y + _BAR_PX / 2, fill, radius=4)
        self._text(row.block, self.centre, y, size=15, colour=colour, anchor="mm")
        end = self.centre + name_px + max((length for length, _ in self._bars(row, kind)), default=0.0) / 2
        self._numbers(row, end + 8, y, direction=1)

    def _side(self, row: BlockRow, top: float, *, direction: int) -> None:
        y, kind = top + _ROW_PX / 2, "IN" if direction < 0 else "OUT"
        start = self.centre + direction * _NAME_PX
        for length, fill in self._bars(row, kind):
            ends = sorted((start, start + direction * length))
            self._box(ends[0], y - _BAR_PX / 2, ends[1], y + _BAR_PX / 2, fill, radius=4)
        colour = self.theme.ink if row.num_modules else self.theme.quiet
        self._text(row.block, self.centre + direction * _NAME_PX / 2, y, size=15, colour=colour, anchor="mm")
        longest = max((length for length, _ in self._bars(row, kind)), default=0.0)
        self._numbers(row, start + direction * (longest + 8), y, direction=direction)

    def _bars(self, row: BlockRow, kind: str) -> list[tuple[float, Colour]]:
        """Length and colour of a block's bars, the longer first."""
        as_it_is = self.longest_px * row.energy / self.largest
        weighted = self.longest_px * row.weighted / self.largest
        bars = [(as_it_is, self.theme.pale_of(kind)), (weighted, self.theme.bars[kind])]
        return [(length, colour) for length, colour in sorted(bars, key=lambda bar: -bar[0]) if length > 0.0]

    def _numbers(self, row: BlockRow, x: float, y: float, *, direction: int) -> None:
        anchor = "lm" if direction > 0 else "rm"
        if not row.num_modules:
            self._text("not in the file", x, y, size=12, colour=self.theme.quiet, anchor=anchor)
            return
        low, high = row.factors
        if row.unknown == row.num_modules:
            said = "?"
        else:
            said = f"{row.energy:.3g}  {self.found.share(row):.0%}" if self.found.share(row) >= 0.095 else (
                f"{row.energy:.3g}  {self.found.share(row):.1%}"
            )  # fmt: skip
        if (low, high) != (1.0, 1.0):
            said += f"  x{low:g}" if low == high else f"  x{low:g}-{high:g}"
        words = f"{row.num_modules}"
        first = (said, self.theme.ink, 14), (words, self.theme.quiet, 12)
        for words, colour, size in first:
            self._text(words, x, y, size=size, colour=colour, anchor=anchor)
            x += direction * (self._width(words, size) + 8)

    # in pixels of the finished picture -----------------------------------------------------------------------------
    def _font(self, text: str, size: int) -> Font:
        return font_for(text, size * _OVERSAMPLING)

    def _width(self, text: str, size: int) -> float:
        return float(self._font(text, size).getlength(text)) / _OVERSAMPLING

    def _text(self, text: str, x: float, y: float, *, size: int, anchor: str, colour: Colour | None = None) -> None:
        place = (x * _OVERSAMPLING, y * _OVERSAMPLING)
        self.draw.text(place, text, font=self._font(text, size), fill=colour or self.theme.ink, anchor=anchor)

    def _box(self, left: float, top: float, right: float, bottom: float, colour: Colour, *, radius: float) -> None:
        corners = [value * _OVERSAMPLING for value in (left, top, max(right, left + 1.0), bottom)]
        radius = min(radius, (right - left) / 2) if right > left else 0.0
        self.draw.rounded_rectangle(corners, radius=radius * _OVERSAMPLING, fill=colour)

    def _line(self, left: float, top: float, right: float, bottom: float) -> None:
        ends = [value * _OVERSAMPLING for value in (left, top, right, bottom)]
        self.draw.line(ends, fill=self.theme.line, width=_OVERSAMPLING)
