"""Logistic regression on what a tagger sees of a picture: its embedding where it gives one, else its scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import FormatError, InputError
from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from ..core.tensors import read_tensors, write_tensors
from ..dataset.table import Dataset
from .classifier import ClassifierParams, Examples, Verdict, label_weights, split, verdict, write_info
from .pipeline import PictureScorer, Scored, score_dataset
from .runner import Tagger
from .scores import Vocabulary

WEIGHTS_FILE = "classifier.safetensors"
MAX_PICTURES = 20_000
"""More are not learnt from: a linear model is fitted well long before."""
_MAX_ITERATIONS = 300
_CHECK_EVERY = 5
_AT_ONCE = 4096
"""Pictures whose scores are spread out at once: all of a large set's would take gigabytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearModel:
    """softmax((x - mean) / deviation @ weight + bias) over some columns of the features.

    Attributes:
        columns: Features in use, int64 [columns].
        mean: float32 [columns].
        deviation: float32 [columns].
        weight: float32 [labels, columns].
        bias: float32 [labels].
    """

    columns: NDArray[np.int64]
    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Probability of each label, float32 [pictures, labels], from all features [pictures, features]."""
        x = (features[:, self.columns] - self.mean) / self.deviation
        logits = x.astype(np.float64) @ self.weight.T + self.bias
        logits -= logits.max(axis=1, keepdims=True)
        powers = np.exp(logits)
        found: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
        return found


class Embedder:
    """A tagger seen by its embedding; a scorer of features for the pipeline and the store."""

    def __init__(self, tagger: Tagger, width: int) -> None:
        """Takes a tagger with an embedding of so many features."""
        self._tagger = tagger
        self.name = f"{tagger.name} (embedding)"
        self.identity = f"{tagger.identity}:embedding"
        self.preparation = tagger.preparation
        self.on_cpu, self.batch_size, self.is_batched = tagger.on_cpu, tagger.batch_size, tagger.is_batched
        names = tuple(str(number) for number in range(width))
        self.scored = Vocabulary(names=names, categories=("feature",) * width, argmax=(), bounded=False)

    def decode(self, path: Path, data: bytes | None = None) -> Image.Image:
        """The picture of a file."""
        return self._tagger.decode(path, data)

    def prepared(self, image: Image.Image) -> NDArray[np.float32]:
        """A picture as input."""
        return self._tagger.prepared(image)

    def score_batch(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Features of prepared pictures."""
        return self._tagger.score_and_embed(pictures)[1]


def feature_scorer(tagger: Tagger) -> PictureScorer:
    """What gives a tagger's features: the embedding where there is one, else the scores of its tags."""
    if not tagger.has_embedding:
        return tagger
    blank = tagger.prepared(Image.new("RGB", (8, 8)))
    return Embedder(tagger, tagger.score_and_embed([blank])[1].shape[1])


def fit(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_labels: int,
    *,
    l2: float,
    balanced: bool = True,
    progress: Progress | None = None,
) -> LinearModel:
    """Fits a multinomial logistic regression by L-BFGS; the loss is convex, so there is one best model.

    Args:
        features: float32 [pictures, features]; those that are the same everywhere are left out.
        labels: int64 [pictures].
        num_labels: Number of labels.
        l2: Factor on half the sum of the squared weights.
        balanced: Weigh labels alike.
        progress: Checked now and then.

    Raises:
        InputError: All features are the same on all pictures.
    """
    progress = progress or SilentProgress()
    deviation = features.std(axis=0)
    columns = np.flatnonzero(deviation > 1e-6)
    if not len(columns):
        raise InputError("the tagger says the same of every picture; choose another tagger or other pictures")
    mean, deviation = features[:, columns].mean(axis=0), deviation[columns]
    with torch.inference_mode(False), torch.enable_grad():
        x = torch.from_numpy(((features[:, columns] - mean) / deviation).astype(np.float32)).clone()
        y = torch.from_numpy(labels)
        weights = torch.from_numpy(label_weights(labels, num_labels, balanced=balanced))
        weight = torch.zeros(num_labels, len(columns), requires_grad=True)
        bias = torch.zeros(num_labels, requires_grad=True)
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=_CHECK_EVERY, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimizer.zero_grad()
            value = torch.nn.functional.cross_entropy(x @ weight.T + bias, y, weight=weights)
            value = value + 0.5 * l2 * weight.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        before = float("inf")
        for done in range(0, _MAX_ITERATIONS, _CHECK_EVERY):
            progress.check()
            now = optimizer.step(loss).detach().item()  # type: ignore[no-untyped-call]
            if before - now < 1e-7 and done:
                break
            before = now
    return LinearModel(
        columns=columns.astype(np.int64),
        mean=mean.astype(np.float32),
        deviation=deviation.astype(np.float32),
        weight=weight.detach().numpy().copy(),
        bias=bias.detach().numpy().copy(),
    )


def train_linear(
    dataset: Dataset,
    examples: Examples,
    tagger: Tagger,
    index: Index,
    params: ClassifierParams,
    folder: Path,
    *,
    tagger_name: str,
    progress: Progress | None = None,
) -> tuple[Verdict, Scored]:
    """Scores the pictures (or takes them from the store), fits, tests on the held-out ones and saves.

    Args:
        dataset: The data set.
        examples: Its labelled pictures; those that cannot be read are left out.
        tagger: The tagger, opened.
        index: Where its scores are remembered.
        params: The settings.
        folder: Where the classifier is written.
        tagger_name: Under which name the tagger is found again.
        progress: Told how many pictures are done; may cancel.

    Returns:
        How good it is, and where the features came from.

    Raises:
        InputError: A label has too few pictures that can be read.
        StorageError: No space or no permission.
    """
    scorer = feature_scorer(tagger)
    scored = score_dataset(dataset, scorer, index, rows=examples.rows, progress=progress)
    good = ~np.isin(examples.rows, np.array(sorted(scored.failed), dtype=np.int64))
    readable = Examples(
        rows=examples.rows[good], labels=examples.labels[good], names=examples.names, left_out=examples.left_out
    )
    if int(readable.counts().min()) < 2:
        name = readable.names[int(readable.counts().argmin())]
        raise InputError(f"of the label {name!r} fewer than two pictures can be read; repair or add some")
    scores, width = scored.scores.take(np.flatnonzero(good)), len(scored.vocabulary)
    learn, test = split(readable, held_out=params.held_out, seed=params.seed)
    if len(learn) > MAX_PICTURES:
        learn = np.sort(np.random.default_rng(params.seed).permutation(learn)[:MAX_PICTURES])
    model = fit(
        scores.take(learn).dense(width),
        readable.labels[learn],
        len(readable.names),
        l2=params.l2,
        balanced=params.balanced,
        progress=progress,
    )
    parts = [scores.take(test[first : first + _AT_ONCE]) for first in range(0, len(test), _AT_ONCE)]
    said = np.concatenate([model.probabilities(part.dense(width)).argmax(axis=1) for part in parts])
    found = verdict(readable.names, readable.labels[test], said.astype(np.int64))
    arrays = {
        "columns": model.columns,
        "mean": model.mean,
        "deviation": model.deviation,
        "weight": model.weight,
        "bias": model.bias,
    }
    write_tensors(folder / WEIGHTS_FILE, {name: torch.from_numpy(array) for name, array in arrays.items()})
    facts = {"tagger": tagger_name, "tagger_identity": scorer.identity, "features": len(scored.vocabulary)}
    write_info(folder, method=params.method, examples=readable, found=found, params=params, facts=facts)
    return found, scored


def read_linear(folder: Path, num_labels: int) -> LinearModel:
    """The model of a classifier's folder.

    Raises:
        FormatError: The file is damaged or belongs to another classifier.
    """
    tensors = read_tensors(folder / WEIGHTS_FILE)
    shapes: Mapping[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    width = shapes.get("columns", (0,))[0]
    wanted = {"columns": (width,), "mean": (width,), "deviation": (width,), "weight": (num_labels, width)}
    if shapes != {**wanted, "bias": (num_labels,)}:
        raise FormatError(f"{WEIGHTS_FILE} in {folder.name} does not fit its {num_labels} labels; train it anew")
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    return LinearModel(**arrays)


def predict_linear(
    dataset: Dataset,
    model: LinearModel,
    scorer: PictureScorer,
    index: Index,
    *,
    rows: NDArray[np.int64] | None = None,
    progress: Progress | None = None,
) -> tuple[NDArray[np.float32], Scored]:
    """Probability of each label, float32 [pictures, labels]; nan where a picture could not be read.

    Args:
        dataset: The data set.
        model: The classifier.
        scorer: From `feature_scorer`, of the tagger it was trained with.
        index: Where scores are remembered.
        rows: Which pictures; by default all.
        progress: Told how many are done; may cancel.
    """
    scored = score_dataset(dataset, scorer, index, rows=rows, progress=progress)
    result = np.full((len(scored.rows), len(model.bias)), np.nan, dtype=np.float32)
    for first in range(0, len(scored.rows), _AT_ONCE):
        part = scored.scores.part(first, min(first + _AT_ONCE, len(scored.rows)))
        result[first : first + _AT_ONCE] = model.probabilities(part.dense(len(scored.vocabulary)))
    result[np.isin(scored.rows, np.array(sorted(scored.failed), dtype=np.int64))] = np.nan
    return result, scored
