"""The shipped quickstart: over the API to a LoRA that has learned, and in the page of a real browser."""

import json
import time
from pathlib import Path
from typing import Any

from atelier_tests.helpers.browser import PAGE_S, open_template, screenshot
from atelier_tests.helpers.comfy_server import PACK, PACK_FOLDER, Comfy

API = json.loads((PACK / "api_workflows/quickstart.json").read_text(encoding="utf-8"))


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


def test_the_page_opens_the_workflow_and_queues_it(comfy: Comfy, page: Any, tmp_path: Path) -> None:
    prompt = open_template(comfy, page, PACK_FOLDER, "quickstart")
    wanted = {node_id: node["inputs"] for node_id, node in API.items()}
    assert {node_id: node["inputs"] for node_id, node in prompt.items()} == wanted

    known = set(comfy.get("/history"))
    page.evaluate("() => window.app.queuePrompt(0)")
    prompt_id = _new_prompt(comfy, known)
    entry = comfy.wait(prompt_id, timeout_s=1800)
    assert entry["status"]["status_str"] == "success", entry["status"]
    page.wait_for_timeout(3000)
    (train_id,) = ids_of("AtelierTrainLora")
    shown = "id => window.app.graph.getNodeById(Number(id)).widgets.find(w => w.name === 'atelier_report')?.value"
    assert "steps" in (page.evaluate(shown, train_id) or "")
    screenshot(page, "quickstart", tmp_path)


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
