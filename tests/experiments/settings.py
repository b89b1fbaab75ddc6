"""One setting of the common training at a time: alpha, rates, schedule, blocks, optimizer (D, E, F, G, J)."""

from collections.abc import Mapping
from dataclasses import replace

from . import learning
from .learning import COMMON, LR, LR_TEXT, with_settings
from .world import Recipe, World

LOW = replace(COMMON, alpha=COMMON.alpha / 4)
ADAPTIVE = {"lr_unet": 1.0, "lr_text_encoder": 1.0, "schedule": "constant", "weight_decay": 0.0}
"""How a LoRA trainer's log sets its adaptive optimizers."""

RECIPES: Mapping[str, Recipe] = {
    "common": COMMON,
    "low": LOW,
    "lr up": replace(LOW, settings={**COMMON.settings, "lr_unet": 4 * LR, "lr_text_encoder": 4 * LR_TEXT}),
    "cosine": with_settings(schedule="cosine"),
    "text rate halved": with_settings(lr_text_encoder=LR_TEXT / 2),
    "OUT03-06": replace(COMMON, blocks="TE, OUT03-06"),
    "text encoder": replace(COMMON, blocks="TE"),
    "IN04-07 OUT03-06": replace(COMMON, blocks="TE, IN04-07, OUT03-06"),
    "OUT03-06 longer": replace(COMMON, blocks="TE, OUT03-06"),
    "D-Adaptation Lion": Recipe(optimizer="dadapt_lion", settings=ADAPTIVE),
    "Prodigy": Recipe(optimizer="prodigy", settings=ADAPTIVE),
}
"""Every training by its name; "common" is the same one in all experiments."""

ARMS: Mapping[str, Mapping[str, str]] = {
    "d": {"low": "low", "alpha up": "common", "lr up": "lr up"},
    "e": {"constant": "common", "cosine": "cosine"},
    "f": {"whole": "common", "halved": "text rate halved"},
    "g": {"all blocks": "common", "OUT03-06": "OUT03-06", "no block": "text encoder"},
    "g-more": {
        "all blocks": "common",
        "IN04-07, OUT03-06": "IN04-07 OUT03-06",
        "OUT03-06, 480 steps": "OUT03-06 longer",
    },
    "j": {"AdamW": "common", "D-Adaptation Lion": "D-Adaptation Lion", "Prodigy": "Prodigy"},
}
"""Arms of each experiment, and the training each stands for."""

SEEN_AT: Mapping[str, tuple[int, ...]] = {"OUT03-06 longer": (120, 240, 360, 480)}
"""Trainings that are looked at elsewhere than the others."""


def run(world: World, arm: str, seed: int, *, experiment: str) -> dict[str, float]:
    """Trains an arm, or takes the training another experiment has made."""
    name = ARMS[experiment][arm]
    return learning.curve(world, RECIPES[name], name.replace(" ", "-"), seed, SEEN_AT.get(name, learning.SEEN_AT))
