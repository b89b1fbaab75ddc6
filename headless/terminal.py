"""The local host with its progress in the terminal, and Ctrl-C as Cancel."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tqdm import tqdm

from ..core.progress import Cancelled, Progress
from ..nodes.host import set_host
from ..nodes.host.local import LocalHost
from .graph import Node

if TYPE_CHECKING:
    from PIL import Image

_MIN_INTERVAL_S = 0.2
_MIN_INTERVAL_IN_A_FILE_S = 10.0


class TerminalProgress:
    """A tqdm bar for one node; every call looks for Cancel.

    Args:
        label: what runs.
        total_hint: units expected, 0 when unknown.
        cancel: set when the person asked to stop.
        stream: where the bar is drawn.
    """

    def __init__(self, label: str, total_hint: int, cancel: threading.Event, stream: TextIO) -> None:
        self._label = label
        self._total = total_hint
        self._cancel = cancel
        self._stream = stream
        self._bar: Any = None
        self._last_status = ""

    def check(self) -> None:
        """Raise Cancelled if Ctrl-C was pressed."""
        if self._cancel.is_set():
            raise Cancelled("cancelled by Ctrl-C")

    def update(self, done: int, total: int, text: str = "") -> None:
        """Draw the bar at done of total."""
        self.check()
        if self._bar is None or done < self._bar.n or (total and total != self._bar.total):
            self.close()
            interval_s = _MIN_INTERVAL_S if self._stream.isatty() else _MIN_INTERVAL_IN_A_FILE_S
            self._bar = tqdm(
                total=total or None, desc=self._label, file=self._stream, mininterval=interval_s, leave=False
            )
        if text:
            self._bar.set_postfix_str(text, refresh=False)
        self._bar.update(done - self._bar.n)
        if total and done >= total:
            self.close()

    def status(self, text: str) -> None:
        """Print a line of status above the bar, once."""
        if text and text != self._last_status:
            self._last_status = text
            tqdm.write(f"  {text}", file=self._stream)

    def preview(self, image: Image.Image) -> None:
        """A terminal shows no pictures; they are in the run's folder."""

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class TerminalHost(LocalHost):
    """The local host that reports to a terminal; also the watcher of the graph runner."""

    def __init__(self, base_dir: Path, *, stream: TextIO | None = None, quiet: bool = False) -> None:
        super().__init__(base_dir)
        self._stream = stream if stream is not None else sys.stderr
        self._quiet = quiet
        self._label = ""
        self._progress: TerminalProgress | None = None

    def progress(self, total_hint: int = 0) -> Progress:
        """A bar named after the node that is running."""
        if self._quiet:
            return super().progress(total_hint)
        self._close_bar()
        self._progress = TerminalProgress(self._label, total_hint, self.cancel_event, self._stream)
        return self._progress

    def node_started(self, node: Node, number: int, total: int) -> None:
        """Name the node; Cancel takes effect here too."""
        if self.cancel_event.is_set():
            raise Cancelled("cancelled by Ctrl-C")
        self._label = node.title or node.class_type
        if not self._quiet:
            self._stream.write(f"[{number}/{total}] {node.label}\n")
            self._stream.flush()

    def node_finished(self, node: Node, seconds: float) -> None:
        """Take the node's bar away and say what it took when it was long."""
        self._close_bar()
        if not self._quiet and seconds >= 1.0:
            self._stream.write(f"  {seconds:.1f} s\n")

    def _close_bar(self) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None


@contextmanager
def hosting(host: TerminalHost) -> Iterator[TerminalHost]:
    """Make this the host of the process; the first Ctrl-C asks it to cancel, the second interrupts at once."""
    set_host(host)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if in_main else None

    def on_interrupt(number: int, frame: object) -> None:
        if host.cancel_event.is_set():
            raise KeyboardInterrupt
        host.cancel_event.set()
        sys.stderr.write("\ncancelling: what was done so far is being saved (Ctrl-C again stops at once)\n")

    if in_main:
        signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield host
    finally:
        if in_main:
            signal.signal(signal.SIGINT, before)
        set_host(None)
