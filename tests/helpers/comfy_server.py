"""A real ComfyUI with the pack in it, on loopback, driven through its HTTP API."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

PACK = Path(__file__).resolve().parents[2]
PACK_FOLDER = "My-Lora.Pack"
START_S = float(os.environ.get("ATELIER_START_TIMEOUT_S", "180"))


class Comfy:
    """One running server."""

    def __init__(self, base: Path, *options: str) -> None:
        self.base = base
        self.options = options
        self.log_path = base / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def prepare(self) -> None:
        """Make the base folder with a link to the pack."""
        for name in ("custom_nodes", "input", "output", "models/checkpoints", "models/loras"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK_FOLDER
        if not link.exists():
            link.symlink_to(PACK, target_is_directory=True)

    def start(self) -> None:
        """Start and wait until it answers."""
        self.prepare()
        checkout = Path(os.environ["COMFYUI_DIR"])
        python = os.environ.get("COMFYUI_PYTHON", sys.executable)
        command = [python, str(checkout / "main.py"), "--cpu", "--base-directory", str(self.base)]
        command += ["--listen", "127.0.0.1", "--port", str(self.port), "--disable-auto-launch"]
        command += ["--database-url", "sqlite:///:memory:", *self.options]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=checkout, env=_environment())
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                self.get("/system_stats")
            except OSError:
                time.sleep(0.5)
            else:
                return
        self.stop()
        pytest.fail(f"ComfyUI did not start:\n{self.log()[-4000:]}")

    def stop(self) -> None:
        """Stop the server."""
        if self.process is not None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def log(self) -> str:
        """Everything the server has said."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(self, path: str) -> Any:
        """GET a JSON answer."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def get_bytes(self, path: str) -> bytes:
        """GET a file."""
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return bytes(answer.read())

    def post(self, path: str, value: Any) -> Any:
        """POST JSON; a refusal's JSON is returned too."""
        request = urllib.request.Request(
            self.url + path, data=json.dumps(value).encode(), headers={"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
        except urllib.error.HTTPError as refusal:
            text = refusal.read()
        return json.loads(text) if text else None

    def queue(self, graph: dict[str, Any]) -> str:
        """Queue a graph and return its id."""
        answer = self.post("/prompt", {"prompt": graph})
        assert "prompt_id" in answer, json.dumps(answer, indent=1)[:4000]
        assert not answer["node_errors"], json.dumps(answer["node_errors"], indent=1)[:4000]
        return str(answer["prompt_id"])

    def wait(self, prompt_id: str, *, timeout_s: float = 600) -> dict[str, Any]:
        """Wait for a graph to end and return its history entry."""
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            history = self.get(f"/history/{prompt_id}")
            if prompt_id in history and history[prompt_id].get("status"):
                return dict(history[prompt_id])
            assert self.process is not None
            assert self.process.poll() is None, self.log()[-4000:]
            time.sleep(0.1)
        pytest.fail(f"the graph did not end within {timeout_s} s:\n{self.log()[-3000:]}")

    def run(self, graph: dict[str, Any], *, timeout_s: float = 600) -> dict[str, Any]:
        """Queue a graph, wait for success and return its history entry."""
        entry = self.wait(self.queue(graph), timeout_s=timeout_s)
        assert entry["status"]["status_str"] == "success", _why(entry)
        return entry

    def image(self, entry: dict[str, str]) -> bytes:
        """The bytes of a picture named in a node's output."""
        named = {name: entry[name] for name in ("filename", "subfolder", "type")}
        return self.get_bytes(f"/view?{urllib.parse.urlencode(named)}")


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return {**kept, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}


def _why(entry: dict[str, Any]) -> str:
    for kind, details in entry["status"]["messages"]:
        if kind == "execution_error":
            trace = "".join(details["traceback"])
            return f"{details['node_type']} {details['node_id']}: {details['exception_message']}\n{trace}"
    return json.dumps(entry["status"], indent=1)[:3000]
