"""The loss curve of a run as a picture."""

from __future__ import annotations

import io
from collections.abc import Sequence

from PIL import Image

from ..core.errors import InputError, missing_library
from ..trainer.run import RunInfo

WIDTH_IN, HEIGHT_IN, DPI = 8.0, 4.5, 100
LOSS_COLOUR, RATE_COLOUR = "#1f5fa8", "#c2571a"


def smoothed(values: Sequence[float], smoothing: float) -> list[float]:
    """Exponential mean with bias correction, as Kingma and Ba 2015 (Adam), section 3, divide by 1 - beta^t."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean = smoothing * mean + (1.0 - smoothing) * value
        weight = smoothing * weight + (1.0 - smoothing)
        out.append(mean / weight)
    return out


def loss_plot(run: RunInfo, *, smoothing: float) -> Image.Image:
    """Loss (thin: raw, thick: smoothed) and learning rates over the steps.

    Raises:
        InputError: The run has no step yet.
        MissingLibraryError: matplotlib is not installed.
    """
    if not run.rows:
        raise InputError(f"The run {run.name} has no step to draw; train it first.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise missing_library("matplotlib", "drawing a plot", "pip install matplotlib") from cause
    steps = [row["step"] for row in run.rows]
    losses = [row["loss"] for row in run.rows]
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    axes.plot(steps, losses, color=LOSS_COLOUR, linewidth=0.6, alpha=0.35)
    axes.plot(steps, smoothed(losses, smoothing), color=LOSS_COLOUR, linewidth=2, label=f"loss, smoothed {smoothing:g}")
    axes.set(xlabel="step", ylabel="loss", title=run.name)
    axes.grid(alpha=0.25)
    rates = axes.twinx()
    for column, style, label in _rate_lines(run):
        values = [row[column] for row in run.rows]
        if any(values):
            rates.plot(steps, values, color=RATE_COLOUR, linewidth=1, linestyle=style, label=label)
    rates.set_ylabel("learning rate")
    rates.set_ylim(bottom=0)
    lines = [line for part in (axes, rates) for line in part.get_legend_handles_labels()[0]]
    axes.legend(handles=lines, loc="upper right", fontsize="small")
    canvas = FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return Image.open(buffer).convert("RGB")


def _rate_lines(run: RunInfo) -> tuple[tuple[str, str, str], ...]:
    """Column, line style and label of each rate; of an optimizer that finds its rate, the one it found.

    The rates that are set are factors on it then, 1 most often, beside which it would not be seen.
    """
    if any(row.get("effective_lr", row["lr_unet"]) not in (row["lr_unet"], row["lr_text_encoder"]) for row in run.rows):
        return (("effective_lr", "-", "lr found (d x lr)"),)
    return (("lr_unet", "-", "lr UNet"), ("lr_text_encoder", "--", "lr text encoder"))
