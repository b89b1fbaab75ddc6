"""What a run has to show: its loss curve and its report."""

from __future__ import annotations

from typing import Any

from ..trainer.run import RunRef, open_run
from ._images import show_once, to_image
from .host import get_host
from .widgets import ROOT_CATEGORY, number, socket


class PlotLoss:
    """Draws the loss curve of a run."""

    ID = "AtelierPlotLoss"
    TITLE = "Plot Loss (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = "Draws loss and learning rate of a training run over its steps."
    SEARCH_ALIASES = ["loss graph", "loss curve", "visualize loss"]
    RETURN_TYPES = ("IMAGE",)
    RETURN_NAMES = ("plot",)
    OUTPUT_TOOLTIPS = ("The curves as a picture.",)
    FUNCTION = "plot"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "run": socket("ATELIER_RUN", "The run to draw."),
                "smoothing": number(
                    "FLOAT", 0.9, 0.0, 0.999, 0.01, "How much the thick line is smoothed; 0 draws the raw loss only."
                ),
            }
        }

    def plot(self, run: RunRef, smoothing: float) -> dict[str, Any]:
        """Draw the curves."""
        from ._plot import loss_plot

        picture = loss_plot(open_run(run.folder), smoothing=smoothing)
        return {"ui": {"images": [show_once(picture, "atelier-loss")]}, "result": (to_image([picture]),)}


class RunReport:
    """Tells what a run was."""

    ID = "AtelierRunReport"
    TITLE = "Run Report (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Train"
    DESCRIPTION = "Tells what a training run was: settings that differ from the defaults, data, losses, files."
    SEARCH_ALIASES = ["manifest", "training report", "metadata"]
    RETURN_TYPES = ("STRING",)
    RETURN_NAMES = ("report",)
    OUTPUT_TOOLTIPS = ("The report as text.",)
    FUNCTION = "report"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {"run": socket("ATELIER_RUN", "The run to report on.")},
            "optional": {"score": ("STRING", {"forceInput": True, "tooltip": "A scorecard of 'Score Grid' to add."})},
        }

    def report(self, run: RunRef, score: str = "") -> dict[str, Any]:
        """Put the report together."""
        from ._report import run_report

        said = run_report(open_run(run.folder), score=score, loras_dir=get_host().loras_dir())
        return {"ui": {"text": [said]}, "result": (said,)}


NODES = (PlotLoss, RunReport)
