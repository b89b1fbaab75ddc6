"""Pictures of LoRA files and of the differences of checkpoints."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from PIL import Image

from ..core.errors import missing_library
from ..merger.lora.differences import RANKS, LayerSpectrum, mean_shares
from ..merger.lora.inspection import Inspection
from ..merger.lora.overlap import LayerOverlap, mean_of

WIDTH_IN, ROW_IN, DPI = 9.0, 2.6, 100
ENERGY_COLOUR, RANK_COLOUR, AGAINST_COLOUR, TRAINED_COLOUR = "#1f5fa8", "#c2571a", "#b03030", "#8a8a8a"


def inspection_plot(found: Inspection, rows: Sequence[LayerOverlap] | None, other: str) -> Image.Image:
    """Norm and ranks by block; below, how far a second LoRA does the same."""
    figure, axes = _figure(2 if rows is None else 3)
    energies = found.energy_by_block()
    blocks = list(energies)
    axes[0].bar(blocks, [math.sqrt(value) for value in energies.values()], color=ENERGY_COLOUR)
    axes[0].set(title=found.name, ylabel="norm of the change")
    axes[1].bar(
        blocks, [_mean(found, block, "rank") for block in blocks], color=TRAINED_COLOUR, label="rank in the file"
    )
    used = [_mean(found, block, "used_rank") for block in blocks]
    axes[1].bar(blocks, used, color=RANK_COLOUR, width=0.5, label="ranks with 99 % of it")
    axes[1].set(ylabel="mean rank")
    axes[1].legend(fontsize="small")
    if rows is not None:
        shared = [block for block in blocks if any(row.block == block for row in rows)]
        values = [mean_of([row for row in rows if row.block == block], "cosine") for block in shared]
        colours = [AGAINST_COLOUR if value < 0 else ENERGY_COLOUR for value in values]
        axes[2].bar(shared, values, color=colours)
        axes[2].set(ylabel="cosine", title=f"against {other}", ylim=(-1, 1))
        axes[2].axhline(0, color="black", linewidth=0.6)
    return _drawn(figure, axes)


def difference_plot(rows: Sequence[LayerSpectrum], *, title: str) -> Image.Image:
    """Share of the energy by rank, of all layers and of each; below, the size of every block's change."""
    figure, axes = _figure(2)
    for row in rows:
        axes[0].plot(RANKS, row.shares, color=TRAINED_COLOUR, linewidth=0.5, alpha=0.4)
    axes[0].plot(RANKS, mean_shares(rows), color=ENERGY_COLOUR, linewidth=2.5, label="all layers together")
    axes[0].set_xscale("log", base=2)
    axes[0].set_xticks(RANKS, [str(rank) for rank in RANKS])
    axes[0].set(title=title, xlabel="rank of a LoRA", ylabel="share of the energy", ylim=(0, 1.02))
    axes[0].legend(fontsize="small", loc="lower right")
    blocks = list(dict.fromkeys(row.block for row in sorted(rows, key=lambda row: _order(row.block))))
    sizes = [
        sum(row.relative for row in rows if row.block == block) / sum(row.block == block for row in rows)
        for block in blocks
    ]
    axes[1].bar(blocks, sizes, color=RANK_COLOUR)
    axes[1].set(ylabel="change / weight")
    return _drawn(figure, axes)


def _order(block: str) -> tuple[int, str]:
    return (["TE", "IN", "MID", "OUT"].index(block.rstrip("0123456789")), block)


def _mean(found: Inspection, block: str, value: str) -> float:
    values = [
        facts.used_rank if value == "used_rank" else facts.module.rank
        for facts in found.modules
        if facts.module.block == block
    ]
    known = [number for number in values if number]
    return sum(known) / len(known) if known else 0.0


def _figure(rows: int) -> tuple[Any, list[Any]]:
    try:
        from matplotlib.figure import Figure
    except ImportError as cause:
        raise missing_library("matplotlib", "drawing a plot", "pip install matplotlib") from cause
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * rows), dpi=DPI, layout="constrained")
    return figure, list(figure.subplots(rows, 1))


def _drawn(figure: Any, axes: Sequence[Any]) -> Image.Image:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    for part in axes:
        part.grid(alpha=0.25)
        part.tick_params(axis="x", labelrotation=60, labelsize=8)
    buffer = io.BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    return Image.open(buffer).convert("RGB")


NODES: tuple[type, ...] = ()
"""No node of its own; the folder's discovery asks every file."""
