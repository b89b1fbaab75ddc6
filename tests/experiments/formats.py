"""What is trained kept in half precision, and in fp32 with the computation in half precision (L)."""

import re
from collections.abc import Mapping
from dataclasses import replace

import torch

from lora_atelier.core.tensors import read_tensors
from lora_atelier.trainer.loop import BrokenStep
from lora_atelier.trainer.plan import check_job

from . import learning
from .learning import COMMON, SEEN_AT, STEPS
from .world import Recipe, World

ARMS: Mapping[str, Recipe] = {
    "fp32": COMMON,
    "mixed bf16": replace(COMMON, train={"precision": "bf16"}),
    "pure bf16": replace(COMMON, train={"precision": "bf16", "trained_dtype": "bf16"}),
    "pure fp16": replace(COMMON, train={"precision": "fp16", "trained_dtype": "fp16"}),
}
WARNING = "usually nothing is learned"
START_ARMS: Mapping[str, Recipe] = {
    "mixed bf16": ARMS["mixed bf16"],
    "mixed fp16": replace(COMMON, train={"precision": "fp16"}),
}
START_STEPS = 24


def warned(world: World, recipe: Recipe, seed: int) -> bool:
    """Whether the plan says before the run that pure half-precision weights usually learn nothing."""
    job = world.job(learning.pictures_of(world, seed), recipe, name="warned", seed=seed, steps=STEPS)
    return any(WARNING in warning for warning in check_job(job).warnings)


def run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains an arm; where the trainer stops at a number that is not finite, what is left is the base.

    Returns:
        The figures of a curve, ``warned``, and ``stopped``: the step at which training broke, 0 where it did not.
    """
    recipe, name = ARMS[arm], "common" if ARMS[arm] == COMMON else arm.replace(" ", "-")
    stopped = 0
    try:
        figures = learning.curve(world, recipe, name, seed)
    except BrokenStep as broken:
        found = re.match(r"Step (\d+) ", str(broken))
        stopped = int(found[1]) if found else 1
        base = learning.look(world, None, f"{name}-{seed}-base", seed)
        figures = learning.figures_of(dict.fromkeys(SEEN_AT, base))
    return {**figures, "warned": float(warned(world, recipe, seed)), "stopped": float(stopped)}


def run_start(world: World, arm: str, seed: int) -> dict[str, float]:
    """The first steps only, as fp16 is slow on a CPU: is the change that is learned the one fp32 learns?

    Returns:
        ``likeness``: cosine between the changed matrices and those of fp32; ``warned``.
    """
    ups = {}
    for name, recipe in (("fp32", COMMON), (arm, START_ARMS[arm])):
        trained = world.train(
            learning.pictures_of(world, seed), name=f"start-{name.replace(' ', '-')}-{seed}", seed=seed,
            steps=START_STEPS, recipe=recipe, save_dtype="fp32",
        )  # fmt: skip
        tensors = read_tensors(trained.lora)
        ups[name] = torch.cat([tensors[key].flatten() for key in sorted(tensors) if key.endswith("lora_up.weight")])
    likeness = torch.nn.functional.cosine_similarity(ups["fp32"], ups[arm], dim=0)
    return {"likeness": float(likeness), "warned": float(warned(world, START_ARMS[arm], seed))}
