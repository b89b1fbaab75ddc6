"""Running a tagger over pictures: one runner for every adapter in ``taggers/``."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import FormatError
from ..core.files import known_sha256
from ..core.onnx import OnnxSession, OnnxValue, open_session
from ..core.progress import Progress, SilentProgress
from ..dataset.images import load_image
from .adapters import AUTO, check_table, find_files, find_graph, layouts_of
from .picking import PickParams, Tag, pick_rows, tags_of, tags_text
from .prepare import PREPARE_VERSION, prepare
from .scores import Vocabulary, joined, sparse_of
from .tables import TagTable, read_tags
from .taggers._spec import TaggerSpec

__all__ = ["PickParams", "Scores", "Tag", "Tagger", "open_tagger", "pick", "tags_text"]

BATCH = 8
"""Pictures per call where the graph takes any number."""
_OPEN: dict[tuple[str | int | None, ...], "Tagger"] = {}
_FREE_SIZE = 0
_ALLOWANCE = 1e-3
_EMBEDDING_WORDS = ("embed", "feature", "pool")


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a tagger says of one picture.

    Attributes:
        vocabulary: Its tags.
        values: Score of each, 0 to 1, float32.
    """

    vocabulary: Vocabulary
    values: NDArray[np.float32]

    @property
    def names(self) -> tuple[str, ...]:
        """Tags as in the table."""
        return self.vocabulary.names

    @property
    def categories(self) -> tuple[str, ...]:
        """Category word of each."""
        return self.vocabulary.categories

    @property
    def thresholds(self) -> Mapping[str, float]:
        """The model's own threshold per category."""
        return self.vocabulary.thresholds


class Tagger:
    """An opened tagger; see `open_tagger`."""

    def __init__(
        self, *, name: str, spec: TaggerSpec, session: OnnxSession, table: TagTable, files: Sequence[Path] = ()
    ) -> None:
        """Check that graph, table and adapter belong together.

        Args:
            name: Its title in messages and by which its thresholds are known.
            spec: The adapter.
            session: The graph.
            table: Its tags.
            files: The files it was read from; with the adapter they make its identity.

        Raises:
            FormatError: They do not; the message says which file is wrong.
        """
        self.name = name
        self.spec = spec
        self._session = session
        self._files = tuple(files)
        self._input = session.inputs[0]
        self._batch_size, self.height_px, self.width_px = _input_size(self._input, spec, name)
        self._output = _score_output(session, spec, len(table.names), name)
        self._embedding = _embedding_output(session, self._output)
        key = name.replace("_", "-").lower()
        known = (thresholds for part, thresholds in spec.thresholds.items() if part.replace("_", "-") in key)
        self.thresholds: Mapping[str, float] = {**next(known, spec.default_thresholds), **table.thresholds}
        self.scored = Vocabulary(
            names=table.names,
            categories=table.categories,
            thresholds=self.thresholds,
            tag_thresholds=table.tag_thresholds,
            argmax=spec.argmax,
        )
        self._sigmoid = self._needs_sigmoid()

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of all tags but ratings, as in the table."""
        pairs = zip(self.scored.names, self.scored.categories, strict=True)
        return tuple(name for name, category in pairs if category != "rating")

    @property
    def providers(self) -> tuple[str, ...]:
        """What really computes, first choice first, e.g. ``CPUExecutionProvider``."""
        return self._session.providers

    @property
    def on_cpu(self) -> bool:
        """Whether the CPU alone computes."""
        return self._session.on_cpu

    @property
    def is_batched(self) -> bool:
        """Whether the graph takes more than one picture at a time."""
        return self._batch_size == _FREE_SIZE

    @property
    def batch_size(self) -> int:
        """Pictures the graph takes at a time: its fixed number, or `BATCH`."""
        return BATCH if self.is_batched else self._batch_size

    @property
    def has_embedding(self) -> bool:
        """Whether a second output holds an embedding of the picture."""
        return self._embedding is not None

    @property
    def least_px(self) -> int:
        """Side down to which a larger JPEG may be decoded: twice what the graph takes."""
        return 2 * max(self.height_px, self.width_px)

    @functools.cached_property
    def identity(self) -> str:
        """Name and hash of graph, table and what the adapter makes of their numbers; stored scores are kept by it."""
        digest = hashlib.blake2b(digest_size=8)
        for path in self._files:
            digest.update(bytes.fromhex(known_sha256(path)))
        facts = (self._output, self._sigmoid, self.scored.names, self.scored.categories)
        digest.update(repr(facts).encode("utf-8", "surrogatepass"))
        return f"{self.name}-{digest.hexdigest()}"

    @functools.cached_property
    def preparation(self) -> str:
        """Hash of everything that decides how a file reaches the graph."""
        facts = (PREPARE_VERSION, self.least_px, self.height_px, self.width_px, *self.spec.preparation())
        return hashlib.blake2b(repr(facts).encode("utf-8"), digest_size=6).hexdigest()

    def describe(self) -> str:
        """What runs where, for a report: kind, size, batches, provider, and why not the GPU where that is so."""
        batches = "any batch" if self.is_batched else f"batches of {self._batch_size}"
        line = (
            f"{self.name}: {self.spec.name}, {len(self.scored)} tags, {self.width_px} x {self.height_px} px, "
            f"{batches}, on {', '.join(self.providers)}"
        )
        return f"{line}\n! {self._session.fallback}" if self._session.fallback else line

    def tag_image(self, image: Image.Image) -> Scores:
        """Score one picture.

        Raises:
            FormatError: The graph failed or gave scores that are no probabilities.
        """
        return self._as_scores(self.score_batch([self.prepared(image)]))[0]

    def tag_images(
        self, images: Iterable[Image.Image], progress: Progress | None = None, *, total: int | None = None
    ) -> Iterator[Scores]:
        """Score pictures one after another, several at a time where the graph allows; the result is the same.

        Args:
            images: The pictures; read as needed.
            progress: Checked between calls and told how many are done.
            total: How many pictures there are, where ``images`` cannot say it.

        Yields:
            The scores of each picture, in order.
        """
        progress = progress or SilentProgress()
        if total is None:
            total = len(images) if isinstance(images, (list, tuple)) else 0
        done = 0
        waiting = iter(images)
        while group := list(itertools.islice(waiting, self.batch_size)):
            progress.check()
            yield from self._as_scores(self.score_batch([self.prepared(image) for image in group]))
            done += len(group)
            progress.update(done, max(total, done), f"{done} pictures tagged")

    def decode(self, path: Path, data: bytes | None = None) -> Image.Image:
        """A picture file as this tagger sees it; a large JPEG at a fraction of its size.

        Args:
            path: The file.
            data: Its bytes where they were read already.

        Raises:
            BadPicture: It cannot be used.
        """
        return load_image(path, least_px=0 if self.spec.pad == "none" else self.least_px, data=data)

    def prepared(self, image: Image.Image) -> NDArray[np.float32]:
        """A picture as the graph's input."""
        return prepare(image, self.spec, height_px=self.height_px, width_px=self.width_px)

    def score_batch(self, pictures: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Scores of prepared pictures, float32 [pictures, tags]; may be called by several threads at once.

        Raises:
            FormatError: The graph failed or gave scores that are no probabilities.
        """
        return self.score_and_embed(pictures)[0]

    def score_and_embed(
        self, pictures: Sequence[NDArray[np.float32]]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Scores [pictures, tags] and embeddings [pictures, features] (no feature where the graph gives none).

        Raises:
            FormatError: The graph failed or gave scores that are no probabilities.
        """
        scores, embeddings = [], []
        for start in range(0, len(pictures), size := len(pictures) if self.is_batched else self._batch_size):
            group = list(pictures[start : start + size])
            full = group + [group[-1]] * (size - len(group))  # a graph of fixed batch size takes only full batches
            batch = full[0][np.newaxis] if len(full) == 1 else np.stack(full)
            outputs = self._session.run({self._input.name: batch})
            scores.append(np.asarray(outputs[self._output], dtype=np.float32).reshape(size, -1)[: len(group)])
            if self._embedding is not None:
                found = np.asarray(outputs[self._embedding], dtype=np.float32).reshape(size, -1)
                embeddings.append(found[: len(group)])
        values = self._checked(np.concatenate(scores))
        return values, np.concatenate(embeddings) if embeddings else np.zeros((len(values), 0), dtype=np.float32)

    def _as_scores(self, values: NDArray[np.float32]) -> list[Scores]:
        return [Scores(vocabulary=self.scored, values=row) for row in values]

    def _needs_sigmoid(self) -> bool:
        """Whether the outputs are logits: as the adapter or the output's name says, else by what a picture gives."""
        if self.spec.sigmoid is not None:
            return self.spec.sigmoid
        name = self._session.outputs[self._output].name.lower()
        if "logit" in name:
            return True
        if "sigmoid" in name or "prob" in name:
            return False
        noise = np.random.default_rng(0).integers(0, 256, (self.height_px, self.width_px, 3), dtype=np.uint8)
        pictures = [self.prepared(Image.fromarray(noise))] * (1 if self.is_batched else self._batch_size)
        values = np.asarray(self._session.run({self._input.name: np.stack(pictures)})[self._output], dtype=np.float32)
        return bool(values.size) and not _are_probabilities(values)

    def _checked(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        if values.shape[1] != len(self.scored):
            raise _wrong_width(self.name, values.shape[1], len(self.scored))
        if self._sigmoid:
            values = (1.0 / (1.0 + np.exp(-values.astype(np.float64)))).astype(np.float32)
        if not _are_probabilities(values):
            raise FormatError(
                f"The graph of {self.name} gives scores outside 0..1, so it is not a {self.spec.name} tagger; "
                "choose the file that was published for this use."
            )
        return np.clip(values, np.float32(0.0), np.float32(1.0))


def open_tagger(path: Path, *, adapter: str = AUTO, threads: int | None = None) -> Tagger:
    """Open a tagger from its folder or its graph; an opened one is kept and given again.

    A graph ``NAME.onnx`` goes with ``NAME.csv`` beside it, else with the tag table of its kind in the same folder. The
    adapter is found by the table's name, the names of file and folder and the graph's own layout, or is described by
    ``atelier_tagger.json``.

    Args:
        path: The folder with the files, or the ``.onnx`` file.
        adapter: Which file of ``taggers/`` describes it; ``auto`` finds out.
        threads: CPU threads for one call; None leaves the choice to onnxruntime.

    Raises:
        StorageError: A file is missing; the message says which belongs where.
        FormatError: The files do not belong together.
        MissingLibraryError: onnxruntime is not installed.
        UnknownNameError: No such adapter.
    """
    graph = find_graph(path)
    beside = sorted(file for file in graph.parent.iterdir() if file.suffix.lower() in (".csv", ".json", ".txt"))
    key = (
        adapter,
        threads,
        str(graph),
        *_stamp(graph),
        *(fact for file in beside for fact in (file.name, *_stamp(file))),
    )
    if key not in _OPEN:
        check_table(graph, adapter=adapter)
        _OPEN.clear()  # one model at a time: a large tagger holds more than a gigabyte
        session = open_session(graph, threads=threads)
        files = find_files(path, session.inputs[0].shape, graph, adapter=adapter)
        table = read_tags(files.table, files.spec)
        usual = [name for name in files.spec.model_names if "*" not in name]
        name = graph.parent.name if graph.name in usual else graph.stem
        _OPEN[key] = Tagger(name=name, spec=files.spec, session=session, table=table, files=(graph, files.table))
    return _OPEN[key]


def pick(scores: Scores, params: PickParams) -> list[Tag]:
    """Keep one picture's tags above their thresholds, as `picking.pick_rows` does for many."""
    picked = pick_rows(joined([sparse_of(scores.values, scores.vocabulary)]), scores.vocabulary, params)
    return tags_of(picked, 0, scores.vocabulary, params)


def _are_probabilities(values: NDArray[Any]) -> bool:
    low, high = values.min(initial=0.0), values.max(initial=0.0)
    return bool(np.isfinite(values).all()) and low >= -_ALLOWANCE and high <= 1.0 + _ALLOWANCE


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _wrong_width(name: str, width: int, rows: int) -> FormatError:
    return FormatError(
        f"The graph of {name} scores {width} tags but its table has {rows} rows; take both files from the same model."
    )


def _score_output(session: OnnxSession, spec: TaggerSpec, rows: int, name: str) -> int:
    """Which output holds the scores: by its name, else by its place; but never one of another width than the table.

    Raises:
        FormatError: No output is as wide as the table.
    """
    outputs = session.outputs
    named = [n for n, node in enumerate(outputs) if spec.output_name and spec.output_name in node.name.lower()]
    chosen = named[0] if named else min(spec.output, len(outputs) - 1)
    width = outputs[chosen].shape[-1] if outputs[chosen].shape else None
    if width in (None, rows):
        return chosen
    fitting = [n for n, node in enumerate(outputs) if node.shape and node.shape[-1] == rows]
    if not fitting:
        raise _wrong_width(name, width or 0, rows)
    return fitting[0]


def _embedding_output(session: OnnxSession, scores: int) -> int | None:
    """The output that holds an embedding: one of two axes and another width than the scores, by its name if several."""
    outputs = session.outputs
    found = [
        n
        for n, node in enumerate(outputs)
        if n != scores and len(node.shape) == 2 and node.shape[-1] not in (None, outputs[scores].shape[-1])
    ]
    named = [n for n in found if any(word in outputs[n].name.lower() for word in _EMBEDDING_WORDS)]
    return next(iter(named or found), None)


def _input_size(node: OnnxValue, spec: TaggerSpec, name: str) -> tuple[int, int, int]:
    """Return batch size (0 where any), height and width of the graph's input.

    Raises:
        FormatError: It is not a picture in the adapter's layout.
    """
    if spec.layout not in layouts_of(node.shape) or node.dtype != "tensor(float)":
        raise FormatError(
            f"The graph of {name} takes {node.dtype} of shape {list(node.shape)}; a {spec.name} tagger takes "
            f"tensor(float) in the order {spec.layout} with 3 channels."
        )
    axes = dict(zip(spec.layout, node.shape, strict=True))
    return axes["N"] or _FREE_SIZE, axes["H"] or spec.size_px, axes["W"] or spec.size_px
