"""One training step of ours, against a bare diffusers + peft loop that uses nothing of the pack.

Both train the same UNet (one frozen copy of the weights), the same modules at the same rank, on the same cached
latents and text states, with AdamW and clipping. Pairs of steps are interleaved and the median of their ratios is
taken, since machines differ by more from minute to minute than the bar allows. Peak memory is measured in two child
processes that take the same steps. The full size with text encoders, other networks and GPUs: bench/train.py.

    python bench/step.py [--quick] [--check] [--full] [--pairs N] [--device cpu|cuda]
"""

import argparse
import gc
import json
import statistics
import sys

import torch
from _loops import (
    Step,
    World,
    bare_step,
    bytes_now,
    can_measure_memory,
    child_peak,
    conclude,
    interleaved,
    machine,
    median_ratio,
    our_step,
    paths_of,
    peak_bytes,
    pico_components,
    random_components,
)

from lora_atelier.networks.lora import LoraParams

RANK = 8
SETTINGS = {"rank": RANK, "alpha": float(RANK)}
BARS = {"time_ratio_max": 1.05, "memory_ratio_max": 1.05, "out03_06_speedup_min": 1.35}
MEMORY_STEPS = 4


def make_world(size: str, device: torch.device) -> World:
    """Pico at 96 px in batches of 4, or a full-size SD1.5 with random weights at 256 px."""
    if size == "pico":
        components = pico_components()
        components.unet.to(device)
        return World("sd15", components, 96, 4, blocks="UNET")
    components = random_components("sd15", with_text=False, dtype=torch.float32, device=device)
    return World("sd15", components, 256, 1, blocks="UNET")


def side(name: str, world: World) -> Step:
    if name == "ours":
        return our_step(world, "lora", SETTINGS)
    paths = paths_of(world, "lora", LoraParams(**SETTINGS))
    return bare_step(world, {"r": RANK, "lora_alpha": RANK}, paths)


def only(world: World, blocks: str) -> World:
    twin = world.twin()
    return World(twin.family, twin.components, twin.size_px, twin.batch, twin.precision, blocks)


def memory_child(size: str, name: str, device: torch.device) -> None:
    """Prints the peak bytes of a few steps, and the bytes before them."""
    world = make_world(size, device)
    gc.collect()
    before = bytes_now(device)
    with peak_bytes(device) as peak:
        step = side(name, world)
        for _ in range(MEMORY_STEPS):
            step()
        print(json.dumps({"peak": peak(), "before": before}))


def measure(size: str, options: argparse.Namespace) -> dict[str, float]:
    """Measures one size and prints what it finds on the way."""
    device = torch.device(options.device)
    world = make_world(size, device)
    pairs = options.pairs or (20 if size == "full" or options.quick else 40)
    sides = {name: side(name, world.twin()) for name in ("ours", "bare")}
    times = interleaved(sides, rounds=pairs, device=device)
    ratio = median_ratio(times["ours"], times["bare"])
    ours_s, bare_s = statistics.median(times["ours"]), statistics.median(times["bare"])
    print(f"{size}: ours {ours_s:.4f} s, bare {bare_s:.4f} s, median ratio {ratio:.3f} over {pairs} pairs", flush=True)
    del sides["bare"]
    sides["some"] = our_step(only(world, "OUT03-06"), "lora", SETTINGS)
    times = interleaved(sides, rounds=pairs, device=device)
    speedup, all_s, some_s = (
        median_ratio(times["ours"], times["some"]), statistics.median(times["ours"]), statistics.median(times["some"])
    )  # fmt: skip
    print(f"{size}: all blocks {all_s:.4f} s, OUT03-06 {some_s:.4f} s, {speedup:.3f} times faster", flush=True)
    figures = {"time_ratio": ratio, "ours_s": ours_s, "bare_s": bare_s, "out03_06_speedup": speedup, "pairs": pairs}
    del sides, world
    gc.collect()
    if can_measure_memory(device):
        figures.update(memory_figures(size, options))
    return {name: round(value, 4) for name, value in figures.items()}


def memory_figures(size: str, options: argparse.Namespace) -> dict[str, float]:
    found = {
        name: child_peak(__file__, "--memory-of", name, "--size", size, "--device", options.device)
        for name in ("ours", "bare")
    }
    peaks = {name: numbers["peak"] for name, numbers in found.items()}
    of_steps = {name: max(1, numbers["peak"] - numbers["before"]) for name, numbers in found.items()}
    figures = {
        "memory_ratio": peaks["ours"] / peaks["bare"],
        "memory_of_steps_ratio": of_steps["ours"] / of_steps["bare"],
        "ours_peak_mib": peaks["ours"] / 2**20,
        "bare_peak_mib": peaks["bare"] / 2**20,
    }
    print(
        f"{size}: peak memory ours {figures['ours_peak_mib']:.0f} MiB, bare {figures['bare_peak_mib']:.0f} MiB, "
        f"ratio {figures['memory_ratio']:.3f} ({figures['memory_of_steps_ratio']:.3f} without the model)",
        flush=True,
    )
    return figures


def missed(figures: dict[str, dict[str, float]]) -> list[str]:
    """Returns the bars that are not reached."""
    found = []
    for size, numbers in figures.items():
        if numbers["time_ratio"] > BARS["time_ratio_max"]:
            found.append(f"{size}: time_ratio {numbers['time_ratio']} > {BARS['time_ratio_max']}")
        if numbers.get("memory_ratio", 0.0) > BARS["memory_ratio_max"]:
            found.append(f"{size}: memory_ratio {numbers['memory_ratio']} > {BARS['memory_ratio_max']}")
        # On pico a step is mostly the overhead of small kernels, which choosing blocks does not change.
        if size == "full" and numbers["out03_06_speedup"] < BARS["out03_06_speedup_min"]:
            found.append(f"{size}: out03_06_speedup {numbers['out03_06_speedup']} < {BARS['out03_06_speedup_min']}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="pico only, 20 pairs; ends within a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument(
        "--full", action="store_true", help="also a random full-size SD1.5 UNet at 256 px (8 GB of RAM)"
    )
    parser.add_argument("--full-only", action="store_true", help="the full size alone")
    parser.add_argument("--pairs", type=int, default=0, help="pairs of steps; 0 chooses")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", default="", help="a file for the figures")
    parser.add_argument("--memory-of", choices=("ours", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=("pico", "full"), default="pico", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.memory_of:
        memory_child(options.size, options.memory_of, device)
        return 0
    sizes = ["full"] if options.full_only else ["pico", *(["full"] if options.full and not options.quick else [])]
    figures = {size: measure(size, options) for size in sizes}
    misses = missed(figures)
    conclude("step", figures, BARS, misses, machine(device), options.json)
    return 1 if options.check and misses else 0


if __name__ == "__main__":
    sys.exit(main())
