"""The shipped quickstart: over the API to a LoRA that has learned, and in the page of a real browser."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.comfy_server import PACK, PACK_FOLDER, Comfy

API = json.loads((PACK / "api_workflows/quickstart.json").read_text(encoding="utf-8"))
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
BROWSER_OPTIONS = [
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


def ids_of(class_type: str) -> list[str]:
    return [node_id for node_id, node in API.items() if node["class_type"] == class_type]


def assert_learned(outputs: dict[str, Any]) -> None:
    """The figures of the issue's first point, from the score node's output."""
    (score_id,) = ids_of("AtelierScoreGrid")
    base, trained = outputs[score_id]["score"][0]["columns"]
    assert base["trigger_recall"] <= 0.05, base
    assert trained["trigger_recall"] >= 0.8, trained
    assert trained["num_trigger"] >= 32
    assert trained["num_other"] >= 64
    assert trained["kept"] >= 0.9, trained
    assert trained["false_triggers"] <= 0.05, trained


def test_the_api_form_runs_to_a_lora_that_has_learned(comfy: Comfy) -> None:
    outputs = comfy.run(API, timeout_s=1800)["outputs"]
    assert_learned(outputs)
    for grid_id in ids_of("AtelierXYGrid"):
        assert outputs[grid_id]["images"]
    assert not [line for line in comfy.log().splitlines() if "lora key not loaded" in line]
    started = time.monotonic()
    comfy.run(API)
    assert time.monotonic() - started < 5.0


@pytest.fixture
def page(comfy: Comfy, tmp_path: Path) -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    if CHROMIUM is None:
        pytest.skip("no Chromium; install it or name it in CHROMIUM")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=CHROMIUM,
            args=BROWSER_OPTIONS,
            viewport={"width": 1900, "height": 1100},
        )
        page = context.new_page()
        page.set_default_timeout(PAGE_S * 1000)
        page.messages = []
        page.on("console", lambda message: page.messages.append(f"{message.type} {message.text}"))
        page.goto(comfy.url, wait_until="commit")
        page.wait_for_function("!!(window.app?.graph && window.LiteGraph?.registered_node_types['AtelierTrainLora'])")
        page.wait_for_timeout(3000)
        page.keyboard.press("Escape")  # a first visit opens the list of templates over the graph
        yield page
        context.close()


def test_the_page_opens_the_workflow_and_queues_it(comfy: Comfy, page: Any, tmp_path: Path) -> None:
    templates = comfy.get("/api/workflow_templates")
    assert "quickstart" in templates[PACK_FOLDER]
    assert comfy.get_bytes(f"/api/workflow_templates/{PACK_FOLDER}/quickstart.jpg")[:2] == b"\xff\xd8"
    workflow = comfy.get(f"/api/workflow_templates/{PACK_FOLDER}/quickstart.json")
    page.evaluate("workflow => window.app.loadGraphData(workflow)", workflow)
    page.wait_for_timeout(2000)
    missing = "window.app.graph._nodes.filter(n => !window.LiteGraph.registered_node_types[n.type]).map(n => n.type)"
    assert page.evaluate(missing) == []
    assert page.get_by_text("Missing Node").count() == 0
    wanted = {node_id: node["inputs"] for node_id, node in API.items()}
    prompt = page.evaluate("async () => (await window.app.graphToPrompt()).output")
    assert {node_id: node["inputs"] for node_id, node in prompt.items()} == wanted
    ours = [text for text in page.messages if "atelier" in text.lower() and text.startswith(("error", "warning"))]
    assert not ours, ours

    known = set(comfy.get("/history"))
    page.evaluate("() => window.app.queuePrompt(0)")
    prompt_id = _new_prompt(comfy, known)
    entry = comfy.wait(prompt_id, timeout_s=1800)
    assert entry["status"]["status_str"] == "success", entry["status"]
    page.wait_for_timeout(3000)
    (train_id,) = ids_of("AtelierTrainLora")
    shown = "id => window.app.graph.getNodeById(Number(id)).widgets.find(w => w.name === 'atelier_report')?.value"
    assert "steps" in (page.evaluate(shown, train_id) or "")
    page.screenshot(path=str(Path(os.environ.get("ATELIER_SCREENSHOTS", tmp_path)) / "quickstart.png"))


def _new_prompt(comfy: Comfy, known: set[str]) -> str:
    end = time.monotonic() + PAGE_S
    while time.monotonic() < end:
        queue = comfy.get("/queue")
        found = [entry[1] for entry in (*queue["queue_running"], *queue["queue_pending"])]
        found += [key for key in comfy.get("/history") if key not in known]
        if found:
            return str(found[0])
        time.sleep(0.2)
    raise AssertionError("the page queued nothing")
