"""Running a tagger over pictures: one runner for every adapter in ``taggers/``."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.discovery import discover
from ..core.errors import FormatError, InputError, StorageError, unknown_name
from ..core.onnx import OnnxSession, OnnxValue, open_session
from ..core.params import Params, param
from ..core.progress import Progress, SilentProgress
from . import taggers
from .labels import TagTable, compared, read_tags, written
from .prepare import prepare
from .taggers._spec import TaggerSpec

BATCH = 8
"""Pictures per call where the graph takes any number."""
_OPEN: dict[tuple[str | int, ...], "Tagger"] = {}
_FREE_SIZE = 0


@dataclass(frozen=True, kw_only=True)
class Scores:
    """What a tagger says of one picture.

    Attributes:
        names: Tags as in its table.
        categories: Category word of each.
        values: Score of each, 0 to 1, float32.
        thresholds: The model's own threshold per category.
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    values: NDArray[np.float32]
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Tag:
    """One tag that was picked: its name as written, its category and its score."""

    name: str
    category: str
    score: float


@dataclass(frozen=True, kw_only=True)
class PickParams(Params):
    """Which of the scored tags are kept and how they are written."""

    general_threshold: float = param(
        0.0, doc="Lowest score of a general tag; 0 takes the model's own threshold", minimum=0.0, maximum=1.0, step=0.01
    )
    character_threshold: float = param(
        0.0,
        doc="Lowest score of a character tag; 0 takes the model's own threshold",
        minimum=0.0,
        maximum=1.0,
        step=0.01,
    )
    include_rating: bool = param(False, doc="Put the most likely rating first")
    characters_first: bool = param(True, doc="Put character tags before general ones", advanced=True)
    underscores_to_spaces: bool = param(True, doc="Write long_hair as long hair; faces such as ^_^ stay as they are")
    escape_parentheses: bool = param(
        False, doc="Write \\( and \\) for prompts; leave off for training captions", advanced=True
    )
    exclude: str = param(
        "", doc="Tags never to keep, separated by commas; spaces and underscores are the same", multiline=True
    )
    max_tags: int = param(0, doc="Keep at most so many tags, the surest; 0 for all", minimum=0, maximum=10_000)


class Tagger:
    """An opened tagger; see `open_tagger`."""

    def __init__(self, *, name: str, spec: TaggerSpec, session: OnnxSession, table: TagTable) -> None:
        """Check that graph, table and adapter belong together.

        Raises:
            FormatError: They do not; the message says which file is wrong.
        """
        self.name = name
        self.spec = spec
        self._session = session
        self._table = table
        self._input = session.inputs[0]
        self._batch_size, self.height_px, self.width_px = _input_size(self._input, spec, name)
        if spec.output >= len(session.outputs):
            raise FormatError(
                f"The graph of {name} has {len(session.outputs)} outputs; {spec.name} reads number {spec.output}."
            )
        width = session.outputs[spec.output].shape[-1] if session.outputs[spec.output].shape else None
        if width is not None and width != len(table.names):
            raise FormatError(
                f"The graph of {name} scores {width} tags but its table has {len(table.names)} rows; "
                "take both files from the same model."
            )
        key = name.replace("_", "-").lower()
        known = (thresholds for part, thresholds in spec.thresholds.items() if part in key)
        self.thresholds: Mapping[str, float] = next(known, spec.default_thresholds)

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Names of all tags but ratings, as in the table."""
        pairs = zip(self._table.names, self._table.categories, strict=True)
        return tuple(name for name, category in pairs if category != "rating")

    @property
    def providers(self) -> tuple[str, ...]:
        """What really computes, first choice first, e.g. ``CPUExecutionProvider``."""
        return self._session.providers

    @property
    def is_batched(self) -> bool:
        """Whether the graph takes more than one picture at a time."""
        return self._batch_size == _FREE_SIZE

    def tag_image(self, image: Image.Image) -> Scores:
        """Score one picture.

        Raises:
            FormatError: The graph failed or gave scores that are no probabilities.
        """
        return self._scores([self._prepared(image)])[0]

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
        size = BATCH if self.is_batched else self._batch_size
        if total is None:
            total = len(images) if isinstance(images, (list, tuple)) else 0
        done = 0
        waiting = iter(images)
        while group := list(itertools.islice(waiting, size)):
            progress.check()
            yield from self._scores([self._prepared(image) for image in group])
            done += len(group)
            progress.update(done, max(total, done), f"{done} pictures tagged")

    def _prepared(self, image: Image.Image) -> NDArray[np.float32]:
        return prepare(image, self.spec, height_px=self.height_px, width_px=self.width_px)

    def _scores(self, pictures: list[NDArray[np.float32]]) -> list[Scores]:
        size = len(pictures) if self.is_batched else self._batch_size
        rows: list[NDArray[Any]] = []
        for start in range(0, len(pictures), size):
            group = pictures[start : start + size]
            full = group + [group[-1]] * (size - len(group))  # a graph of fixed batch size takes only full batches
            output = self._session.run({self._input.name: np.stack(full)})[self.spec.output]
            rows += list(np.asarray(output, dtype=np.float32).reshape(size, -1)[: len(group)])
        return [self._checked(row) for row in rows]

    def _checked(self, values: NDArray[Any]) -> Scores:
        if values.shape != (len(self._table.names),):
            raise FormatError(
                f"The graph of {self.name} gave {values.size} scores but its table has {len(self._table.names)} rows; "
                "take both files from the same model."
            )
        if self.spec.sigmoid:
            values = (1.0 / (1.0 + np.exp(-values.astype(np.float64)))).astype(np.float32)
        if not np.isfinite(values).all() or values.min(initial=0.0) < -1e-3 or values.max(initial=0.0) > 1.001:
            raise FormatError(
                f"The graph of {self.name} gives scores outside 0..1, so it is not a {self.spec.name} tagger; "
                "choose the file that was published for this use."
            )
        table = self._table
        return Scores(names=table.names, categories=table.categories, values=values, thresholds=self.thresholds)


def open_tagger(path: Path, *, adapter: str = "wd14", threads: int | None = None) -> Tagger:
    """Open a tagger from its folder or its graph; an opened one is kept and given again.

    A graph ``NAME.onnx`` goes with ``NAME.csv`` beside it, else with ``selected_tags.csv`` in the same folder.

    Args:
        path: The folder with the files, or the ``.onnx`` file.
        adapter: Which file of ``taggers/`` describes it.
        threads: CPU threads; None leaves the choice to onnxruntime.

    Raises:
        StorageError: A file is missing; the message says which belongs where.
        FormatError: The files do not belong together.
        MissingLibraryError: onnxruntime is not installed.
        UnknownNameError: No such adapter.
    """
    specs: dict[str, TaggerSpec] = discover(taggers.__name__, "TAGGER")
    if adapter not in specs:
        raise unknown_name("tagger adapter", adapter, specs)
    spec = specs[adapter]
    graph = _graph_path(path, spec)
    table = _table_path(graph, spec)
    key = (str(graph), *_stamp(graph), str(table), *_stamp(table), adapter)
    if key not in _OPEN:
        tags = read_tags(table, spec)
        session = open_session(graph, threads=threads)
        name = graph.parent.name if graph.name in spec.model_names else graph.stem
        _OPEN.clear()  # one model at a time: a large tagger holds more than a gigabyte
        _OPEN[key] = Tagger(name=name, spec=spec, session=session, table=tags)
    return _OPEN[key]


def pick(scores: Scores, params: PickParams) -> list[Tag]:
    """Keep the tags above their thresholds, surest first, ratings and characters in front.

    A category without a threshold of its own takes that of general tags.
    """
    general = params.general_threshold or scores.thresholds.get("general", 0.35)
    limits = {
        **scores.thresholds,
        "general": general,
        "character": params.character_threshold or scores.thresholds.get("character", 0.85),
    }
    excluded = {compared(name) for name in params.exclude.replace("\n", ",").split(",") if name.strip()}
    picked: list[Tag] = []
    ratings: list[Tag] = []
    for index in np.argsort(-scores.values, kind="stable"):
        name, category, score = scores.names[index], scores.categories[index], float(scores.values[index])
        if not name or compared(name) in excluded:
            continue
        tag = Tag(
            name=written(
                name,
                underscores_to_spaces=params.underscores_to_spaces,
                escape_parentheses=params.escape_parentheses,
            ),
            category=category,
            score=score,
        )
        if category == "rating":
            ratings.append(tag)
        elif score >= limits.get(category, general):
            picked.append(tag)
    picked = picked[: params.max_tags] if params.max_tags else picked
    if params.characters_first:
        picked.sort(key=lambda tag: tag.category != "character")
    return [*(ratings[:1] if params.include_rating else []), *picked]


def tags_text(tags: Iterable[Tag], separator: str = ", ") -> str:
    """Return tags as one line."""
    return separator.join(tag.name for tag in tags)


def _stamp(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns


def _graph_path(path: Path, spec: TaggerSpec) -> Path:
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise StorageError(f"The tagger's graph {path.name} is not in {path.parent}; {_wanted(path.parent, spec)}")
        return path
    found = [path / name for name in spec.model_names if (path / name).is_file()]
    found = found or (sorted(path.glob("*.onnx")) if path.is_dir() else [])
    if not found:
        raise StorageError(f"There is no tagger in {path}; {_wanted(path, spec)}")
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{path.name} holds {len(found)} graphs ({names}); choose one of them by its file name.")
    return found[0]


def _table_path(graph: Path, spec: TaggerSpec) -> Path:
    candidates = [graph.with_suffix(".csv"), *(graph.parent / name for name in spec.table_names)]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise StorageError(f"The tag table of {graph.name} is not in {graph.parent}; {_wanted(graph.parent, spec)}")


def _wanted(folder: Path, spec: TaggerSpec) -> str:
    return (
        f"put {spec.model_names[0]} and {spec.table_names[0]} of the same {spec.name} model "
        f"(from its page on the model hub) into {folder}."
    )


def _input_size(node: OnnxValue, spec: TaggerSpec, name: str) -> tuple[int, int, int]:
    """Return batch size (0 where any), height and width of the graph's input.

    Raises:
        FormatError: It is not a picture in the adapter's layout.
    """
    axes = dict(zip(spec.layout, node.shape, strict=False))
    if len(node.shape) != 4 or axes["C"] not in (3, None) or node.dtype != "tensor(float)":
        raise FormatError(
            f"The graph of {name} takes {node.dtype} of shape {list(node.shape)}; a {spec.name} tagger takes "
            f"tensor(float) in the order {spec.layout} with 3 channels."
        )
    return axes["N"] or _FREE_SIZE, axes["H"] or spec.size_px, axes["W"] or spec.size_px
