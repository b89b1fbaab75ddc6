"""What a tagger file exports: the facts that tell published taggers apart."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Layout = Literal["NHWC", "NCHW"]
Pad = Literal["white", "black", "mean", "edge", "none"] | tuple[int, int, int]
Resample = Literal["bicubic", "bilinear", "lanczos", "box"]


@dataclass(frozen=True, kw_only=True)
class TaggerSpec:
    """The export ``TAGGER`` of a file in this folder.

    Ten facts decide how a picture reaches the graph and what its numbers mean: layout, channel order, scale, mean and
    deviation, size, padding, resampling, output, tag table, categories with their thresholds. The others find files.

    Attributes:
        name: Title in messages.
        summary: One sentence.
        source: Where the facts come from.
        model_names: File names of the graph, the usual one first; ``*`` stands for anything.
        layout: Axes of the input.
        channels: Order of the colours.
        scale: Largest value of a colour before mean and deviation: 255 or 1.
        mean: Subtracted per channel, in the order of `channels`, after scaling.
        deviation: Divided by, likewise.
        size_px: Side of the input where the graph leaves it free; the graph's own size goes first.
        pad: How a picture is made square: filled with white, black, its mean, its edge or a colour (red, green, blue),
            or stretched (``none``).
        fit_first: Made smaller before it is padded; else padded at full size and then made smaller.
        resample: Filter of the resize.
        output: Index of the output that holds the scores; the last one where the graph has fewer.
        output_name: Part of the name of that output, which goes before `output` where one has it.
        sigmoid: Whether the graph leaves it to us to apply the sigmoid; None finds it out by trying.
        table_names: File names of the tag table, the usual one first; ``*`` stands for anything.
        name_column: Column of a CSV table that holds names.
        category_column: Column that holds categories; "" where there is none (all are general).
        categories: Category number (or word in the table) to word; of the ``argmax`` ones only the strongest counts.
        argmax: Categories of which only the strongest tag counts.
        default_thresholds: Threshold per category for a model that `thresholds` does not know.
        thresholds: Threshold per category for models by a part of their file or folder name.
        hints: Parts of a folder or file name by which this kind is known among those with the same files.
        beside: Names of other files that lie beside the graph of this kind, and only of this kind.
        stages_file: JSON beside the graph whose stage ``normalize`` gives mean and deviation, where it lies there.
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
    fit_first: bool = False
    resample: Resample
    output: int = 0
    output_name: str = ""
    sigmoid: bool | None = None
    table_names: tuple[str, ...] = ("selected_tags.csv",)
    name_column: str = "name"
    category_column: str = "category"
    categories: Mapping[int | str, str]
    argmax: tuple[str, ...] = ("rating",)
    default_thresholds: Mapping[str, float]
    thresholds: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    hints: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()
    stages_file: str = ""

    def preparation(self) -> tuple[object, ...]:
        """Everything that decides how a picture reaches the graph."""
        return (
            self.layout, self.channels, self.scale, self.mean, self.deviation, self.pad, self.fit_first, self.resample,
        )  # fmt: skip


DANBOORU: Mapping[int | str, str] = {
    0: "general",
    1: "artist",
    3: "copyright",
    4: "character",
    5: "meta",
    9: "rating",
}
"""Category numbers of danbooru, with the 9 that SmilingWolf's tables add for ratings."""
