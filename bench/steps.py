"""Tag steps over 200,000 captions of 30 tags from a vocabulary of 20,000: seconds of each step and of a whole recipe.

No file is involved: the table is made in memory, with scores, misspellings and a frequency that falls like that of a
booru's tags.

    python bench/steps.py [--quick] [--check] [--captions N]
"""

import argparse
import json
import os
import platform
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from lora_atelier.dataset.columns import TagColumn, TextColumn
from lora_atelier.dataset.table import Dataset, Subset
from lora_atelier.tagger.recipe import parse_recipe, recipe_text, run_recipe
from lora_atelier.tagger.steps._spec import StepContext

TAGS_PER_CAPTION = 30
VOCABULARY = 20_000
MIB = 2**20
BARS = {"recipe_cpu_s_max": 60.0}
"""For 200,000 captions on one core."""

FIRST = ("red", "blue", "white", "black", "long", "short", "large", "small", "frilled", "striped", "very_long")
LAST = ("shirt", "skirt", "hair", "eyes", "dress", "hat", "ribbon", "bow", "tail", "ears", "background", "jacket")
PLAIN = ("1girl", "solo", "2girls", "1boy", "looking at viewer", "smile", "absurdres", "highres", "^_^", "shirt",
         "hair", "sitting", "horns", "halo", "skirt", "simple background", "Smile", "kitty", "cat")  # fmt: skip
RECIPE = """\
normalise
deduplicate
alias:
    kitty -> cat
    red hair -> crimson hair
implication
exclusive arbiter=score
blacklist match=glob: *res, thing 12*, class:background
prune_traits core_share=0.2: smile
min_frequency min_images=20
budget limit=75
order
"""
FURTHER = (
    "trigger: zwx",
    "category_order",
    "people_guard: 1girl, solo",
    "random_drop: rest = 0.1",
    "rename",
    "quality",
    "order mode=shuffled",
    'implication action="add general": cat -> animal, smile -> expression',
)


def table(captions: int) -> Dataset:
    """The captions."""
    draw = np.random.default_rng(0)
    names = [*PLAIN, *(f"{first}_{last}" for first in FIRST for last in LAST)]
    names += [f"thing {number} {LAST[number % len(LAST)]}" for number in range(VOCABULARY - len(names))]
    weights = 1.0 / np.arange(1, len(names) + 1) ** 0.9
    cumulative = np.cumsum(weights / weights.sum())
    ids = np.searchsorted(cumulative, draw.random(captions * TAGS_PER_CAPTION)).astype(np.int32)
    offsets = np.arange(0, len(ids) + 1, TAGS_PER_CAPTION, dtype=np.int64)
    scores = draw.random(len(ids), dtype=np.float32).astype(np.float16)
    return Dataset(
        root=Path("folder"),
        subsets=(Subset(folder=Path("10_zwx"), concept="zwx"),),
        names=TextColumn.from_strings(f"{row:07}.png" for row in range(captions)),
        width_px=np.full(captions, 512, dtype=np.int32),
        height_px=np.full(captions, 512, dtype=np.int32),
        size_bytes=np.ones(captions, dtype=np.int64),
        mtime_ns=np.zeros(captions, dtype=np.int64),
        subset_index=np.zeros(captions, dtype=np.int32),
        caption_source=np.ones(captions, dtype=np.uint8),
        tags=TagColumn(tuple(names), offsets, ids, scores=scores),
        layout="made for a bench",
    )


def measure(captions: int) -> dict[str, object]:
    """All figures, in seconds of one core."""
    dataset = table(captions)
    per_step: dict[str, float] = {}
    current = dataset
    for part in parse_recipe(RECIPE):
        current, per_step[part.step.name] = timed(current, recipe_text([part]))
    for text in FURTHER:
        _, per_step[text] = timed(current, text)
    _, whole = timed(dataset, RECIPE)
    tracemalloc.start()
    timed(dataset, RECIPE)
    peak = tracemalloc.get_traced_memory()[1] / MIB
    tracemalloc.stop()
    for name, seconds in per_step.items():
        print(f"{seconds:6.2f} s  {name.splitlines()[0]}")
    print(f"{whole:6.2f} s  the recipe of {len(parse_recipe(RECIPE))} steps; at most {peak:.0f} MiB above the table")
    steps = {name: round(seconds, 3) for name, seconds in per_step.items()}
    return {"captions": captions, "recipe_cpu_s": round(whole, 3), "peak_mib": round(peak), "steps_cpu_s": steps}


def timed(dataset: Dataset, text: str) -> tuple[Dataset, float]:
    start = time.process_time()
    result, _ = run_recipe(dataset, text, StepContext())
    return result, time.process_time() - start


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the captions")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--captions", type=int, default=200_000, help="how many captions")
    given = parser.parse_args(arguments)
    figures = measure(given.captions // 10 if given.quick else given.captions)
    missed = [name for name, bar in BARS.items() if float(str(figures[name.removesuffix("_max")])) > bar]
    machine = {"cpus": os.cpu_count(), "python": platform.python_version(), "numpy": np.__version__}
    print(json.dumps({"bench": "steps", "figures": figures, "bars": BARS, "missed": missed, "machine": machine}))
    return 1 if missed and given.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
