"""A data set of 200,000 pictures: opening it, opening it again, its memory, ten operations, a recipe of ten steps.

Pictures are tiny and all different, no links; every caption has 30 tags of a booru-like vocabulary. The files are
written into a temporary folder first (``--folder`` keeps them for the next time). The cold scan begins with an empty
index; what the operating system keeps of the files is not thrown away. Memory is what is held in a process of its own
after the work is done, by Python's and numpy's own account.

    python bench/dataset.py [--quick] [--check] [--pictures N] [--folder DIR]
"""

import argparse
import gc
import json
import os
import platform
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lora_atelier.core.index import Index
from lora_atelier.dataset.identity import fingerprint_folder
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset

PICTURES = 200_000
QUICK_PICTURES = 5_000
TAGS = 30
VOCABULARY = 12_000
MIB = 2**20
WARM_SCANS = 3
BARS = {"warm_scan_s_max": 5.0, "table_mib_max": 300.0, "ten_operations_mib_max": 450.0, "recipe_s_max": 60.0}
"""For 200,000 pictures."""

COLOURS = ("black", "white", "red", "blue", "blonde", "brown", "green", "pink", "purple", "grey")
PARTS = ("hair", "eyes", "shirt", "skirt", "dress", "gloves", "shoes", "ribbon", "hat", "jacket", "bow", "shorts")
PLAIN = ("1girl", "solo", "smile", "blush", "sitting", "standing", "outdoors", "indoors", "sky", "looking at viewer")
RECIPE = """
normalise
alias:
    tag number 11 -> tag number 10
    tag number 13 -> tag number 12
    smile -> smiling
blacklist match=glob: tag number 99*, blush, tag number 7
implication:
    red hair -> hair
    tag number 21 -> tag number 20
exclusive arbiter="last of the group":
    hair colour: black hair, white hair, red hair, blue hair, blonde hair, brown hair
    eye colour: black eyes, red eyes, blue eyes, brown eyes, green eyes
rename:
    looking at viewer -> lav
min_frequency min_images=3
budget limit=150 unit=tokens
deduplicate
trigger: zwx
"""
"""Ten steps."""


def vocabulary() -> list[str]:
    """Tags, most frequent first."""
    named = [*PLAIN, *(f"{colour}_{part}" for part in PARTS for colour in COLOURS)]
    return [*named, *(f"tag_number_{number}" for number in range(VOCABULARY - len(named)))]


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def generate(folder: Path, pictures: int) -> None:
    """Writes the files, unless they lie there from an earlier time."""
    mark = folder / "generated.toml"
    if mark.is_file() and mark.read_text(encoding="utf-8") == f"pictures = {pictures}\n":
        return
    draw = random.Random(0)
    words = vocabulary()
    end = chunk(b"IEND", b"")
    for number in range(pictures):
        place = folder / f"{number % 10 + 1}_part {number % 10}"
        if number < 10:
            place.mkdir(parents=True, exist_ok=True)
        side_px = (16, 24, 32)[number % 3]
        row = b"\0" + struct.pack(">I", number) * (3 * side_px // 4)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", side_px, 16, 8, 2, 0, 0, 0))
        data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(row * 16, 1)) + end
        (place / f"{number:06d}.png").write_bytes(data)
        tags = dict.fromkeys(words[int(VOCABULARY * draw.random() ** 4)] for _ in range(2 * TAGS))
        (place / f"{number:06d}.txt").write_text(", ".join([*tags][:TAGS]), encoding="utf-8")
        if number % 20_000 == 0:
            print(f"wrote {number} of {pictures} pictures", flush=True)
    mark.write_text(f"pictures = {pictures}\n", encoding="utf-8")


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds it took, and the seconds of processor time."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - start, time.process_time() - cpu


def opened(folder: Path, index: Path) -> Dataset:
    """The data set, with an index that is closed again."""
    with Index(index) as remembered:
        return open_folder(folder, DatasetParams(), index=remembered)


def ten_operations(dataset: Dataset) -> list[Dataset]:
    """What ten data and tag nodes in a row hold: every handle stays alive, as in ComfyUI's cache."""
    handles = []
    draw = np.random.Generator(np.random.Philox(0))

    def did(changed: Dataset) -> Dataset:
        handles.append(changed)
        return changed

    tags = dataset.tags.with_vocabulary(["zwx"])
    scores = draw.random(len(tags.ids), dtype=np.float32).astype(np.float16)
    current = did(dataset.with_tag_column(tags.with_scores(scores, np.full(len(scores), 2, np.uint8)), note="scored"))
    table = np.arange(len(tags.vocabulary), dtype=np.int32)
    spelt = tuple(tag.replace("_", " ") for tag in tags.vocabulary)
    current = did(current.with_tag_column(current.tags.translated(table, spelt), note="spelt"))
    merged = table.copy()
    merged[500:600] = 499
    current = did(current.with_tag_column(current.tags.translated(merged, spelt), note="merged"))
    current = did(current.with_tag_column(current.tags.keep(current.tags.ids % 17 != 3), note="blacklisted"))
    current = did(current.with_tag_column(current.tags.with_categories({"solo": "general"}), note="categories"))
    rare = current.tags.counts() < 3
    current = did(current.with_tag_column(current.tags.keep(~rare[current.tags.ids]), note="rare ones dropped"))
    order = np.lexsort((-current.tags.scores.astype(np.float32), current.tags.row_of_occurrence))
    current = did(current.with_tag_column(current.tags.reordered(order), note="ordered"))
    current = did(current.take(np.flatnonzero(np.arange(len(current)) % 20 != 0).tolist(), note="filtered"))
    crops = np.tile(np.array([[0, 0, 16, 16]], dtype=np.int32), (len(current), 1))
    current = did(current.with_crops(crops, note="cropped"))
    trigger = current.tags.id_of("zwx")
    did(current.with_tag_column(current.tags.with_front(int(trigger or 0), source=4), note="trigger"))
    return handles


def memory_child(folder: Path, index: Path) -> None:
    """Measures what a table and ten handles hold, and prints it as JSON."""
    opened(folder, index)  # loads every module, and warms Pillow
    gc.collect()
    tracemalloc.start()
    dataset = opened(folder, index)
    gc.collect()
    table = tracemalloc.get_traced_memory()[0]
    handles = ten_operations(dataset)
    gc.collect()
    held = tracemalloc.get_traced_memory()[0]
    tags = int(dataset.tags.lengths.sum()) / len(dataset)
    print(json.dumps({"table": table / MIB, "ten": held / MIB, "handles": len(handles), "tags": tags}))


def memory(folder: Path, index: Path) -> dict[str, float]:
    """Memory in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", str(folder), "--index", str(index)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the memory could not be measured: {done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def recipe(dataset: Dataset) -> tuple[float, float, int]:
    """Seconds of the whole recipe, seconds of processor time, and the captions it touched."""
    from lora_atelier.tagger.recipe import parse_recipe, run_recipe
    from lora_atelier.tagger.steps._spec import StepContext

    assert len(parse_recipe(RECIPE)) == 10
    (_, diff), seconds, cpu = timed(lambda: run_recipe(dataset, RECIPE, StepContext()))
    return seconds, cpu, diff.captions_touched


def measure(folder: Path, work: Path, pictures: int) -> dict[str, float]:
    """All figures."""
    index = work / "index.sqlite"
    figures: dict[str, float] = {"pictures": pictures}
    _, figures["generate_s"], _ = timed(lambda: generate(folder, pictures))
    first, figures["cold_scan_s"], figures["cold_scan_cpu_s"] = timed(lambda: opened(folder, index))
    print(f"cold scan {figures['cold_scan_s']:.1f} s", flush=True)
    warm = [timed(lambda: opened(folder, index)) for _ in range(WARM_SCANS)]
    figures["warm_scan_s"] = min(seconds for _, seconds, _ in warm)
    figures["warm_scan_median_s"] = statistics.median(seconds for _, seconds, _ in warm)
    figures["warm_scan_cpu_s"] = min(cpu for _, _, cpu in warm)
    if any(again.fingerprint() != first.fingerprint() for again, _, _ in warm) or len(first) != pictures:
        raise RuntimeError("a warm scan saw another data set than the cold one")
    print(f"warm scans {', '.join(f'{seconds:.2f}' for _, seconds, _ in warm)} s", flush=True)
    del warm
    _, figures["folder_fingerprint_s"], _ = timed(lambda: fingerprint_folder(folder))
    held = memory(folder, index)
    figures["tags_per_picture"], figures["table_mib"] = held["tags"], held["table"]
    figures["ten_operations_mib"] = held["ten"]
    figures["index_mib"] = index.stat().st_size / MIB
    print(f"table {held['table']:.0f} MiB, with ten operations {held['ten']:.0f} MiB", flush=True)
    figures["recipe_s"], figures["recipe_cpu_s"], figures["recipe_captions"] = recipe(first)
    print(f"recipe of ten steps {figures['recipe_s']:.1f} s", flush=True)
    return {name: round(value, 3) for name, value in figures.items()}


def missed(figures: dict[str, float]) -> list[str]:
    """The bars that are not reached."""
    return [
        f"{name.removesuffix('_max')} {figures[name.removesuffix('_max')]} > {bar}"
        for name, bar in BARS.items()
        if figures[name.removesuffix("_max")] > bar
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_PICTURES} pictures; ends within a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--pictures", type=int, default=0, help="how many; 0 chooses")
    parser.add_argument("--folder", type=Path, help="where the files are written and stay; by default nowhere")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_child(options.memory_of, options.index)
        return 0
    pictures = options.pictures or (QUICK_PICTURES if options.quick else PICTURES)
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as temporary:
        folder = options.folder or Path(temporary) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        figures = measure(folder, Path(temporary), pictures)
    misses = missed(figures)
    for line in misses:
        print(f"missed: {line}")
    machine = {"cpu_count": os.cpu_count(), "system": platform.system(), "machine": platform.machine()}
    machine |= {"python": platform.python_version(), "numpy": np.__version__}
    print(json.dumps({"bench": "dataset", "figures": figures, "bars": BARS, "missed": misses, "machine": machine}))
    return 1 if options.check and misses else 0


if __name__ == "__main__":
    sys.exit(main())
