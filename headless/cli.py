"""``lora-atelier``: run workflows, the quickstart, convert old files, list nodes."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from tqdm import tqdm

from ..core.errors import AtelierError
from ..core.progress import Cancelled
from ..nodes.host.local_folders import DEFAULT_BASE_DIR

if TYPE_CHECKING:
    from .graph import Graph

CANCELLED_EXIT = 130

app = typer.Typer(
    name="lora-atelier",
    help="Train, apply and compare LoRAs from workflow files, with or without a ComfyUI server.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BaseDir = Annotated[
    Path, typer.Option("--base-dir", help="Working directory: input/, output/, models/, user/. Made when missing.")
]


@contextmanager
def _reporting() -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code; a fault of the program keeps its traceback."""
    try:
        yield
    except AtelierError as error:
        cause = getattr(error, "node_error", error)
        if not isinstance(cause, AtelierError):
            traceback.print_exception(cause, file=sys.stderr)
        for line in str(error).splitlines():
            typer.echo(f"error: {line}", err=True)
        raise typer.Exit(1) from error
    except (Cancelled, KeyboardInterrupt) as cancel:
        typer.echo("cancelled; run the same command again to go on from what was saved.", err=True)
        raise typer.Exit(CANCELLED_EXIT) from cancel


@app.command()
def run(
    workflow: Annotated[Path, typer.Argument(help="Workflow file (.json in API or page format, or a .png with one).")],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NODE.INPUT=VALUE", help="Change a value; NODE is an id, a title or a class name."
        ),
    ] = None,
    base_dir: BaseDir = DEFAULT_BASE_DIR,
    server: Annotated[str | None, typer.Option(help="Run on this ComfyUI server, e.g. http://127.0.0.1:8188.")] = None,
    check: Annotated[bool, typer.Option("--check", help="Only check the workflow; run nothing.")] = False,
) -> None:
    """Run a workflow here, or on a ComfyUI server with --server."""
    with _reporting():
        if server is not None:
            _run_on_server(workflow, settings or [], base_dir, server, check)
        else:
            _run_here(workflow, settings or [], base_dir, check)


def _run_here(workflow: Path, settings: list[str], base_dir: Path, check: bool) -> None:
    from .runner import check_local, load_graph, local_specs, output_files, output_texts, run_local
    from .terminal import TerminalHost, hosting

    with hosting(TerminalHost(base_dir)) as host:
        graph = load_graph(workflow, local_specs()[1], settings)
        if check:
            _tell_checked(workflow, graph, check_local(graph))
            return
        done = run_local(graph, host)
        for warning in done.warnings:
            typer.echo(f"warning: {warning}", err=True)
        for text in output_texts(done.outcome):
            typer.echo(text)
        for path in output_files(done.outcome, host):
            typer.echo(str(path))


def _tell_checked(workflow: Path, graph: Graph, warnings: Sequence[str]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{workflow}: {len(graph.nodes)} nodes, nothing wrong found.")


class _ServerBar:
    """Progress of a server run in the terminal."""

    def __init__(self) -> None:
        self._label = ""
        self._bar: Any = None

    def server_node(self, label: str) -> None:
        self.close()
        self._label = label
        tqdm.write(label, file=sys.stderr)

    def server_progress(self, done: int, total: int) -> None:
        if self._bar is None or self._bar.total != total or done < self._bar.n:
            self.close()
            self._bar = tqdm(total=total, desc=self._label, file=sys.stderr, leave=False)
        self._bar.update(done - self._bar.n)

    def server_note(self, text: str) -> None:
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _run_on_server(workflow: Path, settings: list[str], base_dir: Path, url: str, check: bool) -> None:
    from .client import Server, run_on_server
    from .runner import check_for_server, load_graph
    from .specs import specs_of_object_info

    server = Server(url)
    specs = specs_of_object_info(server.object_info())
    graph = load_graph(workflow, specs, settings)
    if check:
        _tell_checked(workflow, graph, check_for_server(graph, specs))
        return
    for note in graph.notes:
        typer.echo(f"warning: {note}", err=True)
    bar = _ServerBar()
    try:
        outcome = run_on_server(graph, server, folder=base_dir / "output" / "server", watcher=bar)
    finally:
        bar.close()
    for shown in outcome.outputs.values():
        for text in shown.get("text", ()):
            typer.echo(str(text))
    for path in outcome.files:
        typer.echo(str(path))


@app.command()
def quickstart(
    seed: Annotated[
        int, typer.Option(min=0, max=2**63 - 1, help="Seed of the data set, the training and the grid.")
    ] = 1,
    concept: Annotated[str, typer.Option(help="What to learn: kest, vard or tavi.")] = "kest",
    base_dir: BaseDir = DEFAULT_BASE_DIR,
) -> None:
    """Learn a concept with the small built-in model, draw the comparison grid, and judge it."""
    from .quickstart import run_quickstart
    from .terminal import TerminalHost, hosting

    with _reporting(), hosting(TerminalHost(base_dir)) as host:
        typer.echo(json.dumps(run_quickstart(host, concept=concept, seed=seed)))


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="Old checkpoint (.ckpt, .pt).")],
    target: Annotated[Path | None, typer.Argument(help="New file; beside the old one when left out.")] = None,
) -> None:
    """Convert an old pickle checkpoint to .safetensors."""
    from ..families._convert import convert_checkpoint
    from .terminal import TerminalProgress

    with _reporting():
        import threading

        made = target if target is not None else file.with_suffix(".safetensors")
        progress = TerminalProgress(f"converting {file.name}", 0, threading.Event(), sys.stderr)
        convert_checkpoint(file, made, progress)
        progress.close()
        typer.echo(str(made))


@app.command()
def nodes(base_dir: BaseDir = DEFAULT_BASE_DIR) -> None:
    """List the nodes that workflows may use here."""
    from .runner import local_classes
    from .terminal import TerminalHost, hosting

    with _reporting(), hosting(TerminalHost(base_dir, quiet=True)):
        classes, titles = local_classes()
        width = max(map(len, classes))
        for name, node_class in sorted(classes.items(), key=lambda item: (getattr(item[1], "CATEGORY", ""), item[0])):
            typer.echo(f"{name:<{width}}  {getattr(node_class, 'CATEGORY', '')} / {titles[name]}")


class _AboveTheBar(logging.Handler):
    """Prints log records on lines of their own, not into a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def main() -> None:
    """Entry point of ``lora-atelier`` and ``python -m lora_atelier``."""
    # Reports of nodes are printed at the end of a run and status lines as it goes; the log adds what went wrong.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", handlers=[_AboveTheBar()])
    app()
