"""Training at 64, 72 and 80 px, in the proportions of 512, 576 and 640 (the myth that 576 is learned faster; K)."""

from collections.abc import Mapping
from dataclasses import replace

from . import learning
from .learning import COMMON
from .world import World

ARMS: Mapping[str, int] = {"64 px": 64, "72 px": 72, "80 px": 80}


def run(world: World, arm: str, seed: int) -> dict[str, float]:
    """Trains at a resolution; pictures are drawn at the base's own size, as everywhere."""
    recipe = replace(COMMON, train={"resolution_px": ARMS[arm]})
    return learning.curve(world, recipe, f"{ARMS[arm]}px", seed)
