"""Finding a tagger's files and the adapter that fits them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..core.discovery import discover
from ..core.errors import FormatError, InputError, StorageError, unknown_name
from . import taggers
from .described import DESCRIPTION_FILE, read_description, with_stages
from .tables import in_folder
from .taggers._spec import TaggerSpec

AUTO = "auto"
"""Find the adapter by the files beside the graph, the names and the graph's own layout."""


@dataclass(frozen=True, kw_only=True)
class TaggerFiles:
    """What belongs together: a graph, its tag table and, where there is one, its description."""

    graph: Path
    table: Path
    spec: TaggerSpec


def adapters() -> dict[str, TaggerSpec]:
    """Every adapter of ``taggers/`` by its file's name."""
    return discover(taggers.__name__, "TAGGER")


def find_graph(path: Path) -> Path:
    """The graph of a tagger given by its folder or by the ``.onnx`` file itself.

    Raises:
        StorageError: There is none; the message says which files go where.
        InputError: There are several and none has a usual name.
    """
    if path.suffix.lower() == ".onnx":
        if not path.is_file():
            raise StorageError(f"The tagger's graph {path.name} is not in {path.parent}; {files_wanted(path.parent)}")
        return path
    graphs = in_folder(path, ("*.onnx",))
    if not graphs:
        raise StorageError(f"There is no tagger in {path}; {files_wanted(path)}")
    usual = [name for spec in adapters().values() for name in spec.model_names if "*" not in name]
    known = [graph for graph in in_folder(path, usual) if graph in graphs]
    if len(graphs) > 1 and not known:
        names = ", ".join(graph.name for graph in graphs)
        raise InputError(f"{path.name} holds {len(graphs)} graphs ({names}); choose one of them by its file name.")
    return known[0] if known else graphs[0]


def find_files(path: Path, shape: tuple[int | None, ...], graph: Path, *, adapter: str = AUTO) -> TaggerFiles:
    """The adapter and the tag table of a graph.

    Args:
        path: As the tagger was named, its folder or file.
        shape: The graph's input; tells channels first from channels last.
        graph: The graph.
        adapter: Name of an adapter, or `AUTO`.

    Raises:
        StorageError: The tag table is missing; the message says which file goes where.
        FormatError: No adapter fits the graph, or the description is wrong.
        UnknownNameError: No such adapter.
    """
    known = adapters()
    if adapter != AUTO:
        if adapter not in known:
            raise unknown_name("tagger adapter", adapter, [AUTO, *known])
        table = _table_of(graph, known[adapter])
        return TaggerFiles(graph=graph, table=table, spec=with_stages(known[adapter], graph.parent))
    description = graph.with_suffix(".json")
    for candidate in (graph.parent / DESCRIPTION_FILE, description):
        if candidate.is_file() and (candidate.name == DESCRIPTION_FILE or _describes(candidate)):
            spec = read_description(candidate)
            return TaggerFiles(graph=graph, table=_table_of(graph, spec), spec=spec)
    return _chosen(graph, shape, known)


def check_table(graph: Path, *, adapter: str = AUTO) -> None:
    """Says what is missing before a graph of a gigabyte is loaded for nothing.

    Raises:
        StorageError: No tag table lies beside the graph; the message says which file goes where.
    """
    if adapter != AUTO or any(path.is_file() for path in (graph.parent / DESCRIPTION_FILE, graph.with_suffix(".json"))):
        return
    if all(_table_or_none(graph, spec) is None for spec in adapters().values()):
        raise StorageError(f"The tag table of {graph.name} is not in {graph.parent}; {files_wanted(graph.parent)}")


def files_wanted(folder: Path | str, name: str = "") -> str:
    """Which files go into a tagger's folder, as the end of a message.

    Args:
        folder: Where they go, as a path or in words.
        name: The tagger's name, by which its kind may be known.
    """
    specs = adapters()
    guess = next((spec for spec in specs.values() if _named(spec, name or Path(folder).name)), specs["wd14"])
    kinds = "; ".join(
        f"{spec.table_names[0]} for {spec.name}" for spec in specs.values() if spec is not guess
    )  # the graph is model.onnx nearly everywhere
    return (
        f"put {guess.model_names[0]} and {guess.table_names[0]} of the same {guess.name} model "
        f"(from its page on the model hub) into {folder}. Other kinds have another table: {kinds}; any other tagger "
        f"is described by {DESCRIPTION_FILE}."
    )


def _chosen(graph: Path, shape: tuple[int | None, ...], known: Mapping[str, TaggerSpec]) -> TaggerFiles:
    layouts = layouts_of(shape)
    with_table = [(spec, table) for spec in known.values() if (table := _table_or_none(graph, spec)) is not None]
    if not with_table:
        raise StorageError(f"The tag table of {graph.name} is not in {graph.parent}; {files_wanted(graph.parent)}")
    name = f"{graph.parent.name}/{graph.name}"
    with_table.sort(key=lambda pair: 0 if _named(pair[0], name) else 1 if not pair[0].hints else 2)
    fitting = [(spec, table) for spec, table in with_table if spec.layout in layouts]
    if not fitting:
        spec, table = with_table[0]
        raise FormatError(
            f"The graph {graph.name} takes pictures of shape {list(shape)}, but a {spec.name} tagger (its table "
            f"{table.name} lies beside it) takes them in the order {spec.layout} with 3 channels; take the graph that "
            f"belongs to the table, or describe it in {DESCRIPTION_FILE}."
        )
    spec, table = fitting[0]
    return TaggerFiles(graph=graph, table=table, spec=with_stages(spec, graph.parent))


def layouts_of(shape: tuple[int | None, ...]) -> tuple[str, ...]:
    """The layouts an input's shape can have: 3 in second place is channels first, in last place channels last."""
    if len(shape) != 4:
        return ()
    channels_first, channels_last = shape[1], shape[3]
    if channels_first == 3 and channels_last != 3:
        return ("NCHW",)
    if channels_last == 3 and channels_first != 3:
        return ("NHWC",)
    free = {None, 3}
    return tuple(name for name, size in (("NHWC", channels_last), ("NCHW", channels_first)) if size in free)


def _named(spec: TaggerSpec, name: str) -> bool:
    plain = name.replace("_", "-").lower()
    hints = spec.hints or (spec.name.replace("_", "-").lower().replace(" ", "-"),)
    return any(hint in plain for hint in hints)


def _describes(path: Path) -> bool:
    """Whether NAME.json beside NAME.onnx is a description and not a tag table of another kind."""
    text = path.read_text(encoding="utf-8-sig", errors="replace")[:4096]
    return '"layout"' in text and '"channels"' in text


def _table_or_none(graph: Path, spec: TaggerSpec) -> Path | None:
    endings = {Path(name).suffix for name in spec.table_names}
    own = [graph.with_suffix(".csv")] if ".csv" in endings else []
    found = [path for path in own if path.is_file() and spec.table_names == ("selected_tags.csv",)]
    found += in_folder(graph.parent, spec.table_names)
    return found[0] if found else None


def _table_of(graph: Path, spec: TaggerSpec) -> Path:
    table = _table_or_none(graph, spec)
    if table is None:
        raise StorageError(
            f"The tag table of {graph.name} is not in {graph.parent}; put {spec.table_names[0]} of the same "
            f"{spec.name} model there."
        )
    return table
