"""A run's loss as a picture."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ..core.errors import InputError, missing_library
from ..core.files import write_bytes
from .run import RunInfo

DOTS_PER_INCH = 100


def smoothed(values: Sequence[float], *, weight: float = 0.95) -> list[float]:
    """Returns the exponential moving average, corrected for its start at zero.

    Source: Kingma and Ba 2015 (Adam), section 3, the bias correction.
    """
    found: list[float] = []
    mean = 0.0
    for number, value in enumerate(values, start=1):
        mean = weight * mean + (1.0 - weight) * value
        found.append(mean / (1.0 - weight**number))
    return found


def draw_loss(run: RunInfo, *, width_px: int = 900, height_px: int = 500) -> Image.Image:
    """Draws the loss of every step, its moving average, and the learning rates.

    Raises:
        InputError: the run has no finished step.
        MissingLibraryError: matplotlib is not installed.
    """
    if not run.rows:
        raise InputError(f"The run {run.name} has no finished step yet, so there is no loss to draw; train it first.")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise missing_library("matplotlib", "the loss plot", "pip install matplotlib") from cause
    steps = [row["step"] for row in run.rows]
    losses = [row["loss"] for row in run.rows]
    figure = Figure(figsize=(width_px / DOTS_PER_INCH, height_px / DOTS_PER_INCH), dpi=DOTS_PER_INCH)
    canvas = FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [4, 1]})
    upper.plot(steps, losses, color="#9db8d2", linewidth=0.7, label="loss of a step")
    upper.plot(steps, smoothed(losses), color="#1f4e79", linewidth=1.8, label="moving average")
    for step, _ in run.checkpoints:
        upper.axvline(step, color="#bbbbbb", linewidth=0.6, linestyle=":")
    upper.set_ylabel("loss")
    upper.set_title(run.name)
    upper.legend(loc="upper right", frameon=False)
    for column, colour, label in (("lr_unet", "#1f4e79", "UNet"), ("lr_text_encoder", "#c55a11", "text encoder")):
        rates = [row[column] for row in run.rows]
        if any(rate > 0.0 for rate in rates):
            lower.plot(steps, rates, color=colour, linewidth=1.2, label=label)
    lower.set_ylabel("learning rate")
    lower.set_xlabel("step")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if lower.lines:
        lower.legend(loc="upper right", frameon=False, fontsize="small")
    figure.tight_layout()
    canvas.draw()
    return Image.frombuffer(
        "RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba()), "raw", "RGBA", 0, 1
    ).convert("RGB")


def save_loss_plot(run: RunInfo) -> Path:
    """Writes ``plots/loss.png`` of the run and returns its place."""
    picture = io.BytesIO()
    draw_loss(run).save(picture, format="PNG")
    path = run.folder / "plots" / "loss.png"
    write_bytes(path, picture.getvalue())
    return path
