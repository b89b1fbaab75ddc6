"""The stages of a training: a chain of nodes, one for each."""

from __future__ import annotations

from typing import Any

from ..dataset.table import Dataset
from ..trainer.stages import StageParams
from ..trainer.stages import TrainStage as Stage
from .widgets import ROOT_CATEGORY, params_from, socket, widgets


class TrainStage:
    """Adds a stage to a training."""

    ID = "AtelierTrainStage"
    TITLE = "Train Stage (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = (
        "One stage of a training, with pictures, size and learning rates of its own: simple backgrounds first, complex "
        "ones after at a lower rate; or small pictures first, large ones at the end. Chain one node per stage and "
        "connect the last to 'Train LoRA'; it stays one run, with one LoRA."
    )
    SEARCH_ALIASES = ["two stages", "curriculum", "training phases", "stage list", "finishing round"]
    RETURN_TYPES = ("ATELIER_STAGES",)
    RETURN_NAMES = ("stages",)
    OUTPUT_TOOLTIPS = ("The stages so far, this one last; for the next stage, or for 'Train LoRA'.",)
    FUNCTION = "add"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": widgets(StageParams),
            "optional": {
                "before": socket("ATELIER_STAGES", "The stages that come before; left open, this is the first."),
                "dataset": socket(
                    "ATELIER_DATASET", "The pictures of this stage; those of 'Train LoRA' when left open."
                ),
            },
        }

    def add(
        self, before: tuple[Stage, ...] | None = None, dataset: Dataset | None = None, **values: Any
    ) -> tuple[tuple[Stage, ...]]:
        """Put the stage behind the others."""
        return ((*(before or ()), Stage(params=params_from(StageParams, values), dataset=dataset)),)


NODES = (TrainStage,)
