"""Running a graph on a ComfyUI server: queue over HTTP, follow over the WebSocket, fetch the outputs."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import AtelierError, InputError, missing_library
from ..core.files import atomic_path, safe_name
from .graph import Graph
from .validate import GraphError

_HTTP_TIMEOUT_S = 60.0
_POLL_S = 2.0
_QUIET_S = 10.0
_CHUNK_BYTES = 2**20


class ServerError(AtelierError):
    """The server could not be reached, refused the graph, or a node failed there."""


class ServerWatcher(Protocol):
    """Who is told how the graph goes on the server."""

    def server_node(self, label: str) -> None:
        """A node begins."""

    def server_progress(self, done: int, total: int) -> None:
        """The running node has done so many of its steps."""

    def server_note(self, text: str) -> None:
        """A line for the person: queued, cached nodes, text of a node."""


@dataclass(frozen=True, kw_only=True)
class ServerOutcome:
    """What a run on a server gave.

    Attributes:
        prompt_id: the server's id of the run.
        outputs: node id to what it shows ("images", "text" ...).
        files: outputs that were downloaded.
    """

    prompt_id: str
    outputs: Mapping[str, Mapping[str, Any]]
    files: tuple[Path, ...]


class Server:
    """A ComfyUI server.

    Args:
        url: such as ``http://127.0.0.1:8188``; a missing scheme means http.

    Raises:
        InputError: the URL is not one.
    """

    def __init__(self, url: str) -> None:
        full = url.strip().rstrip("/")
        full = full if "://" in full else f"http://{full}"
        parts = urllib.parse.urlsplit(full)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"--server {url!r} is not a server address; write one like http://127.0.0.1:8188.")
        self.url = full
        self.client_id = uuid.uuid4().hex

    def object_info(self) -> dict[str, Any]:
        """The interfaces of all nodes the server has."""
        info: dict[str, Any] = self._json("GET", "/object_info")
        return info

    def queue(self, graph: Graph) -> str:
        """Queue a graph and return its id.

        Raises:
            GraphError: the server found faults in it, one sentence each.
            ServerError: it could not be reached.
        """
        body: dict[str, Any] = {"prompt": graph.to_api(), "client_id": self.client_id}
        if graph.workflow is not None:
            body["extra_data"] = {"extra_pnginfo": {"workflow": graph.workflow}}
        answer = self._json("POST", "/prompt", body, allowed=(400,))
        faults = _faults(graph, answer)
        if faults and "prompt_id" in answer:
            self.cancel(str(answer["prompt_id"]))
        if faults or "prompt_id" not in answer:
            raise GraphError(faults or [f"the server refused the workflow without saying why ({answer!r})."])
        return str(answer["prompt_id"])

    def history(self, prompt_id: str) -> Mapping[str, Any] | None:
        """The record of a finished run, None while it waits or runs."""
        record: Mapping[str, Any] = self._json("GET", f"/history/{urllib.parse.quote(prompt_id)}")
        return record.get(prompt_id)

    def waiting_or_running(self, prompt_id: str) -> bool:
        """Whether the run is in the server's queue."""
        queue = self._json("GET", "/queue")
        entries = [*queue.get("queue_running", ()), *queue.get("queue_pending", ())]
        return any(prompt_id in entry for entry in entries)

    def cancel(self, prompt_id: str) -> None:
        """Take the run out of the queue, or interrupt it when it is the one that runs."""
        self._json("POST", "/queue", {"delete": [prompt_id]})
        running = self._json("GET", "/queue").get("queue_running", ())
        if any(prompt_id in entry for entry in running):
            self._json("POST", "/interrupt", {"prompt_id": prompt_id})

    def download(self, item: Mapping[str, Any], folder: Path) -> Path:
        """Fetch one output file into a folder; its own subfolder is kept below it, in safe names.

        Raises:
            ServerError: the server does not give it.
        """
        query = {key: str(item.get(key, "")) for key in ("filename", "subfolder", "type")}
        places = [part for part in query["subfolder"].replace("\\", "/").split("/") if part]
        target = folder.joinpath(*(safe_name(part) for part in places), safe_name(query["filename"], max_chars=200))
        view = f"/view?{urllib.parse.urlencode(query)}"
        with self._open("GET", view) as answer, atomic_path(target) as temporary, temporary.open("wb") as file:
            while chunk := answer.read(_CHUNK_BYTES):
                file.write(chunk)
        return target

    def _json(self, method: str, path: str, body: Any = None, *, allowed: tuple[int, ...] = ()) -> Any:
        with self._open(method, path, body, allowed=allowed) as answer:
            text = answer.read().decode("utf-8", "replace")
        if not text.strip():
            return {}
        try:
            return json.loads(text)
        except json.JSONDecodeError as cause:
            raise ServerError(
                f"{self.url}{path} did not answer with JSON; is a ComfyUI server running there?"
            ) from cause

    @contextmanager
    def _open(self, method: str, path: str, body: Any = None, *, allowed: tuple[int, ...] = ()) -> Iterator[Any]:
        data = None if body is None else json.dumps(body).encode("utf-8")
        headers = {"Content-Type": "application/json"} if data is not None else {}
        request = urllib.request.Request(self.url + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=_HTTP_TIMEOUT_S) as answer:
                yield answer
        except urllib.error.HTTPError as cause:
            if cause.code not in allowed:
                raise ServerError(f"{self.url}{path} answered {cause.code} {cause.reason}.") from cause
            with cause:
                yield cause
        except (urllib.error.URLError, TimeoutError, ConnectionError) as cause:
            reason = getattr(cause, "reason", cause)
            raise ServerError(
                f"no ComfyUI server answers at {self.url} ({reason}); start it or correct --server."
            ) from cause


def run_on_server(graph: Graph, server: Server, *, folder: Path, watcher: ServerWatcher) -> ServerOutcome:
    """Queue a graph, follow it to its end, and download what it made.

    Args:
        graph: the graph.
        server: where to run it.
        folder: downloads go here.
        watcher: told how it goes.

    Raises:
        GraphError: the server found faults in the graph.
        ServerError: a node failed, the run was interrupted, or the connection was lost for good.
    """
    with _events(server) as next_event:
        prompt_id = server.queue(graph)
        watcher.server_note(f"queued as {prompt_id} on {server.url}")
        try:
            _follow(graph, server, prompt_id, next_event, watcher)
        except (KeyboardInterrupt, SystemExit):
            server.cancel(prompt_id)
            raise
        record = server.history(prompt_id) or {}
    _raise_failure(graph, record)
    outputs: Mapping[str, Mapping[str, Any]] = record.get("outputs", {})
    items = [item for shown in outputs.values() for entries in shown.values() for item in _file_items(entries)]
    files = tuple(server.download(item, folder) for item in items if item.get("type") != "input")
    return ServerOutcome(prompt_id=prompt_id, outputs=outputs, files=files)


@contextmanager
def _events(server: Server) -> Iterator[Callable[[float], Mapping[str, Any] | None]]:
    """A function that waits for the next event; None after that many seconds, or always once the socket is lost."""
    try:
        from websockets.exceptions import ConnectionClosed, WebSocketException
        from websockets.sync.client import connect
    except ImportError as cause:
        raise missing_library("websockets", "following a run on a server", "pip install websockets") from cause
    address = "ws" + server.url.removeprefix("http") + f"/ws?clientId={server.client_id}"
    with ExitStack() as stack:
        try:
            socket = stack.enter_context(connect(address, max_size=None, open_timeout=_HTTP_TIMEOUT_S))
        except (OSError, WebSocketException) as cause:
            text = f"no ComfyUI server answers at {server.url} ({cause}); start it or correct --server."
            raise ServerError(text) from cause
        yield _next_event_of(socket, ConnectionClosed)


def _next_event_of(socket: Any, closed: type[Exception]) -> Callable[[float], Mapping[str, Any] | None]:
    lost = False

    def next_event(timeout_s: float) -> Mapping[str, Any] | None:
        nonlocal lost
        until = time.monotonic() + timeout_s
        while (left := until - time.monotonic()) > 0:
            if lost:
                time.sleep(left)
                return None
            try:
                message = socket.recv(timeout=left)
            except TimeoutError:
                return None
            except closed:
                lost = True
                continue
            if isinstance(message, str):
                event: Mapping[str, Any] = json.loads(message)
                return event
        return None

    return next_event


def _follow(
    graph: Graph,
    server: Server,
    prompt_id: str,
    next_event: Callable[[float], Mapping[str, Any] | None],
    watcher: ServerWatcher,
) -> None:
    """Return when the run has ended; events tell it at once, the history is asked when they fall silent."""
    last_asked = time.monotonic()
    absent_since: float | None = None
    while True:
        event = next_event(_POLL_S)
        if event is not None and _ends(graph, prompt_id, event, watcher):
            # The record is written shortly after the last event.
            while server.history(prompt_id) is None:
                time.sleep(0.05)
            return
        if event is None and time.monotonic() - last_asked >= _POLL_S:
            last_asked = time.monotonic()
            if server.history(prompt_id) is not None:
                return
            if server.waiting_or_running(prompt_id):
                absent_since = None
            elif absent_since is None:
                absent_since = time.monotonic()
            elif time.monotonic() - absent_since > _QUIET_S:
                raise ServerError(f"the server at {server.url} no longer knows the run {prompt_id}; was it restarted?")


def _ends(graph: Graph, prompt_id: str, event: Mapping[str, Any], watcher: ServerWatcher) -> bool:
    kind, data = event.get("type"), event.get("data") or {}
    if data.get("prompt_id") not in (None, prompt_id):
        return False
    if kind == "executing":
        if data.get("node") is None:
            return data.get("prompt_id") == prompt_id
        watcher.server_node(_label(graph, str(data["node"])))
    elif kind == "progress":
        watcher.server_progress(int(data.get("value", 0)), int(data.get("max", 1)))
    elif kind == "execution_cached" and data.get("nodes"):
        watcher.server_note(f"{len(data['nodes'])} nodes were still cached")
    return kind in ("execution_success", "execution_error", "execution_interrupted") and (
        data.get("prompt_id") == prompt_id
    )


def _label(graph: Graph, node_id: str) -> str:
    node = graph.nodes.get(node_id) or graph.nodes.get(node_id.split(".")[0].split(":")[0])
    return node.label if node is not None else f"node {node_id}"


def _faults(graph: Graph, answer: Mapping[str, Any]) -> list[str]:
    """One sentence per fault of a refused graph."""
    faults = []
    for node_id, entry in (answer.get("node_errors") or {}).items():
        for error in entry.get("errors", ()):
            faults.append(f"{_label(graph, str(node_id))}: {error.get('message')} ({error.get('details')}).")
    error = answer.get("error")
    if not faults and error:
        message = error.get("message", error) if isinstance(error, Mapping) else error
        faults.append(f"the server refused the workflow: {message} {_details(error)}".strip())
    return faults


def _details(error: Any) -> str:
    details = error.get("details") if isinstance(error, Mapping) else ""
    return f"({details})" if details else ""


def _raise_failure(graph: Graph, record: Mapping[str, Any]) -> None:
    status = record.get("status") or {}
    for kind, data in status.get("messages", ()):
        if kind == "execution_error":
            label = _label(graph, str(data.get("node_id")))
            raise ServerError(f"{label} failed on the server: {str(data.get('exception_message', '')).strip()}")
        if kind == "execution_interrupted":
            raise ServerError(f"the run was interrupted on the server at {_label(graph, str(data.get('node_id')))}.")
    if status.get("status_str") == "error":
        raise ServerError("the run failed on the server, which gave no reason; see its log.")


def _file_items(entries: Any) -> list[Mapping[str, Any]]:
    if not isinstance(entries, list):
        return []
    return [item for item in entries if isinstance(item, Mapping) and item.get("filename")]
