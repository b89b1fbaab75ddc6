"""One training step of ours, against a bare diffusers + peft loop that uses nothing of the pack.

Both train the same UNet (one frozen copy of the weights), the same modules at the same rank, on the same cached
latents and text states, with AdamW and clipping. Pairs of steps are interleaved and the median of their ratios is
taken, since machines differ by more from minute to minute than the bar allows. Peak memory is measured in two child
processes that take the same steps.

    python bench/step.py [--quick] [--check] [--full] [--pairs N] [--device cpu|cuda]
"""

import argparse
import contextlib
import copy
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from lora_atelier.core.params import Choice
from lora_atelier.families._spec import Components, TextState, get_family
from lora_atelier.families.sd15 import FULL_SIZES
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._blocks import expand_selection
from lora_atelier.networks.lora import LoraParams
from lora_atelier.trainer.loop import Learner, Route, Row, Standing, train
from lora_atelier.trainer.objectives.epsilon import OBJECTIVE, EpsilonParams
from lora_atelier.trainer.optimizers._spec import ParamGroup
from lora_atelier.trainer.optimizers.adamw import OPTIMIZER, AdamWParams
from lora_atelier.trainer.precision import Precision
from lora_atelier.trainer.weights import AdapterWeights

ROOT = Path(__file__).resolve().parents[1]
PICO = ROOT / "pico" / "assets" / "pico-base.safetensors"
RANK = 8
LR = 1e-4
BARS = {"time_ratio_max": 1.05, "memory_ratio_max": 1.05, "out03_06_speedup_min": 1.35}
WARMUP_STEPS = 3
MEMORY_STEPS = 4

Step = Callable[[], None]


class Silent:
    """A progress that shows nothing."""

    def check(self) -> None: ...
    def update(self, done: int, total: int, text: str = "") -> None: ...
    def status(self, text: str) -> None: ...
    def preview(self, image: object) -> None: ...


class Forgetful:
    """A recorder that keeps nothing; the losses are read as in a real run."""

    def rows(self, rows: Sequence[Row]) -> None: ...
    def save(self, standing: Standing, *, kept: bool) -> None: ...
    def cancel(self, standing: Standing) -> None: ...


class Cached:
    """Mean and standard deviation of latents, and text states, for both loops alike."""

    def __init__(self, *, batch: int, size_px: int, width: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        side = size_px // 8
        self.mean = torch.randn(batch, 4, side, side, generator=generator)
        self.std = torch.rand(batch, 4, side, side, generator=generator) * 0.1
        self.hidden = torch.randn(batch, 77, width, generator=generator).to(device)
        self.device = device

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(step)
        return ((self.mean + self.std * torch.randn(self.mean.shape, generator=generator)) * 0.18215).to(self.device)

    def text(self, index: int, *, seed: int, step: int, micro: int) -> TextState:
        return TextState(hidden=self.hidden)

    def weights(self, index: int) -> None:
        return None

    def mask(self, index: int) -> None:
        return None

    def conditioning(self, index: int) -> None:
        return None

    def num_images(self, index: int) -> int:
        return int(self.mean.shape[0])

    def epoch(self, index: int) -> int:
        return index


def load_unet(size: str, device: torch.device) -> Any:
    """Returns pico's UNet, or a full-size one with random weights; frozen, fp32."""
    if size == "pico":
        unet = get_family("sd15").load(PICO, parts=("unet",)).unet
    else:
        from diffusers import UNet2DConditionModel

        torch.manual_seed(0)
        unet = UNet2DConditionModel(**FULL_SIZES["unet"])
    return unet.requires_grad_(False).to(device)


def twin(unet: Any) -> Any:
    """Returns a second model of the same weights: its own modules, the same memory."""
    shared = {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())}
    return copy.deepcopy(unet, shared)


def targets_of(unet: Any, blocks: str) -> list[Any]:
    family = get_family("sd15")
    chosen = expand_selection(blocks, family.blocks)
    every = family.targets(Components(unet=unet), text_encoder=False)
    return [target for target in every if target.block in chosen]


def our_step(unet: Any, cached: Cached, *, blocks: str, device: torch.device) -> Step:
    """The pack's loop, one step at a time."""
    family = get_family("sd15")
    choice = Choice(kind="network", name="lora", params=LoraParams(rank=RANK, alpha=float(RANK)))
    adapter = AdapterSet.attach(targets_of(unet, blocks), choice, seed=0)
    weights = AdapterWeights(stochastic_rounding=False)
    group = ParamGroup(name="unet", lr=LR, parameters=weights.worked_on(adapter.parameters_by_part()["unet"]))
    learner = Learner(
        predict=lambda noisy, timesteps, text, _: family.predict(unet, noisy, timesteps, text),
        batches=cached,
        objective=OBJECTIVE,
        objective_params=EpsilonParams(),
        alphas_cumprod=family.alphas_cumprod().float().to(device),
        optimizer=OPTIMIZER.build([group], AdamWParams()),
        weights=weights,
        share=lambda step, group: 1.0,
        precision=Precision("fp32", device),
        device=device,
    )
    done = [0]

    def step() -> None:
        route = Route(
            first_step=done[0], total_steps=done[0] + 1, seed=0, accumulation_steps=1, max_grad_norm=1.0,
            batches_done=done[0], saves_at=lambda *_: False,
        )  # fmt: skip
        done[0] = train(learner, route, Forgetful(), Silent())

    return step


def bare_step(unet: Any, cached: Cached, *, device: torch.device) -> Step:
    """What a person writes with diffusers and peft alone."""
    import peft
    from diffusers import DDPMScheduler

    paths = [target.path for target in targets_of(unet, "UNET")]
    peft.inject_adapter_in_model(peft.LoraConfig(r=RANK, lora_alpha=RANK, target_modules=paths), unet)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    assert len(parameters) == 2 * len(paths)
    optimizer = torch.optim.AdamW(parameters, lr=LR, weight_decay=0.01)
    scheduler = DDPMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"
    )
    mean, std = cached.mean.to(device), cached.std.to(device)

    def step() -> None:
        latents = (mean + std * torch.randn_like(mean)) * 0.18215
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, 1000, (latents.shape[0],), device=device)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = unet(noisy, timesteps, encoder_hidden_states=cached.hidden).sample
        loss = torch.nn.functional.mse_loss(prediction.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return step


def seconds_of(step: Step, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    started = time.perf_counter()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def interleaved(one: Step, other: Step, *, pairs: int, device: torch.device) -> tuple[float, float, float]:
    """Returns (median of one/other, median seconds of one, median seconds of other)."""
    for _ in range(WARMUP_STEPS):
        one()
        other()
    gc.collect()
    gc.disable()
    ones, others = [], []
    for number in range(pairs):
        order = ((one, ones), (other, others)) if number % 2 else ((other, others), (one, ones))
        for step, times in order:
            times.append(seconds_of(step, device))
    gc.enable()
    ratios = [a / b for a, b in zip(ones, others, strict=True)]
    return statistics.median(ratios), statistics.median(ones), statistics.median(others)


@contextlib.contextmanager
def peak_bytes(device: torch.device) -> Iterator[Callable[[], int]]:
    """Gives a function that returns the peak memory (resident, or of the GPU) since the block began."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_allocated(device)
        return
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the high-water mark
    yield lambda: _kib_of("VmHWM") * 1024


def _kib_of(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def memory_child(size: str, side: str, options: argparse.Namespace) -> None:
    """Prints the peak bytes of a few steps, and the bytes before them."""
    device = torch.device(options.device)
    unet = load_unet(size, device)
    cached = make_cached(size, unet, device)
    gc.collect()
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else _kib_of("VmRSS") * 1024
    with peak_bytes(device) as peak:
        if side == "ours":
            step = our_step(unet, cached, blocks="UNET", device=device)
        else:
            step = bare_step(unet, cached, device=device)
        for _ in range(MEMORY_STEPS):
            step()
        print(json.dumps({"peak": peak(), "before": before}))


def peaks(size: str, options: argparse.Namespace) -> dict[str, dict[str, int]] | None:
    """Returns peak and starting bytes of both sides, or None where the system cannot tell."""
    if options.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        return None
    found = {}
    for side in ("ours", "bare"):
        command = [sys.executable, __file__, "--memory-of", side, "--size", size, "--device", options.device]
        # glibc's heaps per thread make the resident size a matter of luck; one arena makes it comparable
        environment = {**os.environ, "MALLOC_ARENA_MAX": "1"}
        answer = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[side] = json.loads(answer.stdout.splitlines()[-1])
    return found


def make_cached(size: str, unet: Any, device: torch.device) -> Cached:
    size_px, batch = (96, 4) if size == "pico" else (256, 1)
    return Cached(batch=batch, size_px=size_px, width=int(unet.config.cross_attention_dim), device=device)


def measure(size: str, options: argparse.Namespace) -> dict[str, float]:
    """Measures one size and prints what it finds on the way."""
    device = torch.device(options.device)
    unet = load_unet(size, device)
    cached = make_cached(size, unet, device)
    pairs = options.pairs or (20 if size == "full" or options.quick else 40)
    ours, bare = (
        our_step(twin(unet), cached, blocks="UNET", device=device),
        bare_step(twin(unet), cached, device=device),
    )
    ratio, ours_s, bare_s = interleaved(ours, bare, pairs=pairs, device=device)
    print(f"{size}: ours {ours_s:.4f} s, bare {bare_s:.4f} s, median ratio {ratio:.3f} over {pairs} pairs", flush=True)
    del bare
    some = our_step(twin(unet), cached, blocks="OUT03-06", device=device)
    speedup, all_s, some_s = interleaved(ours, some, pairs=pairs, device=device)
    print(f"{size}: all blocks {all_s:.4f} s, OUT03-06 {some_s:.4f} s, {speedup:.3f} times faster", flush=True)
    figures = {"time_ratio": ratio, "ours_s": ours_s, "bare_s": bare_s, "out03_06_speedup": speedup, "pairs": pairs}
    del ours, some, unet
    gc.collect()
    found = peaks(size, options)
    if found is not None:
        figures["memory_ratio"] = found["ours"]["peak"] / found["bare"]["peak"]
        figures["memory_of_steps_ratio"] = (found["ours"]["peak"] - found["ours"]["before"]) / max(
            1, found["bare"]["peak"] - found["bare"]["before"]
        )
        figures["ours_peak_mib"] = found["ours"]["peak"] / 2**20
        figures["bare_peak_mib"] = found["bare"]["peak"] / 2**20
        print(
            f"{size}: peak memory ours {figures['ours_peak_mib']:.0f} MiB, bare {figures['bare_peak_mib']:.0f} MiB, "
            f"ratio {figures['memory_ratio']:.3f} ({figures['memory_of_steps_ratio']:.3f} without the model)",
            flush=True,
        )
    return {name: round(value, 4) for name, value in figures.items()}


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
    parser.add_argument("--memory-of", choices=("ours", "bare"), help=argparse.SUPPRESS)
    parser.add_argument("--size", choices=("pico", "full"), default="pico", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of:
        memory_child(options.size, options.memory_of, options)
        return 0
    sizes = ["full"] if options.full_only else ["pico", *(["full"] if options.full and not options.quick else [])]
    figures = {size: measure(size, options) for size in sizes}
    misses = missed(figures)
    for line in misses:
        print(f"missed: {line}")
    machine = {"cpu_count": os.cpu_count(), "system": platform.system(), "machine": platform.machine()}
    machine |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "device": options.device}
    print(json.dumps({"bench": "step", "figures": figures, "bars": BARS, "missed": misses, "machine": machine}))
    return 1 if options.check and misses else 0


if __name__ == "__main__":
    sys.exit(main())
