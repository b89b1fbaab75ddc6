"""How captions are read in training."""

from __future__ import annotations

from typing import Any

from ..trainer.caption_params import CaptionParams
from .widgets import ROOT_CATEGORY, params_from, widgets


class TrainCaptions:
    """Settings of captions."""

    ID = "AtelierTrainCaptions"
    TITLE = "Training Captions (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "How captions are read in training: up to 75, 150 or 225 tokens, weights such as (word:1.2), and a warm-up in "
        "which the number of tags grows. Separators and kept tags are options of folders, in 'Subset Options'."
    )
    SEARCH_ALIASES = ["max token length", "225 tokens", "weighted captions", "token warmup", "long captions"]
    RETURN_TYPES = ("ATELIER_CAPTIONS",)
    RETURN_NAMES = ("captions",)
    OUTPUT_TOOLTIPS = ("How captions are read, for the node 'Train LoRA'.",)
    FUNCTION = "choose"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"optional": widgets(CaptionParams)}

    def choose(self, **values: Any) -> tuple[CaptionParams]:
        """Check the settings."""
        return (params_from(CaptionParams, values),)


NODES = (TrainCaptions,)
