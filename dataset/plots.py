"""Plots of tags: frequency, co-occurrence, tags per picture, tokens per caption. All of one size."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..core.errors import missing_library
from ..core.fonts import font_path_for
from .tag_stats import TagStats
from .tokens import CHUNK_TOKENS
from .words import printable

WIDTH_IN, HEIGHT_IN, DPI = 12.0, 9.0, 100
MAX_BARS = 40
MAX_MATRIX = 30
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#c2571a", "#5a5a5a"
_MAX_NAME = 32
_ANNOTATED = 20
_TOKEN_LINES = (CHUNK_TOKENS, 2 * CHUNK_TOKENS, 3 * CHUNK_TOKENS)


def frequency_plot(stats: TagStats, *, title: str = "", top: int = MAX_BARS) -> Image.Image:
    """Bars of the most frequent tags with the number of pictures that hold each.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    figure, axes = _figure()
    if not stats.names:
        return _empty(figure, axes, "No picture has a tag")
    names, counts = stats.names[:top], stats.counts[:top]
    places = np.arange(len(names))
    bars = axes.barh(places, counts, color=_BLUE, height=0.75)
    shares = counts / max(1, stats.pictures)
    axes.bar_label(
        bars,
        labels=[f"{count}  ({share:.0%})" for count, share in zip(counts.tolist(), shares.tolist(), strict=True)],
        padding=4,
        fontsize=9,
        color=_GREY,
    )
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(1, int(counts.max(initial=1))) * 1.14)
    _name_ticks(axes.yaxis, names)
    axes.set_xlabel(f"pictures (of {stats.pictures})")
    shown = (
        f"the {len(names)} most frequent of {len(stats.names)} tags" if len(names) < len(stats.names) else "all tags"
    )
    _finish(axes, f"Tag frequency: {shown}", title, grid="x")
    return _drawn(figure)


def cooccurrence_plot(stats: TagStats, *, title: str = "") -> Image.Image:
    """Matrix: of the pictures with the tag of a row, the share that also hold the tag of a column.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    figure, axes = _figure()
    top = min(stats.top, MAX_MATRIX)
    if not top:
        return _empty(figure, axes, "No picture has a tag")
    together = stats.together[:top, :top].astype(np.float64)
    own = np.maximum(1.0, np.diag(together))
    shares = together / own[:, None]
    shown = np.ma.array(shares, mask=np.eye(top, dtype=bool))
    image = axes.imshow(shown, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
    names = stats.names[:top]
    _name_ticks(axes.yaxis, names)
    _name_ticks(axes.xaxis, names, rotation=60)
    if top <= _ANNOTATED:
        for row in range(top):
            for column in range(top):
                if row != column:
                    share = float(shares[row, column])
                    colour = "white" if share > 0.6 else _GREY
                    axes.text(column, row, f"{share:.0%}", ha="center", va="center", fontsize=8, color=colour)
    bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.02)
    bar.set_label("share of the row's pictures that hold the column's tag")
    _finish(axes, f"Co-occurrence of the {top} most frequent tags", title, grid="")
    return _drawn(figure)


def per_picture_plot(stats: TagStats, *, title: str = "") -> Image.Image:
    """Histogram of the number of tags per picture, with mean and median.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    figure, axes = _figure()
    per = stats.per_picture
    most = int(per.max(initial=0))
    step = max(1, -(-(most + 1) // 80))
    axes.hist(per, bins=np.arange(-0.5, most + step + 0.5, step), color=_BLUE, rwidth=0.9)
    if len(per):
        mean, median = float(per.mean()), float(np.median(per))
        axes.axvline(mean, color=_ORANGE, linewidth=2, label=f"mean {mean:.1f}")
        axes.axvline(median, color=_GREY, linewidth=2, linestyle="--", label=f"median {median:.0f}")
        axes.legend(loc="upper right")
    axes.set(xlabel="tags on a picture", ylabel="pictures")
    _finish(axes, "Tags per picture", title, grid="y")
    return _drawn(figure)


def tokens_plot(stats: TagStats, *, title: str = "") -> Image.Image:
    """Histogram of caption lengths in tokens, with the limits 75, 150 and 225.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    figure, axes = _figure()
    if stats.tokens is None:
        return _empty(figure, axes, "Tokens were not counted: no tokenizer was given")
    tokens = stats.tokens
    most = int(tokens.max(initial=0))
    right = max(most * 1.05, _TOKEN_LINES[0] * 1.1)
    step = max(1, -(-int(right) // 80))
    axes.hist(tokens, bins=np.arange(-0.5, right + step + 0.5, step), color=_BLUE, rwidth=0.9)
    top = axes.get_ylim()[1]
    for limit, style in zip(_TOKEN_LINES, ("-", "--", ":"), strict=True):
        over = int((tokens > limit).sum())
        share = over / max(1, len(tokens))
        label = f"longer than {limit}: {over} ({share:.0%})"
        if limit <= right:
            axes.plot([limit, limit], [0, top], color=_ORANGE, linewidth=1.8, linestyle=style, label=label)
            axes.text(limit, top * 1.01, str(limit), color=_ORANGE, fontsize=10, ha="center", va="bottom")
    axes.legend(loc="upper right")
    axes.set_ylim(0, top * 1.08)
    axes.set_xlim(-1, right)
    axes.set(xlabel="tokens of a caption (without start and end mark)", ylabel="pictures")
    _finish(axes, "Caption length: a text encoder reads 75 tokens at a time", title, grid="y")
    return _drawn(figure)


def _figure() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise missing_library("matplotlib", "drawing a plot", "pip install matplotlib") from cause
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _empty(figure: Any, axes: Any, text: str) -> Image.Image:
    axes.axis("off")
    axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=14)
    return _drawn(figure)


def _finish(axes: Any, heading: str, title: str, *, grid: str) -> None:
    text = f"{heading}\n{printable(title)}" if title else heading
    axes.set_title(text, fontsize=13, pad=12, **_font(text))
    if grid:
        axes.grid(axis=grid, alpha=0.3)
        axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _name_ticks(axis: Any, names: Sequence[str], *, rotation: float = 0.0) -> None:
    shown = [_short(name) for name in names]
    size = 10 if len(names) <= 30 else 8.5
    axis.set_ticks(np.arange(len(shown)))
    # A dollar sign would begin a formula.
    labels = axis.set_ticklabels([name.replace("$", r"\$") for name in shown], fontsize=size)
    for label, name in zip(labels, shown, strict=True):
        if font := _font(name):
            label.set_fontproperties(font["fontproperties"])
            label.set_fontsize(size)
        if rotation:
            label.set(rotation=rotation, ha="right", rotation_mode="anchor")


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _MAX_NAME else text[: _MAX_NAME - 1] + "\u2026"


def _font(text: str) -> dict[str, Any]:
    """The font of a label that matplotlib's own font lacks characters for."""
    if text.isascii():
        return {}
    path = font_path_for(text)
    if path is None:
        return {}
    from matplotlib.font_manager import FontProperties

    return {"fontproperties": FontProperties(fname=path)}


def _drawn(figure: Any) -> Image.Image:
    buffer = io.BytesIO()
    figure.canvas.print_png(buffer)
    return Image.open(buffer).convert("RGB")
