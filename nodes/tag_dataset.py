"""Tagging a data set, with one tagger or several."""

from __future__ import annotations

from typing import Any

from ..dataset.table import Dataset
from ..tagger.ensemble import member_lines
from ..tagger.modes import rows_for
from ..tagger.picking import PickParams
from ..tagger.pipeline import score_dataset
from ..tagger.tag import EnsembleParams, ModeParams, TagResult, tag_dataset, tag_with_ensemble
from ._changes import named_file_state
from ._taggers import open_for_many, refusal_of, score_index, tagger_combo, tagger_path
from .host import PICO_NAME, get_host
from .widgets import ROOT_CATEGORY, params_from, socket, split_widgets, text, widgets

LATER = ("aliases",)

OUTPUTS: dict[str, Any] = {
    "RETURN_TYPES": ("ATELIER_DATASET", "STRING"),
    "RETURN_NAMES": ("dataset", "report"),
    "OUTPUT_TOOLTIPS": (
        "The data set with the tags in its captions; each tag carries its score and its category.",
        "What computed, how many pictures came from the score store, which could not be read, what changed.",
    ),
}


class TagDataset:
    """Tags a data set."""

    ID = "AtelierTagDataset"
    TITLE = "Tag Data Set (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Tags every picture of a data set. Scores are kept: run it again with other thresholds, and no picture is "
        "looked at a second time. A run that was cancelled goes on where it stopped. No caption file is written."
    )
    SEARCH_ALIASES = ["wd14", "tagger", "batch tag", "caption folder", "interrogate", "threshold"]
    RETURN_TYPES = OUTPUTS["RETURN_TYPES"]
    RETURN_NAMES = OUTPUTS["RETURN_NAMES"]
    OUTPUT_TOOLTIPS = OUTPUTS["OUTPUT_TOOLTIPS"]
    FUNCTION = "tag"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set to tag; its files are left alone."),
                "tagger_name": tagger_combo(),
                **widgets(ModeParams),
                **widgets(PickParams),
            }
        }

    @classmethod
    def IS_CHANGED(cls, tagger_name: str | None = None, **_: Any) -> str:
        """A tagger written anew is seen."""
        return named_file_state(get_host().tagger_path, tagger_name)

    @classmethod
    def VALIDATE_INPUTS(cls, tagger_name: str | None = None) -> bool | str:
        """A tagger this machine lacks is answered with the files that go where."""
        return refusal_of(tagger_name)

    def tag(self, dataset: Dataset, tagger_name: str, mode: str, **values: Any) -> dict[str, Any]:
        """Tag what the store does not know, then choose."""
        host = get_host()
        params = params_from(PickParams, values)
        tagger = open_for_many(tagger_name)
        progress = host.progress()
        result = tag_dataset(
            dataset, tagger, score_index(progress), params=params, mode=ModeParams(mode=mode).mode, progress=progress
        )
        return _answer(result, tagger.describe())


class EnsembleTaggers:
    """Tags a data set by several taggers."""

    ID = "AtelierEnsembleTaggers"
    TITLE = "Ensemble Taggers (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Tags a data set by several taggers at once. Each one's scores are first shifted so that its own threshold "
        "becomes 0.5; only then are they comparable. Scores are kept as by 'Tag Data Set'."
    )
    SEARCH_ALIASES = ["wd14", "tagger", "several taggers", "merge taggers", "vote", "calibrate"]
    RETURN_TYPES = OUTPUTS["RETURN_TYPES"]
    RETURN_NAMES = OUTPUTS["RETURN_NAMES"]
    OUTPUT_TOOLTIPS = OUTPUTS["OUTPUT_TOOLTIPS"]
    FUNCTION = "tag"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        first, later = split_widgets(EnsembleParams, LATER)
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set to tag; its files are left alone."),
                "tagger_names": text(
                    "Names of the taggers, one a line; 'name = 0.5' gives one half a voice.",
                    default=PICO_NAME,
                    multiline=True,
                ),
                **first,
                **widgets(ModeParams),
                **widgets(PickParams),
            },
            "optional": later,
        }

    @classmethod
    def IS_CHANGED(cls, tagger_names: str | None = None, **_: Any) -> str:
        """A tagger written anew is seen."""
        names = [line.partition("=")[0].strip() for line in (tagger_names or "").splitlines() if line.strip()]
        return " ".join(named_file_state(get_host().tagger_path, name) for name in names)

    def tag(
        self, dataset: Dataset, tagger_names: str, combine: str, mode: str, aliases: str = "", **values: Any
    ) -> dict[str, Any]:
        """Score with each tagger in turn, then combine."""
        host = get_host()
        params = params_from(PickParams, values)
        ensemble, mode = EnsembleParams(combine=combine, aliases=aliases), ModeParams(mode=mode).mode
        named = member_lines(tagger_names)
        for name, _ in named:
            tagger_path(name)  # a missing one is told before the first has worked for an hour
        rows, progress = rows_for(dataset, mode), host.progress()
        index = score_index(progress)
        scored, lines = [], []
        for name, weight in named:
            tagger = open_for_many(name)
            scored.append((name, weight, score_dataset(dataset, tagger, index, rows=rows, progress=progress)))
            lines.append(tagger.describe())
        result = tag_with_ensemble(
            dataset,
            scored,
            params=params,
            mode=mode,
            how=ensemble.combine,
            aliases=ensemble.same_tags(),
            progress=progress,
        )
        return _answer(result, *lines)


def _answer(result: TagResult, *lines: str) -> dict[str, Any]:
    report = "\n".join([*lines, result.text()])
    return {"ui": {"text": [report]}, "result": (result.dataset, report)}


NODES = (TagDataset, EnsembleTaggers)
