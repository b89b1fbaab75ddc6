"""Variants of pictures and captions, sizes and small batches of a training."""

from __future__ import annotations

from typing import Any

from ..trainer.augment import AugmentParams
from .widgets import ROOT_CATEGORY, params_from, widgets


class TrainAugment:
    """Chooses variants, caches, sizes and small batches."""

    ID = "AtelierTrainAugment"
    TITLE = "Augmentation (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "Lets a training see several variants of every picture and caption though both are encoded only once: random "
        "crops, other colours, shuffled captions. Also further resolutions, and what becomes of small batches."
    )
    SEARCH_ALIASES = [
        "augmentation",
        "random crop",
        "colour jitter",
        "color aug",
        "cache latents",
        "bucket",
        "wildcard",
    ]
    RETURN_TYPES = ("ATELIER_AUGMENT",)
    RETURN_NAMES = ("augment",)
    OUTPUT_TOOLTIPS = ("The settings, for the node 'Train LoRA'.",)
    FUNCTION = "choose"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        # Optional, though each has a default: a graph saved before a setting was added must go on running.
        return {"optional": widgets(AugmentParams)}

    def choose(self, **values: Any) -> tuple[AugmentParams]:
        """Check the settings."""
        return (params_from(AugmentParams, values),)


NODES = (TrainAugment,)
