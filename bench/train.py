"""A whole training step at full size: seconds, pictures per second and peak memory, at rank 16.

Attention and feed-forward are trained (with LoCon the convolutions too), of the UNet alone or with the text encoders;
against a bare diffusers + peft loop of the same network that uses nothing of the pack, and against forward and backward
of the frozen model alone, which no adapter can be quicker than. All three train one frozen copy of random weights that
are made on the spot; every round has one step of each, and the median of the rounds' ratios is judged.

On a CPU: SD1.5 at 256 px, one picture, fp32. On a GPU: SD1.5 at 512 px and SDXL at 1024 px, one and four pictures,
bf16. LoHa and LoKr have their own bar in bench/networks.py, a step on the tiny model is in bench/step.py.

    python bench/train.py [--quick] [--check] [--rounds N] [--rows TEXT] [--device cpu|cuda] [--json FILE]
"""

import argparse
import dataclasses
import gc
import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from _loops import (
    Step,
    World,
    bare_step,
    bytes_now,
    can_measure_memory,
    child_peak,
    conclude,
    frozen_step,
    interleaved,
    machine,
    median_ratio,
    our_step,
    paths_of,
    peak_bytes,
    pico_components,
    random_components,
)

from lora_atelier.networks._spec import get_network
from lora_atelier.trainer.precision import TORCH_DTYPES

RANK = 16
OURS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"rank": RANK, "alpha": float(RANK)},
    "locon": {"rank": RANK, "alpha": float(RANK), "conv_rank": RANK, "conv_alpha": float(RANK)},
    "dora": {"rank": RANK, "alpha": float(RANK), "dora": "output"},
}
"""Settings of the network LoRA, all of the form x A B."""
THEIRS: Mapping[str, Mapping[str, Any]] = {
    "lora": {"r": RANK, "lora_alpha": RANK},
    "locon": {"r": RANK, "lora_alpha": RANK},
    "dora": {"r": RANK, "lora_alpha": RANK, "use_dora": True},
}
BARS = {"cpu_time_ratio_max": 1.05, "cuda_time_ratio_max": 1.0}
"""Our step over that of the bare loop; 1 on a GPU means as many pictures per second."""
MEMORY_STEPS = 4


@dataclass(frozen=True)
class Row:
    """One thing that is measured."""

    family: str
    size_px: int
    batch: int
    network: str = "lora"
    with_text: bool = False
    precision: str = "fp32"

    @property
    def name(self) -> str:
        text = " with text encoders" if self.with_text else ""
        return f"{self.family} {self.size_px} px x{self.batch} {self.precision} {self.network}{text}"


def rows_of(device: torch.device, *, quick: bool) -> list[Row]:
    if quick:
        return [Row("pico", 96, 4, network) for network in OURS]
    if device.type != "cuda":
        return [
            Row("sd15", 256, 1),
            Row("sd15", 256, 1, with_text=True),
            Row("sd15", 256, 1, "locon"),
            Row("sd15", 256, 1, "dora"),
        ]
    return [
        Row(family, size_px, batch, with_text=with_text, precision="bf16")
        for family, size_px in (("sd15", 512), ("sdxl", 1024))
        for with_text in (False, True)
        for batch in (1, 4)
    ]


def make_world(row: Row, device: torch.device) -> World:
    if row.family == "pico":
        components = pico_components()
        components.unet.to(device)
        return World("sd15", components, row.size_px, row.batch)
    components = random_components(
        row.family, with_text=row.with_text, dtype=TORCH_DTYPES[row.precision], device=device
    )
    return World(row.family, components, row.size_px, row.batch, row.precision)


def side(name: str, row: Row, world: World) -> Step:
    if name == "frozen":
        return frozen_step(world)
    if name == "ours":
        return our_step(world, "lora", OURS[row.network])
    params = get_network("lora").params(**OURS[row.network])
    return bare_step(world, THEIRS[row.network], paths_of(world, "lora", params))


def measure(row: Row, world: World, options: argparse.Namespace) -> dict[str, float]:
    """Measures one row and prints it."""
    device = world.device
    sides, peaks = {}, {}
    for name in ("ours", "bare", "frozen"):
        before = bytes_now(device)
        sides[name] = side(name, row, world.twin())
        if device.type == "cuda":
            with peak_bytes(device) as peak:
                for _ in range(MEMORY_STEPS):
                    sides[name]()
                peaks[name] = float(peak() - before)
    weights = float(sum(tensor.nbytes for part in world.parts for tensor in part.parameters()))
    times = interleaved(sides, rounds=options.rounds or (20 if device.type == "cpu" else 50), device=device)
    figures = {
        "time_ratio": median_ratio(times["ours"], times["bare"]),
        "to_frozen": median_ratio(times["ours"], times["frozen"]),
        **{f"{name}_s": statistics.median(values) for name, values in times.items()},
        **{f"{name}_images_per_s": row.batch / statistics.median(values) for name, values in times.items()},
        **{f"{name}_peak_mib": (peak + weights) / 2**20 for name, peak in peaks.items()},
        "rounds": len(times["ours"]),
    }
    del sides
    gc.collect()
    if device.type == "cpu" and not options.no_memory and row.network == "lora" and can_measure_memory(device):
        given = json.dumps(dataclasses.asdict(row))
        for name in ("ours", "bare"):
            found = child_peak(__file__, "--memory-of", name, "--row", given, "--device", str(device))
            figures[f"{name}_peak_mib"] = found["peak"] / 2**20
    memory = (
        f"; peak {figures['ours_peak_mib']:.0f} MiB against {figures['bare_peak_mib']:.0f} MiB"
        if "ours_peak_mib" in figures
        else ""
    )
    print(
        f"{row.name}: ours {figures['ours_s']:.4f} s ({figures['ours_images_per_s']:.3g} images/s), bare "
        f"{figures['bare_s']:.4f} s, frozen model alone {figures['frozen_s']:.4f} s; {figures['time_ratio']:.3f} of "
        f"the bare loop, {figures['to_frozen']:.3f} of the frozen model{memory}",
        flush=True,
    )
    return {name: round(value, 4) for name, value in figures.items()}


def memory_child(row: Row, name: str, device: torch.device) -> None:
    """Prints the peak bytes of a few steps, and the bytes before them."""
    world = make_world(row, device)
    gc.collect()
    before = bytes_now(device)
    with peak_bytes(device) as peak:
        step = side(name, row, world)
        for _ in range(MEMORY_STEPS):
            step()
        print(json.dumps({"peak": peak(), "before": before}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="the tiny model; ends within a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar of this machine is missed")
    parser.add_argument("--rounds", type=int, default=0, help="steps of each side; 0 chooses")
    parser.add_argument("--rows", default="", help="only rows whose name holds one of these texts, joined by commas")
    parser.add_argument("--no-memory", action="store_true", help="no peak memory on a CPU, which takes two children")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", default="", help="a file for the figures")
    parser.add_argument("--memory-of", choices=("ours", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--row", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    device = torch.device(options.device)
    if options.memory_of:
        memory_child(Row(**json.loads(options.row)), options.memory_of, device)
        return 0
    wanted = [text.strip() for text in options.rows.split(",") if text.strip()]
    rows = [row for row in rows_of(device, quick=options.quick) if not wanted or any(t in row.name for t in wanted)]
    figures: dict[str, dict[str, float]] = {}
    world: World | None = None
    for last, row in zip([None, *rows], rows, strict=False):
        same = last is not None and (last.family, last.with_text) == (row.family, row.with_text)
        if world is None or not same:
            world = None  # before the next one is made
            gc.collect()
            world = make_world(row, device)
        world = dataclasses.replace(world, batch=row.batch)
        figures[row.name] = measure(row, world, options)
    bar = BARS[f"{'cuda' if device.type == 'cuda' else 'cpu'}_time_ratio_max"]
    misses = [
        f"{name}: time_ratio {numbers['time_ratio']} > {bar}"
        for name, numbers in figures.items()
        if numbers["time_ratio"] > bar
    ]
    conclude("train", figures, BARS, misses, machine(device), options.json)
    return 1 if options.check and misses else 0


if __name__ == "__main__":
    sys.exit(main())
