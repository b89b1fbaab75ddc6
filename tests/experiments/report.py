"""The tables and the curves of docs/experiments.md for the trainer's settings, out of the lines."""

import io
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from . import formats, keeping, learning, resolution, settings, words
from .picture import rows_of_arms

Line = Mapping[str, Any]

_TRAITS = tuple(f"traits_{step}" for step in learning.SEEN_AT)
_CURVE = ("speed", *_TRAITS, "recall_240", "loss")
FIGURES: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(settings.ARMS, _CURVE),
    "g": ("traits_end", *_TRAITS, "recall_240", "speed", "loss"),
    "g-more": ("traits_end", *_TRAITS, "traits_360", "traits_480", "recall_end", "loss"),
    "h": ("kept_120", "kept_240", "false_120", "false_240", "recall_120", "recall_240", "loss"),
    "i": ("own_end", "other_end", *(f"{name}_{step}" for step in words.SEEN_AT for name in ("own", "other")), "loss"),
    "k": _CURVE,
    "l": ("traits_end", *_TRAITS, "recall_240", "loss", "warned", "stopped"),
    "l-start": ("likeness", "warned"),
}
"""Columns of each experiment's table; the others are in the lines."""
_ONLY_MEAN = re.compile(r"(loss|(traits|own|other)_\d+)$")
"""Columns without the seeds' own figures, which are in the lines."""

PANELS: Sequence[tuple[str, str]] = (
    ("d", "D  alpha up, rates up"),
    ("e", "E  schedule"),
    ("f", "F  text encoder's rate"),
    ("g", "G  blocks"),
    ("j", "J  optimizers"),
    ("k", "K  resolution"),
    ("l", "L  number formats"),
    ("i", "I  two triggers"),
)
LEGENDS: Mapping[str, Any] = {"g": (0.56, 0.52), "i": "upper left"}
"""Where a panel's lines leave room, if not below on the right."""
COLOURS = ("#1f6fb4", "#d95f0e", "#3a9a4b", "#8a4fb0")
SHEET_STEP = 120


def _values(lines: Iterable[Line], experiment: str, arm: str, figure: str) -> list[float]:
    mine = [line for line in lines if (line["experiment"], line["arm"]) == (experiment, arm)]
    return [
        line["figures"][figure] for line in sorted(mine, key=lambda line: line["seed"]) if figure in line["figures"]
    ]


def _cell(figure: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    if figure == "loss":
        return f"{statistics.fmean(values):.4f}"
    if figure == "warned":
        return "yes" if all(values) else "no" if not any(values) else "some"
    if figure == "stopped":
        return ", ".join(f"{value:.0f}" if value else "no" for value in values)
    if figure == "likeness":
        return f"{statistics.fmean(values):.2f} ({', '.join(f'{value:.2f}' for value in values)})"
    mean = f"**{statistics.fmean(values):.0%}**"
    return mean if _ONLY_MEAN.match(figure) else f"{mean} ({', '.join(f'{value:.0%}' for value in values)})"


def table(lines: Sequence[Line], experiment: str) -> str:
    """The table of an experiment: the mean of each figure and the seeds' own in brackets."""
    figures = FIGURES[experiment]
    arms = list(dict.fromkeys(line["arm"] for line in lines if line["experiment"] == experiment))
    rows = [f"| arm | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
    for arm in arms:
        cells = [_cell(figure, _values(lines, experiment, arm, figure)) for figure in figures]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(rows)


def curves(lines: Sequence[Line]) -> Image.Image:
    """Traits over the steps for every arm: thick the mean, thin the seeds; of I also what shows of the other one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6), dpi=80, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    for place, (experiment, heading) in zip(figure.subplots(2, 4, sharey=True).flat, PANELS, strict=True):
        kinds = (("own", "-"), ("other", ":")) if experiment == "i" else (("traits", "-"),)
        steps = words.SEEN_AT if experiment == "i" else learning.SEEN_AT
        arms = list(dict.fromkeys(line["arm"] for line in lines if line["experiment"] == experiment))
        for arm, colour in zip(arms, COLOURS, strict=False):
            for kind, style in kinds:
                seeds = [_values(lines, experiment, arm, f"{kind}_{step}") for step in steps]
                for one in zip(*seeds, strict=True):
                    place.plot(steps, one, style, color=colour, alpha=0.3, linewidth=1)
                mean = [statistics.fmean(values) for values in seeds]
                name = arm if kind != "other" else f"{arm}: of the other"
                place.plot(steps, mean, style, color=colour, linewidth=2.4, label=name)
        place.set_title(heading, fontsize=11, loc="left")
        place.set(xticks=steps, ylim=(-0.02, 1.02))
        place.grid(alpha=0.3)
        place.legend(fontsize=8, loc=LEGENDS.get(experiment, "lower right"))
    figure.supxlabel("steps")
    figure.supylabel("traits seen")
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return Image.open(buffer).convert("RGB")


def sheets(folder: Path, seed: int = 0) -> dict[str, Image.Image]:
    """The rows of pictures of the experiments in which they tell something, by the experiment's name."""
    kept = folder / "sheets"

    def learned(name: str) -> Path:
        return kept / f"learning-{name.replace(' ', '-')}-{seed}-{SHEET_STEP}.png"

    found = {
        name: [(arm, learned(recipe)) for arm, recipe in settings.ARMS[name].items()] for name in ("d", "e", "g", "j")
    }
    found["k"] = [(arm, learned(f"{side}px")) for arm, side in resolution.ARMS.items()]
    found["h"] = [
        (f"{arm}, {step}", kept / f"keeping-{arm}-{seed}-{step}.png")
        for arm in keeping.ARMS
        for step in keeping.SEEN_AT
    ]
    found["i"] = [(arm, kept / f"words-{arm.replace(' ', '-')}-{seed}-{words.STEPS}.png") for arm in words.ARMS]
    found["l"] = [("fp32", learned("common"))] + [(arm, learned(arm)) for arm in list(formats.ARMS)[1:3]]
    mixed = {"h": (0, 1, 2, *range(12, 18)), "i": (*range(4), *range(words.NUM_PICTURES, words.NUM_PICTURES + 4))}
    return {
        name: rows_of_arms(rows, mixed.get(name, range(8)))
        for name, rows in found.items()
        if all(path.exists() for _, path in rows)
    }


def write(lines: Sequence[Line], folder: Path) -> None:
    """Writes tables, curves and rows of pictures into ``report`` in the experiments' folder."""
    target = folder / "report"
    target.mkdir(parents=True, exist_ok=True)
    there = {line["experiment"] for line in lines}
    text = "\n\n".join(f"### {name}\n\n{table(lines, name)}" for name in FIGURES if name in there)
    (target / "tables.md").write_text(text + "\n", encoding="utf-8", newline="\n")
    curves(lines).save(target / "curves.png")
    for name, picture in sheets(folder).items():
        picture.save(target / f"{name}.jpg", quality=82)
