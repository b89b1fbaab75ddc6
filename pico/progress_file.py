"""A training stage's state on disk (weights, optimizer moments, step) and its progress line.

Written under a temporary name and renamed, so a killed run continues from its last whole state.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, temporary, dict(metadata))
    os.replace(temporary, path)


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Every tensor of a safetensors file, and its metadata."""
    with safe_open(path, framework="pt") as opened:
        return {k: opened.get_tensor(k) for k in opened.keys()}, dict(opened.metadata() or {})  # noqa: SIM118


def save_state(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer], step: int
) -> None:
    """Save the weights of the named modules, the optimizers' tensors, and the step reached."""
    tensors = {f"{name}.{k}": v for name, module in modules.items() for k, v in module.state_dict().items()}
    for place, optimizer in enumerate(optimizers):
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{place}.{index}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    save_tensors(path, tensors, {"step": json.dumps(step)})


def load_state(path: Path, modules: Mapping[str, nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """Load what :func:`save_state` wrote and return the step reached; 0 when there is no file."""
    if not path.is_file():
        return 0
    tensors, metadata = load_tensors(path)
    for name, module in modules.items():
        start = name + "."
        module.load_state_dict({k[len(start) :]: v for k, v in tensors.items() if k.startswith(start)})
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        if optimizers and key.startswith("optimizer."):
            _, place, index, moment = key.split(".")
            states[int(place)].setdefault(int(index), {})[moment] = value
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(json.loads(metadata["step"]))


class ProgressLine:
    """Prints step, losses, seconds a step and the time left, every `every_steps` steps."""

    def __init__(self, stage: str, total_steps: int, first_step: int, every_steps: int = 20) -> None:
        """Start counting at `first_step` of `total_steps`."""
        self._stage, self._total_steps, self._every_steps = stage, total_steps, every_steps
        self._last_step, self._last_s = first_step, time.monotonic()
        self._sums: dict[str, float] = {}

    def tell(self, step: int, **figures: float) -> None:
        """Count a finished step; figures are averaged between lines."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        if step % self._every_steps and step != self._total_steps:
            return
        now_s, steps = time.monotonic(), max(1, step - self._last_step)
        step_s = (now_s - self._last_s) / steps
        means = " ".join(f"{name} {total / steps:.5f}" for name, total in self._sums.items())
        left_min = step_s * (self._total_steps - step) / 60
        print(
            f"{self._stage} {step}/{self._total_steps} {means} {step_s:.3f} s/step, {left_min:.1f} min left", flush=True
        )
        self._sums, self._last_step, self._last_s = {}, step, now_s
