"""A confusion matrix as a picture."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from ..core.errors import missing_library
from ..tagger.classifier import Verdict

DPI = 100
MAX_NUMBERS = 30
"""Above so many labels the cells hold no numbers."""


def confusion_plot(found: Verdict, title: str) -> Image.Image:
    """Rows are what is true, columns what the classifier said; colours are shares of a row.

    Raises:
        MissingLibraryError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise missing_library("matplotlib", "drawing a plot", "pip install matplotlib") from cause
    number = len(found.names)
    side_in = min(16.0, 3.0 + 0.45 * number)
    figure = Figure(figsize=(side_in + 1.5, side_in), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    shares = found.confusion / np.maximum(1, found.confusion.sum(axis=1, keepdims=True))
    picture = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0)
    names = [name if len(name) <= 24 else f"{name[:21]}..." for name in found.names]
    axes.set_xticks(range(number), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(number), names)
    if number <= MAX_NUMBERS:
        for row in range(number):
            for column in range(number):
                if found.confusion[row, column]:
                    colour = "white" if shares[row, column] > 0.5 else "black"
                    axes.text(column, row, str(found.confusion[row, column]), ha="center", va="center", color=colour)
    axes.set(xlabel="said", ylabel="true")
    axes.set_title(f"{title}: {found.accuracy:.1%} of {found.confusion.sum()} held-out pictures", fontsize="medium")
    figure.colorbar(picture, ax=axes, shrink=0.8, label="share of the row")
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return Image.open(buffer).convert("RGB")
