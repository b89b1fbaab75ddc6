"""A grid of pictures: planned whole, drawn in the cheapest order, every cell kept on disk so that it can go on."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ..core.errors import FormatError, InputError, StorageError
from ..core.files import atomic_path, read_json, safe_name, write_json
from ..core.progress import Progress
from .axes._spec import AxisValues
from .cells import Cell, changed, combine, drawing_order
from .infotext import infotext, next_counter, script_keys, sheet_name
from .sheet import draw_sheet

FORMAT_VERSION = 1
"""Raised when the same inputs would give another grid, so that old ones are not taken for it."""
MAX_CELLS = 10_000
INDEX_NAME = "cells.json"

Metadata = Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class GridRef:
    """A finished grid on disk (socket ``ATELIER_GRID``).

    Attributes:
        folder: Its own folder, with ``cells.json`` and ``cells/``.
        key: Hash of everything it depends on.
    """

    folder: Path
    key: str


@dataclass(frozen=True, kw_only=True)
class GridCell:
    """One picture of a grid on disk.

    Attributes:
        column: 0 is the first.
        row: 0 is the first.
        path: The PNG.
        key: Hash of its inputs.
        inputs: Its inputs as plain values, see `Cell.to_json`.
    """

    column: int
    row: int
    path: Path
    key: str
    inputs: Mapping[str, Any]

    @property
    def prompt(self) -> str:
        """The prompt it was drawn with."""
        return str(self.inputs["prompt"])

    def image(self) -> Image.Image:
        """Read the picture.

        Raises:
            StorageError: It is gone or damaged.
        """
        try:
            return _read_rgb(self.path)
        except OSError as cause:
            raise StorageError(f"The cell {self.path.name} cannot be read ({cause}); run the grid again.") from cause


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A grid with its labels and cells, row by row.

    Attributes:
        folder: Its own folder.
        key: Hash of everything it depends on.
        x_name: Title of the columns' axis; empty without one.
        x_labels: Label of each column; empty without an axis.
        y_name: Title of the rows' axis; empty without one.
        y_labels: Label of each row; empty without an axis.
        cells: All cells, row by row.
        sheet_path: The sheet's PNG.
    """

    folder: Path
    key: str
    x_name: str
    x_labels: tuple[str, ...]
    y_name: str
    y_labels: tuple[str, ...]
    cells: tuple[GridCell, ...]
    sheet_path: Path

    def sheet_image(self) -> Image.Image:
        """Read the sheet.

        Raises:
            StorageError: It is gone or damaged.
        """
        try:
            return _read_rgb(self.sheet_path)
        except OSError as cause:
            raise StorageError(
                f"The sheet {self.sheet_path.name} cannot be read ({cause}); run the grid again."
            ) from cause


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a grid will draw.

    Attributes:
        cells: Inputs of every cell, row by row.
        keys: Hash of every cell.
        key: Hash of the grid.
        x: The columns' axis.
        y: The rows' axis.
    """

    cells: tuple[Cell, ...]
    keys: tuple[str, ...]
    key: str
    x: AxisValues | None
    y: AxisValues | None

    @property
    def num_columns(self) -> int:
        """At least 1."""
        return len(self.x.values) if self.x else 1


def plan_grid(base_cell: Cell, x: AxisValues | None, y: AxisValues | None, *, identity: str, title: str = "") -> Plan:
    """Work out every cell before the first is drawn, so that a wrong axis costs nothing.

    Raises:
        InputError: Too many cells, axes that set the same thing, a search word that does not occur, or an axis over
            LoRA settings without a LoRA.
    """
    columns = x.values if x else (None,)
    rows = y.values if y else (None,)
    if len(columns) * len(rows) > MAX_CELLS:
        raise InputError(
            f"The grid has {len(columns)} x {len(rows)} = {len(columns) * len(rows)} cells; "
            f"at most {MAX_CELLS} are drawn: shorten an axis."
        )
    cells = tuple(
        changed(base_cell, combine(value.changes for value in (column, row) if value is not None))
        for row in rows
        for column in columns
    )
    keys = tuple(cell.key(identity) for cell in cells)
    facts = [FORMAT_VERSION, keys, title, *((axis.name, axis.labels) if axis else None for axis in (x, y))]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    return Plan(cells=cells, keys=keys, key=key, x=x, y=y)


def run_grid(
    base_cell: Cell,
    x: AxisValues | None,
    y: AxisValues | None,
    *,
    folder: Path,
    generate: Callable[[Cell], Image.Image],
    cell_metadata: Callable[[Cell], Metadata],
    progress: Progress,
    identity: str,
    model_name: str = "",
    model_hash: str = "",
    title: str = "",
    check_cell: Callable[[Cell], None] | None = None,
) -> GridRef:
    """Draw a grid, or what is missing of it.

    Cells that differ in nothing are drawn once. A cell that lies in another grid of the same folder is taken from
    there, pixels only: each grid's files carry its own texts. What was drawn before an interruption stays and is not
    drawn again; a finished grid returns at once.

    Args:
        base_cell: Inputs of every cell before the axes change them.
        x: The columns; None for a single one.
        y: The rows; None for a single one.
        folder: Where grids are kept. The grid gets a folder of its own in it, the sheet lies in it directly.
        generate: Draws one cell. Called in the order of `drawing_order`.
        cell_metadata: PNG texts of a cell, such as ``prompt`` and ``workflow`` (text, or values for JSON); None to
            write no metadata at all.
        progress: Told after each cell, shown each picture; its cancel exception passes through unchanged.
        identity: What the base model and everything already applied to it are, as one text.
        model_name: Base model's name for the parameters text.
        model_hash: Base model's SHA-256 for the parameters text.
        title: Line above the sheet.
        check_cell: Called for every different cell before the first is drawn; raises for inputs that cannot be drawn,
            such as block weights that do not fit a file.

    Raises:
        InputError: The axes make no grid (see `plan_grid`).
        StorageError: The disk is full or not writable; cells already drawn stay.
    """
    plan = plan_grid(base_cell, x, y, identity=identity, title=title)
    target = folder / f"{safe_name(_words(plan), 40)}-{plan.key[:8]}"
    grid = _finished(GridRef(folder=target, key=plan.key))
    if grid is not None:
        progress.update(len(plan.cells), len(plan.cells), "The grid was drawn before.")
        return GridRef(folder=target, key=plan.key)
    if check_cell is not None:
        for cell in dict(zip(plan.keys, plan.cells, strict=True)).values():
            check_cell(cell)
    paths = [target / "cells" / name for name in _cell_names(plan)]
    done = _existing_cells(folder)
    drawn: dict[str, Path] = {}
    for count, index in enumerate(drawing_order(plan.cells)):
        progress.update(count, len(plan.cells), f"Cell {count + 1} of {len(plan.cells)}")
        key, path = plan.keys[index], paths[index]
        if _is_picture(path):
            drawn[key] = path
            continue
        source = drawn.get(key) or done.get(_short(key))
        picture = _kept_pixels(source) if source is not None and source != path else None
        is_new = picture is None
        if picture is None:
            picture = generate(plan.cells[index])
        extra = cell_metadata(plan.cells[index])
        text = infotext(plan.cells[index], model_name=model_name, model_hash=model_hash)
        save_png(path, picture, extra if extra is None else {**extra, "parameters": text})
        if is_new:
            progress.preview(picture)
        drawn[key] = path
    sheet_metadata = cell_metadata(base_cell)
    if sheet_metadata is not None:
        extra_keys = script_keys(**_axis_words(plan))
        text = infotext(plan.cells[0], model_name=model_name, model_hash=model_hash, extra=extra_keys)
        sheet_metadata = {**sheet_metadata, "parameters": text}
    sheet = draw_sheet(paths, x.labels if x else (), y.labels if y else (), title)
    sheet_path = folder / sheet_name(next_counter(folder), plan.cells[0].seed, plan.cells[0].prompt)
    save_png(sheet_path, sheet, sheet_metadata)
    _write_index(plan, target, paths, sheet_path, identity)
    progress.update(len(plan.cells), len(plan.cells), "The grid is complete.")
    return GridRef(folder=target, key=plan.key)


def open_grid(ref: GridRef) -> Grid:
    """Read a grid's labels and cells.

    Raises:
        StorageError: Its folder is gone.
        FormatError: ``cells.json`` is not one of ours.
    """
    data = read_json(ref.folder / INDEX_NAME)
    try:
        return Grid(
            folder=ref.folder,
            key=data["key"],
            x_name=data["x_name"],
            x_labels=tuple(data["x_labels"]),
            y_name=data["y_name"],
            y_labels=tuple(data["y_labels"]),
            cells=tuple(
                GridCell(
                    column=cell["column"],
                    row=cell["row"],
                    path=ref.folder / "cells" / Path(cell["file"]).name,
                    key=cell["key"],
                    inputs=cell["inputs"],
                )
                for cell in data["cells"]
            ),
            sheet_path=ref.folder.parent / Path(data["sheet"]).name,
        )
    except (KeyError, TypeError) as cause:
        raise FormatError(
            f"{ref.folder / INDEX_NAME} is not the index of a grid ({cause}); run the grid again."
        ) from cause


def save_png(path: Path, picture: Image.Image, texts: Metadata) -> None:
    """Write a PNG atomically with texts in the chunks ComfyUI and the web UI read.

    Args:
        path: The file.
        picture: What to write.
        texts: Chunk name to text; other values are written as JSON. None writes no chunk.

    Raises:
        StorageError: The disk is full or not writable.
    """
    info = PngImagePlugin.PngInfo()
    for name, value in (texts or {}).items():
        info.add_text(name, value if isinstance(value, str) else json.dumps(value))
    with atomic_path(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info, compress_level=4)


def _read_rgb(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        image: Image.Image = picture.convert("RGB")
    return image


def _kept_pixels(path: Path) -> Image.Image | None:
    """Read a picture drawn before without its texts; None for one that a crash or another program damaged."""
    try:
        return _read_rgb(path)
    except (OSError, SyntaxError, ValueError):
        return None


def _words(plan: Plan) -> str:
    names = [axis.name for axis in (plan.x, plan.y) if axis]
    return " x ".join(names) if names else "single"


def _axis_words(plan: Plan) -> dict[str, Any]:
    return {
        "x_name": plan.x.name if plan.x else "",
        "x_labels": plan.x.labels if plan.x else (),
        "y_name": plan.y.name if plan.y else "",
        "y_labels": plan.y.labels if plan.y else (),
    }


def _short(key: str) -> str:
    return key[:20]


def _cell_names(plan: Plan) -> Iterator[str]:
    for index, key in enumerate(plan.keys):
        row, column = divmod(index, plan.num_columns)
        yield f"x{column + 1:02d}-y{row + 1:02d}-{_short(key)}.png"


def _existing_cells(folder: Path) -> dict[str, Path]:
    """Return the cells of every grid in a folder by their short key, for grids that share cells with this one."""
    found = folder.glob("*/cells/x*-y*-*.png") if folder.is_dir() else ()
    return {path.stem.rsplit("-", 1)[1]: path for path in sorted(found)}


def _is_picture(path: Path) -> bool:
    """Say whether a file is a whole picture; one that a crash or another program damaged is drawn again."""
    if not path.is_file():
        return False
    try:
        with Image.open(path) as picture:
            picture.verify()
    except (OSError, SyntaxError, ValueError):
        return False
    return True


def _finished(ref: GridRef) -> Grid | None:
    if not (ref.folder / INDEX_NAME).is_file():
        return None
    try:
        grid = open_grid(ref)
    except FormatError:
        return None
    whole = grid.key == ref.key and all(_is_picture(cell.path) for cell in grid.cells) and _is_picture(grid.sheet_path)
    return grid if whole else None


def _write_index(plan: Plan, target: Path, paths: Sequence[Path], sheet_path: Path, identity: str) -> None:
    cells = [
        {
            "column": index % plan.num_columns,
            "row": index // plan.num_columns,
            "file": path.name,
            "key": key,
            "inputs": cell.to_json(),
        }
        for index, (cell, key, path) in enumerate(zip(plan.cells, plan.keys, paths, strict=True))
    ]
    axes = {name: list(value) if isinstance(value, tuple) else value for name, value in _axis_words(plan).items()}
    facts = {"format": FORMAT_VERSION, "key": plan.key, "identity": identity, **axes, "sheet": sheet_path.name}
    write_json(target / INDEX_NAME, {**facts, "cells": cells})
