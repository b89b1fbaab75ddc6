"""Runs what is not there yet, one line of JSON per finished (experiment, arm, seed)."""

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from . import captions, crops, formats, keeping, resolution, settings, sizes, words
from .world import World

PROTOCOL = 1
"""Raised when what is done, drawn or counted changes; figures of an older protocol are not taken."""
ROOT = Path(__file__).resolve().parents[2]
DEFAULT_FOLDER = ROOT / "build" / "experiments"
SEEDS = (0, 1, 2)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One comparison.

    Attributes:
        name: As the command line takes it.
        arms: What is compared.
        run: Trains and judges one arm with one seed.
    """

    name: str
    arms: tuple[str, ...]
    run: Callable[[World, str, int], Mapping[str, float]]


EXPERIMENTS: Mapping[str, Experiment] = {
    one.name: one
    for one in (
        Experiment(
            name="a-character", arms=captions.ARMS, run=lambda *given: captions.run(given[0], "kest", *given[1:])
        ),
        Experiment(name="c", arms=crops.ARMS, run=crops.run),
        Experiment(name="c-plain", arms=crops.PLAIN_ARMS, run=crops.run),
        Experiment(name="c-framed", arms=crops.FRAMED_ARMS, run=crops.run),
        Experiment(name="a-style", arms=captions.ARMS, run=lambda *given: captions.run(given[0], "tavi", *given[1:])),
        Experiment(name="b", arms=sizes.ARMS, run=sizes.run),
        Experiment(name="b-single", arms=sizes.ARMS, run=sizes.run_single),
        Experiment(name="b-known", arms=sizes.ARMS, run=sizes.run_known),
        *(
            Experiment(name=name, arms=tuple(arms), run=partial(settings.run, experiment=name))
            for name, arms in settings.ARMS.items()
        ),
        Experiment(name="h", arms=keeping.ARMS, run=keeping.run),
        Experiment(name="i", arms=words.ARMS, run=words.run),
        Experiment(name="k", arms=tuple(resolution.ARMS), run=resolution.run),
        Experiment(name="l", arms=tuple(formats.ARMS), run=formats.run),
        Experiment(name="l-start", arms=tuple(formats.START_ARMS), run=formats.run_start),
    )
}


def run_missing(
    names: Sequence[str] = tuple(EXPERIMENTS),
    seeds: Iterable[int] = SEEDS,
    *,
    folder: Path = DEFAULT_FOLDER,
    arms: Sequence[str] | None = None,
    say: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Runs every (experiment, arm, seed) that has no line yet; a stopped training goes on where it stopped.

    Args:
        names: Experiments.
        seeds: With which they are run.
        folder: Where lines, sheets, data sets and trainings lie.
        arms: Only these; None for all.
        say: Told each new line.

    Returns:
        The lines of what was asked for.
    """
    seeds = tuple(seeds)
    folder.mkdir(parents=True, exist_ok=True)
    lines = folder / "results.jsonl"
    world = World(folder / "work")
    done = {_key(line): line for line in read_lines(lines)}
    wanted = [(name, arm, seed) for name in names for seed in seeds for arm in EXPERIMENTS[name].arms
              if arms is None or arm in arms]  # fmt: skip
    for name, arm, seed in wanted:
        if (name, arm, seed) in done:
            continue
        started = time.monotonic()
        figures = EXPERIMENTS[name].run(world, arm, seed)
        line = {
            "protocol": PROTOCOL,
            "experiment": name,
            "arm": arm,
            "seed": seed,
            "figures": {key: round(float(value), 4) for key, value in figures.items()},
            "wall_s": round(time.monotonic() - started, 1),
        }
        _append(lines, line)
        done[name, arm, seed] = line
        say(json.dumps(line))
    return [done[key] for key in wanted]


def _append(path: Path, line: Mapping[str, Any]) -> None:
    """Adds a line behind the last whole one; one that a kill cut short gets an end first."""
    before = path.read_bytes() if path.exists() else b""
    is_cut = bool(before) and not before.endswith(b"\n")
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(("\n" if is_cut else "") + json.dumps(line) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The finished lines of this protocol; one that a kill cut short is left out."""
    if not path.exists():
        return
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if line.get("protocol") == PROTOCOL:
            yield line


def means(lines: Iterable[Mapping[str, Any]], experiment: str, figure: str) -> dict[str, float]:
    """Mean over the seeds of a figure, by arm."""
    found: dict[str, list[float]] = {}
    for line in lines:
        if line["experiment"] == experiment:
            found.setdefault(line["arm"], []).append(line["figures"][figure])
    return {arm: statistics.fmean(values) for arm, values in found.items()}


def by_seed(lines: Iterable[Mapping[str, Any]], experiment: str, figure: str) -> dict[int, dict[str, float]]:
    """A figure by seed and arm."""
    found: dict[int, dict[str, float]] = {}
    for line in lines:
        if line["experiment"] == experiment:
            found.setdefault(line["seed"], {})[line["arm"]] = line["figures"][figure]
    return found


def table(lines: Sequence[Mapping[str, Any]]) -> str:
    """Every figure of every arm: mean, and the seeds' own in brackets."""
    rows = []
    for name, experiment in EXPERIMENTS.items():
        mine = [line for line in lines if line["experiment"] == name]
        if not mine:
            continue
        figures = list(mine[0]["figures"])
        rows += [f"### {name}", "", f"| arm | {' | '.join(figures)} |", "|---" * (len(figures) + 1) + "|"]
        for arm in experiment.arms:
            cells = []
            for figure in figures:
                values = [line["figures"][figure] for line in sorted(mine, key=lambda line: line["seed"])
                          if line["arm"] == arm and figure in line["figures"]]  # fmt: skip
                cells.append(_cell(figure, values))
            rows.append(f"| {arm} | {' | '.join(cells)} |")
        rows.append("")
    return "\n".join(rows)


def _cell(figure: str, values: Sequence[float]) -> str:
    if not values:
        return "-"
    if figure == "stopped":
        return ", ".join(f"{value:.0f}" for value in values)
    if figure in ("loss", "seconds"):
        digits = 4 if figure == "loss" else 0
        return f"{statistics.fmean(values):.{digits}f}"
    return f"{statistics.fmean(values):.0%} ({', '.join(f'{value:.0%}' for value in values)})"


def _key(line: Mapping[str, Any]) -> tuple[str, str, int]:
    return line["experiment"], line["arm"], line["seed"]
