"""The client of a running server, against a small stand-in that speaks ComfyUI's HTTP."""

import json
import threading
import urllib.parse
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from typer.testing import CliRunner

from lora_atelier.core.errors import InputError
from lora_atelier.headless import client
from lora_atelier.headless.cli import app
from lora_atelier.headless.client import Server, ServerError, run_on_server
from lora_atelier.headless.graph import graph_from_json
from lora_atelier.headless.specs import specs_of_object_info
from lora_atelier.headless.validate import GraphError

OBJECT_INFO = {
    "Word": {
        "input": {"required": {"text": ["STRING", {"multiline": True}], "style": [["plain", "loud"]]}},
        "output": ["STRING"],
        "display_name": "A Word",
        "output_node": False,
    },
    "Show": {
        "input": {"required": {"word": ["STRING", {"forceInput": True}], "how": ["COMBO", {"options": ["a", "b"]}]}},
        "output": [],
        "display_name": "Show It",
        "output_node": True,
    },
}
GRAPH = {
    "1": {"class_type": "Word", "inputs": {"text": "hat", "style": "loud"}},
    "2": {"class_type": "Show", "inputs": {"word": ["1", 0], "how": "b"}},
}
IMAGES = [
    {"filename": "a.png", "subfolder": "grids/x", "type": "output"},
    {"filename": "..\\b.png", "subfolder": "../../up", "type": "temp"},
    {"filename": "given.png", "subfolder": "", "type": "input"},
]


class FakeComfy:
    """What the server knows; the handler below reads and writes it."""

    def __init__(self):
        self.queued = []
        self.posts = []
        self.refusal = None
        self.finished = True
        self.messages = [["execution_start", {}], ["execution_success", {}]]
        self.status = "success"

    def get(self, path, query):
        if path == "/object_info":
            return OBJECT_INFO
        if path.startswith("/history/"):
            record = {"outputs": {"2": {"images": IMAGES, "text": ["done"]}}}
            record["status"] = {"status_str": self.status, "messages": self.messages}
            return {"p1": record} if self.finished else {}
        if path == "/queue":
            return {"queue_running": [[0, "p1"]] if self.queued else [], "queue_pending": []}
        if path == "/view":
            return f"bytes of {query['filename'][0]}".encode()
        return None

    def post(self, path, body):
        self.posts.append((path, body))
        if path == "/prompt":
            if self.refusal is not None:
                return 400, self.refusal
            self.queued.append(body)
            return 200, {"prompt_id": "p1", "number": 1, "node_errors": {}}
        return 200, None


@pytest.fixture
def comfy():
    state = FakeComfy()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            parts = urllib.parse.urlsplit(self.path)
            answer = state.get(parts.path, urllib.parse.parse_qs(parts.query))
            self.answer(404 if answer is None else 200, answer)

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Content-Type"] == "application/json"
            self.answer(*state.post(self.path, body))

        def answer(self, code, value):
            data = value if isinstance(value, bytes) else b"" if value is None else json.dumps(value).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()


class Watcher:
    def __init__(self):
        self.seen = []

    def server_node(self, label):
        self.seen.append(label)

    def server_progress(self, done, total):
        self.seen.append((done, total))

    def server_note(self, text):
        self.seen.append(text)


def events(*given):
    waiting = list(given)

    @contextmanager
    def stand_in(server):
        yield lambda timeout_s: waiting.pop(0) if waiting else None

    return stand_in


def event(kind, **data):
    return {"type": kind, "data": {"prompt_id": "p1", **data}}


DONE = event("execution_success")


def start(comfy, monkeypatch, tmp_path, *given):
    monkeypatch.setattr(client, "_events", events(*given))
    monkeypatch.setattr(client, "_POLL_S", 0.0)
    watcher = Watcher()
    graph = graph_from_json(GRAPH, specs_of_object_info(OBJECT_INFO))
    return run_on_server(graph, Server(comfy.url), folder=tmp_path / "out", watcher=watcher), watcher


def test_runs_follows_and_downloads(comfy, monkeypatch, tmp_path):
    outcome, watcher = start(
        comfy,
        monkeypatch,
        tmp_path,
        event("status"),
        event("execution_cached", nodes=["1"]),
        event("executing", node="2"),
        event("progress", value=1, max=4),
        {"type": "executing", "data": {"prompt_id": "other", "node": None}},
        DONE,
    )
    body = comfy.queued[0]
    assert body["prompt"]["2"] == {**GRAPH["2"], "_meta": {"title": "Show It"}}
    assert body["client_id"]
    assert 'node 2 (Show "Show It")' in watcher.seen
    assert (1, 4) in watcher.seen
    assert any("1 nodes were still cached" in str(line) for line in watcher.seen)
    assert outcome.outputs["2"]["text"] == ["done"]
    names = [path.relative_to(tmp_path / "out").as_posix() for path in outcome.files]
    assert names[0] == "grids/x/a.png"
    assert len(names) == 2, "input files are not downloaded"
    assert all(path.resolve().is_relative_to((tmp_path / "out").resolve()) for path in outcome.files)
    assert outcome.files[0].read_bytes() == b"bytes of a.png"


def test_polls_when_the_socket_is_silent(comfy, monkeypatch, tmp_path):
    outcome, _ = start(comfy, monkeypatch, tmp_path)
    assert outcome.prompt_id == "p1"


def test_a_run_the_server_forgot_is_an_error(comfy, monkeypatch, tmp_path):
    comfy.finished = False
    monkeypatch.setattr(client, "_QUIET_S", 0.0)
    monkeypatch.setattr(FakeComfy, "get", lambda self, path, query: {} if path != "/object_info" else OBJECT_INFO)
    with pytest.raises(ServerError, match="no longer knows the run p1"):
        start(comfy, monkeypatch, tmp_path)


def test_faults_are_told_by_node(comfy, monkeypatch, tmp_path):
    comfy.refusal = {
        "error": {"message": "Prompt outputs failed validation", "details": ""},
        "node_errors": {
            "2": {
                "errors": [{"message": "Value not in list", "details": "how: 'c' not in ['a', 'b']"}],
                "class_type": "Show",
            }
        },
    }
    with pytest.raises(GraphError, match=r'node 2 \(Show "Show It"\): Value not in list \(how'):
        start(comfy, monkeypatch, tmp_path, DONE)
    comfy.refusal = {"error": {"message": "Prompt has no outputs", "details": "x"}, "node_errors": {}}
    with pytest.raises(GraphError, match=r"Prompt has no outputs \(x\)"):
        start(comfy, monkeypatch, tmp_path, DONE)


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (["execution_error", {"node_id": "2", "exception_message": "no\n"}], "Show It.* failed on the server: no"),
        (["execution_interrupted", {"node_id": "1"}], "interrupted on the server at node 1"),
    ],
)
def test_failures_on_the_server(comfy, monkeypatch, tmp_path, message, said):
    comfy.messages, comfy.status = [message], "error"
    with pytest.raises(ServerError, match=said):
        start(comfy, monkeypatch, tmp_path, event(message[0]))
    comfy.messages = []
    with pytest.raises(ServerError, match="gave no reason"):
        start(comfy, monkeypatch, tmp_path, DONE)


def test_ctrl_c_cancels_on_the_server(comfy, monkeypatch, tmp_path):
    @contextmanager
    def interrupted(server):
        def stop(timeout_s):
            raise KeyboardInterrupt

        yield stop

    monkeypatch.setattr(client, "_events", interrupted)
    graph = graph_from_json(GRAPH, specs_of_object_info(OBJECT_INFO))
    with pytest.raises(KeyboardInterrupt):
        run_on_server(graph, Server(comfy.url), folder=tmp_path, watcher=Watcher())
    assert ("/queue", {"delete": ["p1"]}) in comfy.posts
    assert ("/interrupt", {"prompt_id": "p1"}) in comfy.posts


@pytest.mark.parametrize("url", ["", "ftp://x", "http://:80"])
def test_bad_addresses(url):
    with pytest.raises(InputError, match="is not a server address"):
        Server(url)


def test_no_server_there(tmp_path):
    with pytest.raises(ServerError, match="no ComfyUI server answers at http://127.0.0.1:9"):
        Server("127.0.0.1:9/").object_info()
    graph = graph_from_json(GRAPH, specs_of_object_info(OBJECT_INFO))
    with pytest.raises(ServerError, match="start it or correct --server"):
        run_on_server(graph, Server("127.0.0.1:9"), folder=tmp_path, watcher=Watcher())


def test_interfaces_from_a_server():
    specs = specs_of_object_info(OBJECT_INFO)
    assert specs["Show"].inputs["how"].choices == ("a", "b")
    assert not specs["Show"].inputs["word"].is_widget
    assert specs["Word"].inputs["style"].choices == ("plain", "loud")
    page = {"nodes": [{"id": 1, "type": "Word", "widgets_values": ["x", "plain"]}], "links": []}
    assert graph_from_json(page, specs).nodes["1"].inputs == {"text": "x", "style": "plain"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "2 nodes, nothing wrong found"),
        ({"how": "c"}, "'c'"),
        ({"class_type": "Shov"}, "of a class the server does not have; did you mean 'Show'"),
    ],
)
def test_check_queues_nothing(comfy, tmp_path, change, said):
    change = dict(change)
    class_type = change.pop("class_type", "Show")
    graph = {**GRAPH, "2": {"class_type": class_type, "inputs": {**GRAPH["2"]["inputs"], **change}}}
    (tmp_path / "w.json").write_text(json.dumps(graph), encoding="utf-8")
    given = ["run", tmp_path / "w.json", "--server", comfy.url, "--check", "--base-dir", tmp_path]
    done = CliRunner().invoke(app, [*map(str, given)])
    assert done.exit_code == (0 if "nothing wrong" in said else 1), done.output
    assert said in done.output
    assert comfy.posts == []
