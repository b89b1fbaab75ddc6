"""Cutting heads out for training and whole persons for regularisation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ..core.progress import Progress
from ..dataset.crops import CropParams, Pairs, subject_crops
from ..dataset.crops_captions import Retagger, RetagParams, retag_crops
from ..dataset.crops_sheets import pair_sheet
from ..dataset.detect_rows import Boxes
from ..dataset.normal import normal
from ..dataset.table import Dataset
from ..tagger.picking import PickParams, limits_of, written_by
from ..tagger.runner import open_tagger, pick
from ..tagger.scores import FLOOR
from ._boxes import DETECTOR, FILES, NAMES, box_inputs, boxes_state, detector_refusal, read_boxes
from ._changes import named_file_state
from ._images import show_once
from ._index import index_if_usable
from ._taggers import refusal_of, tagger_path
from .host import get_host
from .widgets import ROOT_CATEGORY, combo, number, params_from, socket, widgets

NO_TAGGER = "none (captions stay)"


class SubjectCrops:
    """Cuts subjects out."""

    ID = "AtelierSubjectCrops"
    TITLE = "Subject Crops (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Data"
    DESCRIPTION = (
        "Cuts heads out for training, in the proportions of the training size, and the whole persons around them as "
        "their regularisation twins. A tagger can take out of each caption what is not in the crop. Nothing is "
        "written; 'Export Data Set' writes the crops."
    )
    SEARCH_ALIASES = ["head crop", "face crop", "person crop", "yolo", "detector", "bounding boxes", "regularization"]
    RETURN_TYPES = ("ATELIER_DATASET", "ATELIER_DATASET", "ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "heads", "persons", "report")
    OUTPUT_TOOLTIPS = (
        "Head crops for training with person crops for regularisation, ready to train.",
        "The head crops alone.",
        "The person crops alone; empty without any.",
        "How many were found, which pictures were left out and why, what was done to captions.",
    )
    FUNCTION = "crop"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The pictures; those for regularisation stay as they are."),
                **box_inputs([DETECTOR, FILES, NAMES]),
                **widgets(CropParams),
                "tagger_name": combo(
                    [NO_TAGGER, *get_host().tagger_names()],
                    "Tags each crop anew, so that what is not in it leaves its caption; none lets captions stay.",
                    default=NO_TAGGER,
                ),
                "tagger_threshold": number(
                    "FLOAT", 0.0, 0.0, 1.0, 0.01, "Lowest score of a tag in a crop; 0 takes the model's own threshold."
                ),
                **widgets(RetagParams),
            }
        }

    @classmethod
    def IS_CHANGED(
        cls,
        boxes: str | None = None,
        detector_name: str | None = None,
        box_place: str | None = None,
        tagger_name: str | None = None,
        **_: Any,
    ) -> str:
        """A detector, box files or a tagger written anew are seen."""
        tagger = "none" if tagger_name == NO_TAGGER else named_file_state(get_host().tagger_path, tagger_name)
        return f"{boxes_state(boxes, detector_name, box_place)} {tagger}"

    @classmethod
    def VALIDATE_INPUTS(
        cls, boxes: str | None = None, detector_name: str | None = None, tagger_name: str | None = None
    ) -> bool | str:
        """A detector or tagger this machine lacks is answered with the files that go where."""
        refusal = detector_refusal(boxes, detector_name)
        return refusal if refusal is not True or tagger_name == NO_TAGGER else refusal_of(tagger_name)

    def crop(
        self,
        dataset: Dataset,
        boxes: str,
        detector_name: str,
        least_score: float,
        box_place: str,
        tagger_name: str,
        tagger_threshold: float,
        **values: Any,
    ) -> dict[str, Any]:
        """Find the boxes, cut, and tag anew."""
        progress = get_host().progress()
        crop_params, retag_params = params_from(CropParams, values), params_from(RetagParams, values)
        rows = np.flatnonzero(~dataset.is_reg).tolist()
        found = read_boxes(
            dataset, boxes=boxes, detector_name=detector_name, least_score=least_score, box_place=box_place, rows=rows
        )
        pairs = subject_crops(dataset, found or Boxes(rows={}, origin="nowhere"), crop_params)
        if tagger_name != NO_TAGGER and retag_params.captions != "keep":
            pairs = _retagged(pairs, retagger_of(tagger_name, tagger_threshold), retag_params, progress)
        persons = pairs.persons if pairs.persons is not None else pairs.both.take([], note="no person crops")
        shown = {"text": [pairs.report], "images": [show_once(pair_sheet(pairs, progress=progress), "crops")]}
        return {"ui": shown, "result": (pairs.both, pairs.heads, persons, pairs.report)}


def retagger_of(name: str, threshold: float) -> Retagger:
    """A tagger as the crops' captions need it.

    Raises:
        InputError: There is none of this name.
    """
    tagger = open_tagger(tagger_path(name))
    wanted = PickParams(general_threshold=threshold)
    lowest = "\n".join(f"{word.strip()} = {FLOOR}" for word in wanted.categories.split(","))
    everything = replace(wanted, general_threshold=FLOOR, thresholds=lowest)
    names = [written_by(tag, wanted) for tag in tagger.scored.names]

    def tag(image: Any) -> dict[str, float]:
        return {found.name: found.score for found in pick(tagger.tag_image(image), everything)}

    return Retagger(
        identity=f"{tagger.identity}:{tagger.preparation}",
        side_px=2 * max(tagger.width_px, tagger.height_px),
        vocabulary=frozenset(map(normal, tagger.vocabulary)),
        tag=tag,
        limits=dict(zip(names, limits_of(tagger.scored, wanted).tolist(), strict=True)),
    )


def _retagged(pairs: Pairs, retagger: Retagger, params: RetagParams, progress: Progress) -> Pairs:
    """The pairs with captions that fit each crop, in all three data sets."""
    result = retag_crops(pairs.both, retagger, params, index=index_if_usable(progress), progress=progress)
    tags, note = result.dataset.tags, result.dataset.history[-1]
    count = len(pairs.heads)
    heads = pairs.heads.with_tag_column(tags.take(np.arange(count)), note=note)
    persons = pairs.persons
    if persons is not None:
        persons = persons.with_tag_column(tags.take(np.arange(count, count + len(persons))), note=note)
    report = "\n".join([pairs.report, result.diff.text(), *(f"  ! {problem}" for problem in result.problems[:20])])
    return replace(pairs, heads=heads, persons=persons, both=result.dataset, report=report)


NODES = (SubjectCrops,)
