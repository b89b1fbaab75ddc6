"""The scorecard of a grid, judged by a tagger."""

from __future__ import annotations

import json
from typing import Any

from PIL import Image

from ..core.files import write_json
from ..evaluator.grid import GridRef
from ..evaluator.score import score_grid
from ..tagger.picking import PickParams
from ..tagger.runner import open_tagger, pick
from ._changes import named_file_state
from ._images import show_once, to_image
from .host import PICO_NAME, get_host
from .widgets import ROOT_CATEGORY, combo, number, socket, text


class ScoreGrid:
    """Scores a grid."""

    ID = "AtelierScoreGrid"
    TITLE = "Score Grid (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Compare"
    DESCRIPTION = (
        "Lets a tagger look at every cell and counts, column by column: how often the trigger calls the concept, how "
        "often the concept shows without being called, and how often everything else that was asked for is there."
    )
    SEARCH_ALIASES = ["evaluate", "metric", "score", "judge", "tagger"]
    RETURN_TYPES = ("STRING", "IMAGE")
    RETURN_NAMES = ("report", "table")
    OUTPUT_TOOLTIPS = ("All figures as JSON.", "The scorecard as a picture.")
    FUNCTION = "score"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "grid": socket("ATELIER_GRID", "The grid to score; one axis compares LoRAs, the other varies prompts."),
                "tagger_name": combo(
                    get_host().tagger_names(),
                    f"The judge: a tagger that knows the concept; '{PICO_NAME}' for the tiny model.",
                ),
                "trigger": text("The word in a prompt that calls the concept."),
                "concept_tag": text(
                    "The tagger's tag that stands for the concept; of several, separated by commas, all must be seen."
                ),
                "threshold": number(
                    "FLOAT", 0.5, 0.0, 1.0, 0.01, "How sure the tagger must be of a tag it sees; 0 takes its own."
                ),
            }
        }

    @classmethod
    def IS_CHANGED(cls, tagger_name: str | None = None, **_: Any) -> str:
        """A tagger written anew is seen."""
        return named_file_state(get_host().tagger_path, tagger_name)

    def score(
        self, grid: GridRef, tagger_name: str, trigger: str, concept_tag: str, threshold: float
    ) -> dict[str, Any]:
        """Judge every cell."""
        host = get_host()
        tagger = open_tagger(host.tagger_path(tagger_name))
        params = PickParams(general_threshold=threshold, character_threshold=threshold)

        def judge(picture: Image.Image) -> set[str]:
            return {tag.name for tag in pick(tagger.tag_image(picture), params)}

        table = score_grid(grid, judge, tagger.vocabulary, trigger, concept_tag, progress=host.progress())
        write_json(grid.folder / "score.json", table.to_json())
        picture = table.picture()
        ui = {"text": [table.text()], "images": [show_once(picture, "atelier-score")], "score": [table.to_json()]}
        return {"ui": ui, "result": (json.dumps(table.to_json()), to_image([picture]))}


NODES = (ScoreGrid,)
