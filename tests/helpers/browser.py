"""The page of a running ComfyUI in a headless Chromium."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.comfy_server import Comfy

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
]
PAGE_S = float(os.environ.get("ATELIER_PAGE_TIMEOUT_S", "120"))
SCREENSHOTS = os.environ.get("ATELIER_SCREENSHOTS", "")
"""Folder in which screenshots are kept; empty keeps them with the test's temporary files."""
_MISSING = "window.app.graph._nodes.filter(n => !window.LiteGraph.registered_node_types[n.type]).map(n => n.type)"


@contextmanager
def opened_page(comfy: Comfy, profile: Path) -> Iterator[Any]:
    """The page once its nodes are there; `page.messages` holds what the console said."""
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium; install it or name it in CHROMIUM")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(profile), executable_path=CHROMIUM, args=OPTIONS, viewport={"width": 1900, "height": 1100}
        )
        page = context.new_page()
        page.set_default_timeout(PAGE_S * 1000)
        page.messages = []
        page.on("console", lambda message: page.messages.append(f"{message.type} {message.text}"))
        page.goto(comfy.url, wait_until="commit")
        page.wait_for_function("!!(window.app?.graph && window.LiteGraph?.registered_node_types['AtelierTrainLora'])")
        page.wait_for_timeout(3000)
        yield page
        context.close()


def open_template(comfy: Comfy, page: Any, pack_folder: str, name: str) -> dict[str, Any]:
    """Opens a shipped workflow as a template; its API form as the page would queue it.

    Every node must be known and nothing of ours may complain.
    """
    assert name in comfy.get("/api/workflow_templates")[pack_folder]
    assert comfy.get_bytes(f"/api/workflow_templates/{pack_folder}/{name}.jpg")[:2] == b"\xff\xd8"
    workflow = comfy.get(f"/api/workflow_templates/{pack_folder}/{name}.json")
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(2000)
    assert page.evaluate(_MISSING) == []
    assert page.get_by_text("Missing Node").count() == 0
    prompt: dict[str, Any] = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    ours = [text for text in page.messages if "atelier" in text.lower() and text.startswith(("error", "warning"))]
    assert not ours, ours
    return prompt


_WHOLE_GRAPH = """() => {
  const nodes = window.app.graph._nodes, canvas = window.app.canvas;
  const left = Math.min(...nodes.map(n => n.pos[0])), top = Math.min(...nodes.map(n => n.pos[1] - 90));
  const right = Math.max(...nodes.map(n => n.pos[0] + n.size[0]));
  const bottom = Math.max(...nodes.map(n => n.pos[1] + n.size[1]));
  canvas.ds.scale = Math.min(1640 / (right - left), 960 / (bottom - top));
  canvas.ds.offset = [80 / canvas.ds.scale - left, 70 / canvas.ds.scale - top];
  canvas.setDirty(true, true);
}"""


def screenshot(page: Any, name: str, folder: Path) -> None:
    """Keeps what the page shows, as it opens and the whole graph, without the dialog that greets in a fresh ComfyUI."""
    place = Path(SCREENSHOTS or folder)
    page.keyboard.press("Escape")
    page.wait_for_timeout(1500)
    page.screenshot(path=str(place / f"{name}-opened.png"))
    page.evaluate(_WHOLE_GRAPH)
    page.wait_for_timeout(1500)
    page.screenshot(path=str(place / f"{name}.png"))
