"""A training step with our LoHa and LoKr, against lycoris-lora's own modules in the same loop and the frozen model.

Both sides train the same layers at the same rank in one plain loop (forward, backward, AdamW). Rounds are interleaved
and the median of their ratios is taken. By default the layers are those of SD 1.5's UNet at 256 px, batch 1, built on
the spot with random weights; ``--quick`` takes the linear layers of one transformer per width.

    python bench/networks.py [--quick] [--check] [--rounds N] [--rank N] [--networks loha,lokr] [--threads N]
"""

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_atelier.core.params import Choice
from lora_atelier.families._spec import Components, Target, get_family
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network

BARS = {"loha_ratio_max": 0.65, "lokr_ratio_max": 0.65}
WIDTHS = ((320, 1024), (640, 256), (1280, 64), (1280, 16))
"""Width of a transformer in SD 1.5, and its tokens at 256 px."""
CONTEXT = (77, 768)

Step = Callable[[], None]


@dataclass(frozen=True)
class World:
    """A frozen model, its adapted layers, and one forward pass."""

    model: nn.Module
    targets: list[Target]
    forward: Callable[[nn.Module], torch.Tensor]


class Layers(nn.Module):
    """The linear layers of one SD 1.5 transformer per width, each with its own input."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.tokens: dict[str, int] = {}
        for width, tokens in WIDTHS:
            shapes = {f"self_{name}": (width, width) for name in ("q", "k", "v", "out")}
            shapes |= {"cross_q": (width, width), "cross_out": (width, width)}
            shapes |= {"cross_k": (CONTEXT[1], width), "cross_v": (CONTEXT[1], width)}
            shapes |= {"proj_in": (width, width), "proj_out": (width, width)}
            shapes |= {"ff_in": (width, 8 * width), "ff_out": (4 * width, width)}
            for name, (inputs, outputs) in shapes.items():
                key = f"{width}_{tokens}_{name}"
                self.layers[key] = nn.Linear(inputs, outputs)
                self.tokens[key] = CONTEXT[0] if name in ("cross_k", "cross_v") else tokens

    def run(self) -> torch.Tensor:
        total = torch.zeros(())
        for key, layer in self.layers.items():
            generator = torch.Generator().manual_seed(len(key))
            x = torch.randn(1, self.tokens[key], layer.in_features, generator=generator)
            total = total + layer(x.requires_grad_("cross_k" not in key and "cross_v" not in key)).square().mean()
        return total


def quick_world() -> World:
    torch.manual_seed(0)
    model = Layers().requires_grad_(False)
    targets = [
        Target(stem=key, path=key, part="unet", block="MID", kind="linear", module=layer)
        for key, layer in model.layers.items()
    ]
    return World(model, targets, lambda model: model.run())


def full_world() -> World:
    from diffusers import UNet2DConditionModel

    from lora_atelier.families.sd15 import FULL_SIZES

    torch.manual_seed(0)
    model = UNet2DConditionModel(**FULL_SIZES["unet"]).requires_grad_(False)
    targets = get_family("sd15").targets(Components(unet=model), text_encoder=False)
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(1, 4, 32, 32, generator=generator)
    text = torch.randn(1, *CONTEXT, generator=generator)

    def forward(model: nn.Module) -> torch.Tensor:
        return model(noisy, torch.tensor([500]), encoder_hidden_states=text).sample.square().mean()

    return World(model, targets, forward)


def twin(world: World) -> World:
    """A second model of the same weights: its own modules, the same memory."""
    shared = {id(tensor): tensor for tensor in (*world.model.parameters(), *world.model.buffers())}
    model = copy.deepcopy(world.model, shared)
    paths = {id(module): path for path, module in world.model.named_modules()}
    targets = [
        Target(
            stem=target.stem, path=target.path, part="unet", block="MID", kind=target.kind,
            module=model.get_submodule(paths[id(target.module)]),
        )
        for target in world.targets
    ]  # fmt: skip
    return World(model, targets, world.forward)


def step_of(world: World, parameters: Sequence[nn.Parameter]) -> Step:
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def step() -> None:
        world.forward(world.model).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def our_step(world: World, name: str, rank: int) -> Step:
    choice = Choice(kind="network", name=name, params=get_network(name).params(rank=rank))
    adapters = AdapterSet.attach(world.targets, choice, seed=0)
    return step_of(world, adapters.parameters_by_part()["unet"])


def their_step(world: World, name: str, rank: int) -> Step:
    if name == "loha":
        from lycoris.modules.loha import LohaModule as Module
    elif name == "lokr":
        from lycoris.modules.lokr import LokrModule as Module
    else:
        from lycoris.modules.locon import LoConModule as Module
    modules: list[Any] = [Module(target.stem, target.module, 1.0, rank, 1.0) for target in world.targets]
    for module in modules:
        module.apply_to()
    return step_of(world, [parameter for module in modules for parameter in module.parameters()])


def frozen_step(world: World) -> Step:
    """Forward and backward of the model alone: what no adapter can be faster than."""
    first = next(iter(world.targets)).module
    probe = torch.zeros((), requires_grad=True)
    own = first.forward
    first.forward = lambda x: own(x) + probe  # the gradient runs back to the first trained layer

    def step() -> None:
        world.forward(world.model).backward()
        probe.grad = None

    return step


def seconds_of(step: Step) -> float:
    started = time.perf_counter()
    step()
    return time.perf_counter() - started


def measure(world: World, name: str, *, rank: int, rounds: int) -> dict[str, float]:
    sides = {
        "ours": our_step(twin(world), name, rank),
        "lycoris": their_step(twin(world), name, rank),
        "frozen": frozen_step(twin(world)),
    }
    for step in sides.values():
        step()
    gc.collect()
    gc.disable()
    times: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds):
        order = list(sides) if number % 2 else list(reversed(sides))
        for side in order:
            times[side].append(seconds_of(sides[side]))
    gc.enable()
    pairs = zip(times["ours"], times["lycoris"], times["frozen"], strict=True)
    ratios = [(ours / theirs, ours / frozen) for ours, theirs, frozen in pairs]
    figures = {
        "ratio": statistics.median(ratio for ratio, _ in ratios),
        "to_frozen": statistics.median(ratio for _, ratio in ratios),
        **{f"{side}_s": statistics.median(values) for side, values in times.items()},
        "rank": rank,
        "rounds": rounds,
    }
    print(
        f"{name} rank {rank}: ours {figures['ours_s']:.4f} s, lycoris {figures['lycoris_s']:.4f} s, frozen model alone "
        f"{figures['frozen_s']:.4f} s; {figures['ratio']:.3f} of lycoris, {figures['to_frozen']:.3f} of the frozen one",
        flush=True,
    )
    return {key: round(value, 4) for key, value in figures.items()}


def missed(figures: dict[str, dict[str, float]]) -> list[str]:
    return [
        f"{name}: ratio {numbers['ratio']} > {BARS[f'{name}_ratio_max']}"
        for name, numbers in figures.items()
        if f"{name}_ratio_max" in BARS and numbers["ratio"] > BARS[f"{name}_ratio_max"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="linear layers only; ends within a minute")
    parser.add_argument("--check", action="store_true", help="exit 1 where a bar is missed")
    parser.add_argument("--rounds", type=int, default=0, help="interleaved rounds; 0 chooses")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--networks", default="loha,lokr", help="of loha, lokr, lora")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0 leaves it alone")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    world = quick_world() if options.quick else full_world()
    rounds = options.rounds or (20 if options.quick else 8)
    figures = {
        name: measure(world, name, rank=options.rank, rounds=rounds) for name in options.networks.split(",") if name
    }
    misses = missed(figures)
    for line in misses:
        print(f"missed: {line}")
    machine = {"cpu_count": os.cpu_count(), "system": platform.system(), "machine": platform.machine()}
    machine |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({"bench": "networks", "figures": figures, "bars": BARS, "missed": misses, "machine": machine}))
    return 1 if options.check and misses else 0


if __name__ == "__main__":
    sys.exit(main())
