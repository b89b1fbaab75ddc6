"""The LoRA tools at full size: a resize against full SVDs, and an extraction with its error against full SVDs.

resize: an SDXL LoRA of dim 64 with the 986 modules that kohya's scripts write, to dim 16; full SVDs are made of some
layers and compared with ours, and their time is extrapolated to all layers. extract: two SD 1.5 checkpoints
(U-Net and text encoder, fp16) to a LoCon of rank 32, its error compared with full SVDs of some layers. Values are
random with falling singular values, as trained changes have them. Seconds are of the clock; ``cpu_s`` says what the
process itself used, for machines with other work.

    python bench/lora_tools.py [--quick] [--check] [--only resize,extract] [--folder PATH]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lora_atelier.core.stream import default_threads, stream_tensors
from lora_atelier.core.tensors import TensorRow, write_tensors
from lora_atelier.families._spec import KOHYA, get_family
from lora_atelier.merger.lora.drafts import Draft
from lora_atelier.merger.lora.extract import CheckpointPair, ExtractParams, extract
from lora_atelier.merger.lora.factors import as_matrix
from lora_atelier.merger.lora.modules import LoraFile
from lora_atelier.merger.lora.ranks import RankParams
from lora_atelier.merger.lora.resize import change_in, resize
from lora_atelier.merger.lora.saving import write_draft

FIXTURES = Path(__file__).resolve().parents[1] / "tests" / "fixtures"
BARS = {"resize_s_max": 20.0, "resize_difference_max": 1e-5, "extract_s_max": 120.0}
DIM, NEW_DIM, EXTRACT_RANK = 64, 16, 32
FALL = 0.93
"""Each singular value in parts of the one before it."""
UNET, TEXT = "model.diffusion_model.", "cond_stage_model.transformer.text_model."


def write_big_lora(path: Path, *, every: int) -> None:
    """An SDXL LoRA of dim 64 from the fixture's names; every n-th module of it."""
    shapes: dict[str, list[int]] = json.loads((FIXTURES / "kohya_sdxl_lora_rank4.json").read_text(encoding="utf-8"))
    stems = list(dict.fromkeys(key.partition(".")[0] for key in shapes))[::every]
    fall = FALL ** torch.arange(DIM)
    tensors: dict[str, Tensor] = {}
    for number, stem in enumerate(stems):
        torch.manual_seed(number)
        down, up = shapes[f"{stem}.lora_down.weight"], shapes[f"{stem}.lora_up.weight"]
        tensors[f"{stem}.lora_down.weight"] = (torch.randn(DIM, *down[1:]) / math.sqrt(down[1])).half()
        tensors[f"{stem}.lora_up.weight"] = (torch.randn(up[0], DIM) * fall / math.sqrt(up[0])).half()
        tensors[f"{stem}.alpha"] = torch.tensor(32.0, dtype=torch.float16)
    write_tensors(path, tensors, {"ss_base_model_version": "sdxl_base_v1-0"})


def timed(work: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """What the work gives, with seconds of the clock and of the process."""
    wall, cpu = time.perf_counter(), time.process_time()
    found = work()
    return found, {"s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


def measure_resize(folder: Path, *, quick: bool) -> dict[str, float]:
    source, target = folder / "big.safetensors", folder / "small.safetensors"
    write_big_lora(source, every=40 if quick else 1)

    def ours() -> Draft:
        with LoraFile(source, source.name) as file:
            draft = resize(file, RankParams(rank=NEW_DIM))
        write_draft(target, draft, made_by={}, dtype="fp16")
        return draft

    draft, spent = timed(ours)
    print(
        f"resize of {len(draft.modules)} modules from {DIM} to {NEW_DIM}, read and written: {spent['s']:.2f} s "
        f"({spent['cpu_s']:.2f} s of CPU), error of the cut {draft.error:.3%}",
        flush=True,
    )
    made = {one.place: one for one in draft.modules}
    differences, full, seen = [], {"s": 0.0, "cpu_s": 0.0}, set()
    with LoraFile(source, source.name) as file:
        sizes = Counter(_size(module.shapes) for module in file.modules)
        whole = sum(_svd_work(size) * count for size, count in sizes.items())
        for module in file.modules:
            size = _size(module.shapes)
            if size in seen or max(size) > 1280:
                continue
            seen.add(size)
            matrix = as_matrix(change_in(file, module))
            best, one = timed(lambda matrix=matrix: _best(matrix, NEW_DIM))  # type: ignore[misc]
            full = {key: full[key] + one[key] for key in full}
            got = made[module.place].factors
            assert got is not None
            differences.append(float(torch.linalg.vector_norm(got.matrix() - best) / torch.linalg.vector_norm(best)))
        sampled = sum(_svd_work(size) for size in seen)
        full = {key: value * whole / sampled for key, value in full.items()}
    figures = {
        "resize_s": spent["s"],
        "resize_cpu_s": spent["cpu_s"],
        "modules": len(draft.modules),
        "cut_error": draft.error,
        "resize_difference": max(differences),
        "full_svd_s": full["s"],
        "full_svd_cpu_s": full["cpu_s"],
        "full_to_ours": full["s"] / spent["s"],
        "full_to_ours_cpu": full["cpu_s"] / spent["cpu_s"],
        "sampled_layers": len(seen),
    }
    print(
        f"full SVDs: {full['s']:.1f} s ({full['cpu_s']:.1f} s of CPU), extrapolated from {len(seen)} layers by rows x "
        f"columns x the smaller: {figures['full_to_ours']:.0f} times as long ({figures['full_to_ours_cpu']:.0f} times "
        f"the CPU); largest relative difference from one {figures['resize_difference']:.2g}",
        flush=True,
    )
    return figures


def _size(shapes: Any) -> tuple[int, int]:
    return shapes["lora_up.weight"][0], math.prod(shapes["lora_down.weight"][1:])


def _svd_work(size: tuple[int, int]) -> float:
    return float(size[0] * size[1] * min(size))


def _best(matrix: Tensor, rank: int) -> Tensor:
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def write_pair(folder: Path, *, quick: bool) -> tuple[Path, Path]:
    """Two SD 1.5 checkpoints without VAE, the second of which differs by falling ranks and a little noise."""
    shapes: dict[str, tuple[int, ...]] = {
        key: tuple(shape)
        for key, shape in json.loads((FIXTURES / "sd15_unet_checkpoint_keys.json").read_text(encoding="utf-8")).items()
    }
    for layer in range(12):
        names = {"self_attn.q_proj": (768, 768), "self_attn.k_proj": (768, 768), "self_attn.v_proj": (768, 768),
                 "self_attn.out_proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}  # fmt: skip
        shapes |= {f"{TEXT}encoder.layers.{layer}.{name}.weight": shape for name, shape in names.items()}
    if quick:
        shapes = {key: shape for number, (key, shape) in enumerate(shapes.items()) if number % 48 == 0}
    rows = {key: TensorRow(dtype="F16", shape=shape) for key, shape in shapes.items()}
    paths = folder / "base.safetensors", folder / "tuned.safetensors"
    with stream_tensors(paths[0], rows) as base, stream_tensors(paths[1], rows) as tuned:
        for number, (key, shape) in enumerate(shapes.items()):
            torch.manual_seed(number)
            weight = torch.randn(shape) / math.sqrt(math.prod(shape[1:]))
            base.write(key, weight.half())
            if len(shape) > 1:
                weight = weight + _change(shape)
            tuned.write(key, weight.half())
    return paths


def _change(shape: tuple[int, ...]) -> Tensor:
    rows, columns = shape[0], math.prod(shape[1:])
    fall = FALL ** torch.arange(min(128, rows))
    up = torch.randn(rows, len(fall)) * fall
    change = (up @ torch.randn(len(fall), columns)) / math.sqrt(rows * columns)
    noise = torch.randn(rows, columns) * (0.05 * float(change.norm()) / math.sqrt(rows * columns))
    return (change + noise).reshape(shape)


def measure_extract(folder: Path, *, quick: bool) -> dict[str, float]:
    paths = write_pair(folder, quick=quick)
    target = folder / "extracted.safetensors"
    family = get_family("sd15")

    def ours(params: ExtractParams) -> Draft:
        with CheckpointPair(*paths, family) as pair:
            draft = extract(pair, params, RankParams(rank=EXTRACT_RANK))
        write_draft(target, draft, made_by={}, dtype="fp16")
        return draft

    draft, spent = timed(lambda: ours(ExtractParams()))
    excess, seen = [], set()
    with CheckpointPair(*paths, family) as pair:
        for made in draft.modules:
            size = (made.factors.shape if made.factors is not None else ())[:2]
            if size in seen or made.rank is None or max(size) > (640 if quick else 2560):
                continue
            seen.add(size)
            difference = pair.difference(made.place)
            assert difference is not None
            values = torch.linalg.svdvals(difference.reshape(difference.shape[0], -1))
            least = math.sqrt(float(values[EXTRACT_RANK:].square().sum() / values.square().sum()))
            excess.append(made.error / least - 1.0)
            print(f"  {family.stem_of_place(made.place, KOHYA)}: error {made.error:.4%}, full SVD {least:.4%}")
    figures = {
        "extract_s": spent["s"],
        "extract_cpu_s": spent["cpu_s"],
        "layers": len(draft.modules),
        "error": draft.error,
        "worst_excess_over_svd": max(excess),
        "mean_excess_over_svd": statistics.mean(excess),
        "sampled_layers": len(excess),
    }
    print(
        f"extraction of {len(draft.modules)} layers at rank {EXTRACT_RANK}: {spent['s']:.1f} s "
        f"({spent['cpu_s']:.1f} s of CPU), relative error {draft.error:.3%}; over the least possible by "
        f"{figures['worst_excess_over_svd']:.3%} at most on {len(excess)} layers compared with full SVDs.",
        flush=True,
    )
    return figures


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few layers, under a minute")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    parser.add_argument("--only", default="resize,extract", help="which, separated by commas")
    parser.add_argument("--folder", type=Path, default=None, help="where the files go; the temporary folder by default")
    given = parser.parse_args(arguments)
    figures: dict[str, float] = {}
    for name in given.only.split(","):
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            measure = {"resize": measure_resize, "extract": measure_extract}[name]
            figures |= measure(Path(folder), quick=given.quick)
    missed = [
        f"{name}: {figures[name.removesuffix('_max')]:.3g} > {bar:g}"
        for name, bar in BARS.items()
        if figures.get(name.removesuffix("_max"), 0.0) > bar
    ]
    for line in missed:
        print(f"missed: {line}")
    machine = {
        "cpus": os.cpu_count(), "threads": default_threads(), "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(), "python": platform.python_version(),
    }  # fmt: skip
    told = {name: round(value, 6) for name, value in figures.items()}
    print(json.dumps({"bench": "lora_tools", "figures": told, "bars": BARS, "missed": missed, "machine": machine}))
    return 1 if missed and given.check else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
