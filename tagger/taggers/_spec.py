"""What a tagger file exports: the ten facts that tell published taggers apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["NHWC", "NCHW"]
Pad = Literal["white", "black", "mean", "edge", "none"]
Resample = Literal["bicubic", "bilinear", "lanczos", "box"]


@dataclass(frozen=True, kw_only=True)
class TaggerSpec:
    """The export ``TAGGER`` of a file in this folder.

    Attributes:
        name: Title in messages.
        summary: One sentence.
        source: Where the facts come from.
        model_names: File names of the graph, the usual one first.
        layout: Axes of the input.
        channels: Order of the colours.
        scale: Largest value of a colour before mean and deviation: 255 or 1.
        mean: Subtracted per channel, in the order of `channels`, after scaling.
        deviation: Divided by, likewise.
        size_px: Side of the input where the graph leaves it free; the graph's own size goes first.
        pad: How a picture is made square: filled with a colour, its mean, its edge, or stretched (``none``).
        resample: Filter of the resize.
        output: Index of the output that holds the scores.
        sigmoid: Whether the graph leaves it to us to apply the sigmoid.
        table_names: File names of the tag table, the usual one first.
        name_column: Column of the tag table that holds names.
        category_column: Column that holds categories.
        categories: Category number to word; of the ``rating`` ones only the strongest counts.
        default_thresholds: Threshold per category for a model that `thresholds` does not know.
        thresholds: Threshold per category for models by a part of their file or folder name.
    """

    name: str
    summary: str
    source: str
    model_names: tuple[str, ...] = ("model.onnx",)
    layout: Layout
    channels: Literal["RGB", "BGR"]
    scale: float
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    deviation: tuple[float, float, float] = (1.0, 1.0, 1.0)
    size_px: int
    pad: Pad
    resample: Resample
    output: int = 0
    sigmoid: bool = False
    table_names: tuple[str, ...] = ("selected_tags.csv",)
    name_column: str = "name"
    category_column: str = "category"
    categories: Mapping[int, str]
    default_thresholds: Mapping[str, float]
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
