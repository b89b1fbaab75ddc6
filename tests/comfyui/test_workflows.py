"""The shipped workflows that prepare data sets and train: over the API, and opened in the page of a real browser."""

import json
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.comfyui import graphs
from atelier_tests.helpers.browser import open_template, screenshot
from atelier_tests.helpers.comfy_server import PACK, PACK_FOLDER, Comfy
from atelier_tests.helpers.train_pages import OWN_SD15, OWN_SDXL, as_tested
from lora_atelier.nodes.host.protocol import PICO_NAME, PICO_XL_NAME

NAMES = ("prepare-character", "prepare-style")
SAYS = {
    "prepare-character": {
        "AtelierDatasetDoctor": "'lumo': lumo kest, lumo vard",
        "AtelierTagDataset": "pico-tagger, append: ",
        "AtelierBalanceRepeats": "Balance of 2 folders: 40 files, 168 seen per epoch",
        "AtelierDatasetProfile": "40 + 48 for regularisation",
        "AtelierTagDocument": "Tag document",
    },
    "prepare-style": {
        "AtelierDatasetDoctor": "Data set doctor: 64 pictures in 2 folders",
        "AtelierTagDataset": "pico-tagger, append: ",
        "AtelierBalanceRepeats": "Balance of 2 folders: 64 files, 96 seen per epoch",
        "AtelierTagDocument": "Tag document",
    },
}
"""What the nodes of each workflow must say, by class."""


def api_form(name: str) -> dict[str, Any]:
    form: dict[str, Any] = json.loads((PACK / f"api_workflows/{name}.json").read_text(encoding="utf-8"))
    return form


@pytest.mark.parametrize("name", NAMES)
def test_the_api_form_runs_to_its_report(comfy: Comfy, name: str) -> None:
    graph = api_form(name)
    outputs = comfy.run(graph, timeout_s=900)["outputs"]
    said = {graph[node_id]["class_type"]: "\n".join(shown.get("text", ())) for node_id, shown in outputs.items()}
    for class_type, part in SAYS[name].items():
        assert part in said[class_type], (class_type, said[class_type])
    pictures = [image for shown in outputs.values() for image in shown.get("images", ())]
    assert len(pictures) >= 7
    assert all(comfy.image(image)[:4] == b"\x89PNG" for image in pictures)


TRAINED = {
    "train-character-sd15": PICO_NAME,
    "train-character-sdxl": PICO_XL_NAME,
    "train-style": PICO_NAME,
    "compare-networks": PICO_NAME,
}
"""The workflows that train, and what stands in for a person's own model."""


@pytest.mark.parametrize("name", TRAINED)
def test_it_trains_and_compares(comfy: Comfy, name: str) -> None:
    """With a tiny model, drawings and few steps."""
    graphs.draw_folder(comfy.base / "input/mine", 4)
    form = as_tested(api_form(name), base_name=TRAINED[name], folder="mine")
    outputs = comfy.run(form, timeout_s=900)["outputs"]
    said = {form[node_id]["class_type"]: "\n".join(shown.get("text", ())) for node_id, shown in outputs.items()}
    assert "Saved as atelier/" in said["AtelierTrainLora"]
    sheets = [image for node_id, shown in outputs.items() for image in shown.get("images", ())
              if form[node_id]["class_type"] == "AtelierXYGrid"]  # fmt: skip
    assert sheets
    assert all(comfy.image(image)[:4] == b"\x89PNG" for image in sheets)


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "compare-networks"])
def test_without_ones_own_files_it_says_what_to_choose(comfy: Comfy, name: str) -> None:
    with pytest.raises(Exception, match=f"{OWN_SDXL if 'sdxl' in name else OWN_SD15}.*models/checkpoints"):
        comfy.run(api_form(name), timeout_s=60)


@pytest.mark.parametrize("name", [*NAMES, *TRAINED])
def test_the_page_opens_it(comfy: Comfy, page: Any, name: str, tmp_path: Path) -> None:
    prompt = open_template(comfy, page, PACK_FOLDER, name)
    wanted = {node_id: node["inputs"] for node_id, node in api_form(name).items()}
    assert {node_id: node["inputs"] for node_id, node in prompt.items()} == wanted
    screenshot(page, name, tmp_path)
