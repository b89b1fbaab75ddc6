"""A classifier of one's own: trained from labelled pictures, applied as the arbiter of a group of tags."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import FormatError, InputError
from ..core.files import safe_name
from ..dataset.diff import compare
from ..dataset.table import Dataset
from ..tagger.classifier import FINE_TUNED, INFO_FILE, ClassifierParams, Verdict, examples_of, read_info
from ..tagger.classifier_apply import ApplyParams, with_labels
from ._changes import named_file_state
from ._confusion import confusion_plot
from ._images import show_once, to_image
from ._taggers import open_for_many, score_index, tagger_combo
from .host import get_host
from .widgets import ROOT_CATEGORY, params_from, socket, text, widgets

FOLDER = "atelier/classifiers"
"""Below the output folder."""


def classifier_folder(name: str) -> Path:
    """The folder of a trained classifier.

    Raises:
        InputError: There is none of this name; the nearest are named.
    """
    return get_host().roots().resolve(f"{FOLDER}/{name.strip()}", ("output",), what="tag classifier")


class TrainTagClassifier:
    """Trains a classifier."""

    ID = "AtelierTrainTagClassifier"
    TITLE = "Train Tag Classifier (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Learns to tell labels apart that a tagger mixes up (sizes, directions, in or out) from folders of examples or "
        "from exclusive tags, and says how good it is on pictures it has not seen."
    )
    SEARCH_ALIASES = ["image classification", "exclusive tags", "arbiter", "logistic regression", "fine-tune"]
    RETURN_TYPES = ("STRING", "STRING", "IMAGE")
    RETURN_NAMES = ("classifier", "report", "confusion")
    OUTPUT_TOOLTIPS = (
        "Name of the classifier, for 'Apply Tag Classifier'.",
        "Labels, accuracy on the held-out pictures, what was taken for what.",
        "The confusion matrix as a picture.",
    )
    FUNCTION = "train"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The labelled pictures; they are only read."),
                "name": text("Name of the classifier; an older one of this name is replaced.", default="my classifier"),
                **widgets(ClassifierParams),
                "tagger_name": tagger_combo("For logistic regression, the tagger whose sight is used"),
            },
            "optional": {
                "model_folder": text(
                    "For fine-tune: a folder below the models folder with config.json, model.safetensors and "
                    "preprocessor_config.json of an image-classification model."
                )
            },
        }

    @classmethod
    def IS_CHANGED(cls, tagger_name: str | None = None, **_: Any) -> str:
        """A tagger written anew is seen."""
        return named_file_state(get_host().tagger_path, tagger_name)

    def train(
        self, dataset: Dataset, name: str, tagger_name: str, model_folder: str = "", **values: Any
    ) -> dict[str, Any]:
        """Train it and show how good it is."""
        params = params_from(ClassifierParams, values)
        if not name.strip():
            raise InputError("name is empty; give the classifier a name")
        shown = safe_name(name.strip())
        folder = get_host().output_dir() / FOLDER / shown
        found, lines = _trained(dataset, params, folder, tagger_name, model_folder)
        report = "\n".join([f"classifier '{shown}' by {params.method}", *lines, found.text()])
        picture = confusion_plot(found, shown)
        ui = {"text": [report], "images": [show_once(picture, "atelier-classifier")]}
        return {"ui": ui, "result": (shown, report, to_image([picture]))}


def _trained(
    dataset: Dataset, params: ClassifierParams, folder: Path, tagger_name: str, model_folder: str
) -> tuple[Verdict, list[str]]:
    host = get_host()
    examples = examples_of(dataset, params)
    lines = [f"{len(examples.rows)} pictures of {len(examples.names)} labels, {examples.left_out} without a label"]
    if params.method == FINE_TUNED:
        from ..tagger.classifier_finetune import train_finetuned

        if not model_folder.strip():
            raise InputError("fine-tune needs model_folder: a folder below the models folder with the model's files")
        source = host.roots().resolve(model_folder, ("models", "extra"), what="image-classification model folder")
        with host.training():
            found = train_finetuned(
                dataset, examples, source, params, folder, device=host.device(), progress=host.progress()
            )
        return found, lines
    from ..tagger.classifier_linear import train_linear

    tagger = open_for_many(tagger_name)
    progress = host.progress()
    found, scored = train_linear(
        dataset, examples, tagger, score_index(progress), params, folder, tagger_name=tagger_name, progress=progress
    )
    return found, [tagger.describe(), *scored.lines(dataset), *lines]


class ApplyTagClassifier:
    """Puts a classifier's label into captions."""

    ID = "AtelierApplyTagClassifier"
    TITLE = "Apply Tag Classifier (Atelier)"
    CATEGORY = f"{ROOT_CATEGORY}/Tags"
    DESCRIPTION = (
        "Gives each picture the label a trained classifier sees, with its probability, in place of all other labels of "
        "the group: the arbiter where sites give several sizes at once."
    )
    SEARCH_ALIASES = ["image classification", "exclusive tags", "arbiter", "size tag"]
    RETURN_TYPES = ("ATELIER_DATASET", "STRING")
    RETURN_NAMES = ("dataset", "report")
    OUTPUT_TOOLTIPS = ("The data set with the labels.", "Captions per label, what was taken out, examples.")
    FUNCTION = "apply"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "dataset": socket("ATELIER_DATASET", "The data set; its files are left alone."),
                "classifier": text(
                    "Name of the classifier, as given to 'Train Tag Classifier', or that node's output."
                ),
                **widgets(ApplyParams),
            }
        }

    @classmethod
    def IS_CHANGED(cls, classifier: str | None = None, **_: Any) -> str:
        """A classifier trained anew is seen."""
        return named_file_state(lambda name: classifier_folder(name) / INFO_FILE, classifier)

    def apply(self, dataset: Dataset, classifier: str, **values: Any) -> dict[str, Any]:
        """Predict, then settle the captions."""
        params = params_from(ApplyParams, values)
        if not classifier.strip():
            raise InputError("classifier is empty; give the name of one made by 'Train Tag Classifier'")
        folder = classifier_folder(classifier)
        info = read_info(folder)
        names = tuple(info["labels"])
        probabilities, lines = _predicted(dataset, folder, info)
        rows = np.arange(len(dataset), dtype=np.int64)
        column, rules = with_labels(dataset.tags, names, probabilities, rows, params)
        after = dataset.with_tag_column(column, note=f"labelled by the classifier {folder.name}")
        diff = compare(dataset, after, title=f"classifier {folder.name}", rules=rules)
        report = "\n".join([*lines, diff.text()])
        return {"ui": {"text": [report]}, "result": (after, report)}


def _predicted(dataset: Dataset, folder: Path, info: dict[str, Any]) -> tuple[np.ndarray[Any, Any], list[str]]:
    """Probability of each label for every picture, and where they came from."""
    host = get_host()
    progress = host.progress()
    index = score_index(progress)
    names = tuple(info["labels"])
    if info["method"] == FINE_TUNED:
        from ..tagger.classifier_finetune import ImageClassifier
        from ..tagger.pipeline import score_dataset

        scored = score_dataset(dataset, ImageClassifier(folder, names, host.device()), index, progress=progress)
        table = scored.scores.dense(len(names))
        table[np.isin(scored.rows, np.array(sorted(scored.failed), dtype=np.int64))] = np.nan
        return table, scored.lines(dataset)
    from ..tagger.classifier_linear import feature_scorer, predict_linear, read_linear

    tagger = open_for_many(str(info.get("tagger", "")))
    scorer = feature_scorer(tagger)
    if scorer.identity != info.get("tagger_identity"):
        raise FormatError(
            f"the classifier {folder.name} was trained with other files of the tagger {info.get('tagger')}; put those "
            "back, or train it anew"
        )
    found, scored = predict_linear(dataset, read_linear(folder, len(names)), scorer, index, progress=progress)
    return found, [tagger.describe(), *scored.lines(dataset)]


NODES = (TrainTagClassifier, ApplyTagClassifier)
