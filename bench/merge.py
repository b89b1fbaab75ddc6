"""A weighted sum of two checkpoints against plain reading and writing, and against a naive safetensors loop.

    python bench/merge.py [--quick] [--check] [--families sd15,sdxl] [--rounds N] [--cache warm|cold|as-is] [--folder F]

Two random files of each family are made (SD1.5: 2 GB each, SDXL: 6.5 GB each, and as much for the result) and removed
again. Every round runs, one after the other: `plain` (both inputs read through a buffer, as many bytes written as the
result has, synced, renamed), `naive` (safetensors' get_tensor, lerp in fp32, save_file; holds the whole result),
`merge` (the engine, fp16) and `blocks` (the same with block weights). Ratios are medians over the rounds. The share of
the inputs in the page cache before each run is reported, and the most anonymous memory of the process during a merge.
"""

import argparse
import gc
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
if "atelier_tests" not in sys.modules:
    import runpy

    runpy.run_path(str(ROOT / "tests" / "conftest.py"))

from atelier_tests.helpers.full_size import FULL_OF, TINY_OF, checkpoint_shapes  # noqa: E402
from lora_atelier.core.stream import default_threads, stream_tensors  # noqa: E402
from lora_atelier.core.tensors import TensorRow  # noqa: E402
from lora_atelier.merger.block_weights import BlockWeights  # noqa: E402
from lora_atelier.merger.expression import Merge, Model  # noqa: E402
from lora_atelier.merger.merge import merge_to_file  # noqa: E402
from lora_atelier.merger.methods._spec import get_method  # noqa: E402
from lora_atelier.merger.plan import OutputParams  # noqa: E402

MIB = 2**20
NAIVE_SECONDS: list[float] = []
"""What the naive loop took without the start of its process."""
BUFFER_BYTES = 8 * MIB
SAMPLES = 512
BARS = {"merge_to_plain_max": 1.15, "merge_to_naive_max": 0.8, "blocks_to_merge_max": 1.2, "anonymous_mib_max": 600.0}
BLOCKS = {"sd15": "GRAD_V TE=0.3 VAE=0.5", "sdxl": "GRAD_A TE=0.3 VAE=0.5"}
QUICK_WIDTHS = {"sd15": [64, 128, 256, 256], "sdxl": [64, 96, 192]}


def sizes_of(family: str, quick: bool) -> dict[str, Any]:
    """The published sizes, or small ones."""
    if not quick:
        return FULL_OF[family]
    tiny = TINY_OF[family]
    unet = {**tiny["unet"], "block_out_channels": QUICK_WIDTHS[family]}
    return {**tiny, "unet": unet, "vae": {"block_out_channels": [64, 128, 256, 256]}}


def write_random(path: Path, family: str, quick: bool, seed: int) -> None:
    """A checkpoint of random numbers, fp16: one drawn block over and over, so that making it takes no time."""
    block = torch.randn(2**22, generator=torch.Generator().manual_seed(seed)).mul_(0.02).half()
    sizes = sizes_of(family, quick)
    shapes = checkpoint_shapes(sizes, family)
    metadata = {"atelier.family": family, "atelier.sizes": json.dumps(sizes)} if quick else {}
    rows = {key: TensorRow(dtype="F16", shape=shape) for key, shape in shapes.items()}
    with stream_tensors(path, rows, metadata) as writer:
        for number, (key, shape) in enumerate(shapes.items()):
            count, done = math.prod(shape), 0
            start = number * 7919 % 2**20
            while done < count:
                part = block[start : start + min(count - done, len(block) - start)]
                writer.write_bytes(key, 2 * done, part.view(torch.uint8))
                done, start = done + len(part), 0


def plain(inputs: list[Path], out: Path) -> None:
    """What no merge can avoid: the inputs are read and as much is written, synced and renamed."""
    buffer = bytearray(BUFFER_BYTES)
    for path in inputs:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    temporary, left = out.with_suffix(".tmp"), inputs[0].stat().st_size
    with open(temporary, "wb", buffering=0) as file:
        while left:
            left -= file.write(memoryview(buffer)[: min(left, BUFFER_BYTES)])
        os.fsync(file.fileno())
    os.replace(temporary, out)


def naive(inputs: list[Path], out: Path) -> None:
    """The loop that one writes first, in a process of its own, for it holds the whole result."""
    command = [sys.executable, __file__, "--naive-loop", *map(str, inputs), str(out)]
    NAIVE_SECONDS.append(float(subprocess.run(command, capture_output=True, check=True, text=True).stdout))


def naive_loop(inputs: list[Path], out: Path) -> None:
    """What that process does."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    merged = {}
    with safe_open(inputs[0], "pt") as one, safe_open(inputs[1], "pt") as two:
        for key in one.keys():  # noqa: SIM118 -- not a mapping
            a, b = one.get_tensor(key), two.get_tensor(key)
            merged[key] = torch.lerp(a.float(), b.float(), 0.3).half()
    save_file(merged, out)
    with open(out, "rb") as file:
        os.fsync(file.fileno())


def merger(weights: str) -> Callable[[list[Path], Path], None]:
    """The engine, with block weights or without."""

    def merge(inputs: list[Path], out: Path) -> None:
        a, b = (Model(path=path, name=path.name) for path in inputs)
        blocks = (("alpha", BlockWeights(text=weights)),) if weights else ()
        params = get_method("weighted_sum").params(alpha=0.3)
        root = Merge(method="weighted_sum", inputs=(a, b), params=params, weights=blocks)
        merge_to_file(root, out, OutputParams(dtype="fp16"), replace=True)

    return merge


def cached_share(paths: list[Path]) -> float | None:
    """Share of the files' bytes in the page cache, by samples that may not wait for the disk; None where unknown."""
    if not hasattr(os, "RWF_NOWAIT"):
        return None
    hits = asked = 0
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            for number in range(SAMPLES):
                asked += 1
                try:
                    place = number * (path.stat().st_size - 1) // (SAMPLES - 1)
                    hits += os.preadv(file.fileno(), [bytearray(1)], place, os.RWF_NOWAIT)
                except BlockingIOError:
                    pass
                except OSError:
                    return None
    return hits / asked


def prepare_cache(paths: list[Path], state: str) -> None:
    """Inputs into the page cache, or out of it."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:
            if state == "cold" and hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            elif state == "warm":
                buffer = bytearray(BUFFER_BYTES)
                while file.readinto(buffer):
                    pass


def anonymous_mib() -> float:
    """Anonymous memory of this process now, 0 where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon")), 0.0)


@contextmanager
def watching() -> Iterator[list[float]]:
    """Notes anonymous memory fifty times a second."""
    seen, stop = [anonymous_mib()], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            seen.append(anonymous_mib())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def measure(family: str, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All figures of one family."""
    inputs = [folder / f"{family}-{number}.safetensors" for number in range(2)]
    for number, path in enumerate(inputs):
        write_random(path, family, given.quick, number)
    out = folder / f"{family}-out.safetensors"
    contenders = {"plain": plain, "naive": naive, "merge": merger(""), "blocks": merger(BLOCKS[family])}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    cached: dict[str, list[float]] = {name: [] for name in contenders}
    anonymous = [0.0]
    for number in range(given.rounds):
        order = list(contenders) if number % 2 == 0 else list(reversed(contenders))
        for name in order:
            out.unlink(missing_ok=True)
            gc.collect()
            prepare_cache(inputs, given.cache)
            cached[name].append(cached_share(inputs) or 0.0)
            with watching() as seen:
                start = time.perf_counter()
                contenders[name](inputs, out)
                took = time.perf_counter() - start
                seconds[name].append(NAIVE_SECONDS.pop() if name == "naive" else took)
            if name in ("merge", "blocks"):
                anonymous.append(max(seen))
            print(f"{family} round {number + 1}: {name:6} {seconds[name][-1]:7.2f} s", flush=True)
    size_mib = inputs[0].stat().st_size / MIB
    for path in (*inputs, out):
        path.unlink(missing_ok=True)

    def ratio(one: str, other: str) -> float:
        return round(statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True)), 3)

    return {
        "input_mib": round(size_mib),
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "cached_share_before": {name: round(statistics.mean(values), 2) for name, values in cached.items()},
        "merge_to_plain": ratio("merge", "plain"),
        "merge_to_naive": ratio("merge", "naive"),
        "blocks_to_merge": ratio("blocks", "merge"),
        "anonymous_mib": round(max(anonymous)),
        "anonymous_mib_before": round(anonymous_mib()),
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small files, under a minute")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--families", default="sd15,sdxl", help="which, separated by commas")
    parser.add_argument("--rounds", type=int, default=0, help="how often each is run; 3, or 2 with --quick")
    parser.add_argument("--cache", choices=("warm", "cold", "as-is"), default="warm", help="the inputs before each run")
    parser.add_argument("--naive-loop", nargs=3, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; the temporary folder by default")
    given = parser.parse_args(arguments)
    if given.naive_loop:
        *inputs, out = given.naive_loop
        start = time.perf_counter()
        naive_loop(inputs, out)
        print(time.perf_counter() - start)
        return 0
    given.rounds = given.rounds or (2 if given.quick else 3)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        figures = {family: measure(family, Path(folder), given) for family in given.families.split(",")}
    missed = [
        f"{family}.{name}"
        for family, found in figures.items()
        for name, bar in BARS.items()
        if found[name.removesuffix("_max")] > bar
    ]
    machine = {
        "cpus": os.cpu_count(),
        "threads": default_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cache": given.cache,
    }
    print(json.dumps({"bench": "merge", "figures": figures, "bars": BARS, "missed": missed, "machine": machine}))
    return 1 if missed and given.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
