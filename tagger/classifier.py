"""A classifier of one's own, whose label becomes a tag: examples, the held-out split, how good it is, its files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..core.errors import FormatError, InputError
from ..core.files import read_json, write_json
from ..core.params import Params, param
from ..dataset.normal import matched_nothing, normal, normals
from ..dataset.table import Dataset

INFO_FILE = "classifier.json"
LINEAR, FINE_TUNED = "logistic regression", "fine-tune"
METHODS: Mapping[str, str] = {
    LINEAR: "on the tagger's embedding or tags; seconds on a CPU",
    FINE_TUNED: "of an image-classification model in a local folder",
}
LABEL_SOURCES = ("folders", "tags")
NO_LABEL_PREFIX = "_"
"""A label that begins so means none of the others and is never written: a folder ``_other``."""
_INFO_VERSION = 1
_MIN_PICTURES = 2


@dataclass(frozen=True, kw_only=True)
class ClassifierParams(Params):
    """How a classifier is made."""

    labels_from: str = param(
        "folders",
        doc="Where the labels come from: the names of the folders the pictures lie in, or exclusive tags",
        choices=LABEL_SOURCES,
    )
    tags: str = param(
        "",
        doc="The exclusive tags, separated by commas, when labels come from tags; a picture counts where it has just "
        "one of them",
        multiline=True,
    )
    method: str = param(
        LINEAR,
        doc="Logistic regression on what the tagger sees (seconds on a CPU), or fine-tuning an image model",
        choices=tuple(METHODS),
    )
    held_out: float = param(
        0.2, doc="Share of the pictures of each label that is kept for the test", minimum=0.05, maximum=0.5, step=0.05
    )
    seed: int = param(0, doc="Decides which pictures are kept for the test, and the training", minimum=0, maximum=2**53)
    balanced: bool = param(True, doc="Count each label alike, however many pictures it has", advanced=True)
    l2: float = param(
        1e-3,
        doc="Logistic regression: pull of the weights towards 0",
        minimum=0.0,
        maximum=100.0,
        step=0.001,
        advanced=True,
    )
    epochs: int = param(5, doc="Fine-tune: passes over the pictures", minimum=1, maximum=1000, advanced=True)
    batch_size: int = param(8, doc="Fine-tune: pictures per step", minimum=1, maximum=256, advanced=True)
    learning_rate: float = param(
        5e-5, doc="Fine-tune: step size of AdamW", minimum=1e-7, maximum=0.1, step=1e-5, advanced=True
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Pictures with their label.

    Attributes:
        rows: Pictures of the data set, int64.
        labels: Place in `names` of each, int64.
        names: The labels, sorted.
        left_out: Pictures that are no example (no label, or several).
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    left_out: int

    def counts(self) -> NDArray[np.int64]:
        """Pictures of each label."""
        return np.bincount(self.labels, minlength=len(self.names)).astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Verdict:
    """How good a classifier is on pictures it has not learnt from.

    Attributes:
        names: The labels.
        confusion: int64 [true, said].
    """

    names: tuple[str, ...]
    confusion: NDArray[np.int64]

    @property
    def accuracy(self) -> float:
        """Share of the held-out pictures that got their own label."""
        return float(np.trace(self.confusion) / max(1, self.confusion.sum()))

    @property
    def chance(self) -> float:
        """Accuracy of always saying the most frequent label."""
        return float(self.confusion.sum(axis=1).max(initial=0) / max(1, self.confusion.sum()))

    def text(self) -> str:
        """Accuracy, and per label how many were found and what they were taken for."""
        total = int(self.confusion.sum())
        lines = [
            f"held-out accuracy {self.accuracy:.1%} of {total} pictures "
            f"(always saying the most frequent label: {self.chance:.1%})"
        ]
        for place, name in enumerate(self.names):
            row = self.confusion[place]
            wrong = [(int(row[n]), self.names[n]) for n in np.argsort(-row) if n != place and row[n]]
            taken = "".join(f", {count} taken for {other}" for count, other in wrong[:3])
            lines.append(f"  {name}: {int(row[place])} of {int(row.sum())}{taken}")
        return "\n".join(lines)


def examples_of(dataset: Dataset, params: ClassifierParams) -> Examples:
    """The pictures of a data set that have a label.

    Raises:
        InputError: Fewer than two labels, or a label with fewer than two pictures.
    """
    if params.labels_from == "tags":
        return examples_from_tags(dataset, [tag.strip() for tag in params.tags.replace("\n", ",").split(",")])
    return examples_from_folders(dataset)


def examples_from_folders(dataset: Dataset) -> Examples:
    """Labels by folder: the first folder below the one that was opened; kohya's repeat count does not belong to it.

    Raises:
        InputError: See `examples_of`.
    """
    words = [_folder_label(dataset, row) for row in range(len(dataset))]
    names = tuple(sorted({word for word in words if word}))
    place = {name: number for number, name in enumerate(names)}
    labels = np.array([place.get(word, -1) for word in words], dtype=np.int64)
    return _checked(labels, names, "pictures must lie in one folder per label, below the folder that is opened")


def examples_from_tags(dataset: Dataset, tags: Sequence[str]) -> Examples:
    """Labels by tags of which a picture has exactly one.

    Raises:
        InputError: See `examples_of`; or a tag is on no picture.
    """
    wanted = list(dict.fromkeys(tag for tag in tags if tag))
    column = dataset.tags
    place = {normal(tag): number for number, tag in enumerate(wanted)}
    group = np.array([place.get(name, -1) for name in normals(column.vocabulary)], dtype=np.int64)
    table = np.zeros((len(dataset), len(wanted)), dtype=bool)
    of_group = group[column.ids]
    table[column.row_of_occurrence[of_group >= 0], of_group[of_group >= 0]] = True
    for number, tag in enumerate(wanted):
        if not bool(table[:, number].any()):
            raise InputError(matched_nothing(tag, list(dataset.tag_counts()), what="the label"))
    labels = np.where(table.sum(axis=1) == 1, table.argmax(axis=1) if wanted else -1, -1).astype(np.int64)
    return _checked(labels, tuple(wanted), "name two or more tags of which a picture has one")


def split(examples: Examples, *, held_out: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places in `examples` to learn from and to test with; of every label there are some in both."""
    random = np.random.default_rng(seed)
    learn, test = [], []
    for label in range(len(examples.names)):
        places = random.permutation(np.flatnonzero(examples.labels == label))
        size = min(len(places) - 1, max(1, round(held_out * len(places))))
        test.append(places[:size])
        learn.append(places[size:])
    return np.sort(np.concatenate(learn)), np.sort(np.concatenate(test))


def verdict(names: tuple[str, ...], true: NDArray[np.int64], said: NDArray[np.int64]) -> Verdict:
    """What was said against what is true."""
    table = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(table, (true, said), 1)
    return Verdict(names=names, confusion=table)


def label_weights(labels: NDArray[np.int64], number: int, *, balanced: bool) -> NDArray[np.float32]:
    """Weight of each label in the loss, float32 [number]; 1 on the mean over the pictures."""
    counts = np.bincount(labels, minlength=number).astype(np.float64)
    weights = len(labels) / (number * np.maximum(counts, 1.0)) if balanced else np.ones(number)
    return weights.astype(np.float32)


def write_info(
    folder: Path, *, method: str, examples: Examples, found: Verdict, params: ClassifierParams, facts: Mapping[str, Any]
) -> None:
    """Writes what a classifier is beside its weights.

    Raises:
        StorageError: No space or no permission.
    """
    write_json(
        folder / INFO_FILE,
        {
            "format": _INFO_VERSION,
            "method": method,
            "labels": list(examples.names),
            "pictures": dict(zip(examples.names, examples.counts().tolist(), strict=True)),
            "accuracy": round(found.accuracy, 6),
            "confusion": found.confusion.tolist(),
            "params": params.to_json(),
            **facts,
        },
    )


def read_info(folder: Path) -> dict[str, Any]:
    """What a classifier's folder says it is.

    Raises:
        InputError: There is no classifier in the folder.
        FormatError: Its file is not what it should be.
    """
    path = folder / INFO_FILE
    if not path.is_file():
        raise InputError(f"there is no classifier in {folder.name}: it lacks {INFO_FILE}; train it first")
    info = read_json(path)
    labels = info.get("labels") if isinstance(info, dict) else None
    good = isinstance(labels, list) and len(labels) > 1 and all(isinstance(name, str) for name in labels)
    if not good or info.get("method") not in METHODS:
        raise FormatError(f"{path} does not describe a classifier (labels, method); train it anew")
    if info.get("format") != _INFO_VERSION:
        raise FormatError(f"{path} has the format {info.get('format')}, this version reads {_INFO_VERSION}")
    return dict(info)


def _folder_label(dataset: Dataset, row: int) -> str:
    subset = dataset.subset_of(row)
    folder, slash, _ = dataset.names[row].partition("/")
    if slash:
        return folder
    if subset.concept:
        return subset.concept
    return "" if subset.folder == dataset.root else subset.folder.name


def _checked(labels: NDArray[np.int64], names: tuple[str, ...], way: str) -> Examples:
    if len(names) < 2:
        listed = f"only {names[0]!r}" if names else "none"
        raise InputError(f"a classifier needs two or more labels, found was {listed}; {way}")
    rows = np.flatnonzero(labels >= 0)
    examples = Examples(rows=rows, labels=labels[rows], names=names, left_out=len(labels) - len(rows))
    for name, count in zip(names, examples.counts().tolist(), strict=True):
        if count < _MIN_PICTURES:
            raise InputError(
                f"the label {name!r} has {count} pictures, needed are {_MIN_PICTURES} or more: one to learn from and "
                "one to test with"
            )
    return examples
