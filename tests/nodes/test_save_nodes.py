"""Saving, restoring, exporting and per-folder options through the nodes: only inside the allowed folders."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError
from lora_atelier.nodes.host import set_host


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    yield host
    set_host(None)


def run(node_id: str, **values: Any) -> Any:
    node = NODE_CLASS_MAPPINGS[node_id]
    declared = node.INPUT_TYPES()["required"]
    defaults = {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}
    answer = getattr(node(), node.FUNCTION)(**{**defaults, **values})
    return answer["result"] if isinstance(answer, dict) else answer


def opened(host: FakeHost) -> Any:
    folder = host.input_dir() / "2_mine"
    folder.mkdir(exist_ok=True)
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("by hand", encoding="utf-8")
    return run("AtelierOpenDataset", folder="2_mine", reg_folder="")[0]


def test_captions_are_saved_and_restored(host: FakeHost) -> None:
    dataset = opened(host).with_tags({0: ["zwx"], 1: ["zwx", "one"]}, note="x")
    before = NODE_CLASS_MAPPINGS["AtelierRestoreCaptions"].IS_CHANGED(backup="latest")
    same, report = run("AtelierSaveCaptions", dataset=dataset)
    assert same is dataset
    folder = host.input_dir() / "2_mine"
    assert (folder / "1.txt").read_text() == "zwx, one\n"
    assert "new files: 2" in report
    assert (host.user_dir() / "caption-backups").is_dir()
    assert NODE_CLASS_MAPPINGS["AtelierRestoreCaptions"].IS_CHANGED(backup="latest") != before
    (text,) = run("AtelierRestoreCaptions", backup="latest")
    assert "put back: 1" in text
    assert (folder / "0.txt").read_text() == "by hand"
    assert not (folder / "1.txt").exists()


def test_an_export_is_opened_again(host: FakeHost) -> None:
    dataset = opened(host)
    node = NODE_CLASS_MAPPINGS["AtelierExportDataset"]
    before = node.IS_CHANGED(folder="mine out")
    folder, report = run("AtelierExportDataset", dataset=dataset, folder="mine out")
    assert Path(folder) == host.output_dir() / "mine out"
    assert "Exported 3 pictures in 1 folder" in report
    assert node.IS_CHANGED(folder="mine out") != before
    again, _ = run("AtelierOpenDataset", folder=f"{folder}/dataset.toml", reg_folder="")
    assert again.repeats.tolist() == [2, 2, 2]


@pytest.mark.parametrize("name", ["", "../loras/x", "C:\\x", "aux", "a\0b", "/etc/x"])
def test_an_export_elsewhere_is_refused(host: FakeHost, name: str) -> None:
    dataset = opened(host)
    with pytest.raises(AtelierError):
        run("AtelierExportDataset", dataset=dataset, folder=name)
    assert NODE_CLASS_MAPPINGS["AtelierExportDataset"].IS_CHANGED(folder=name)


def test_options_of_a_folder(host: FakeHost) -> None:
    changed, report = run("AtelierSubsetOptions", dataset=opened(host), folders="mine", keep_tokens=3)
    assert changed.subsets[0].keep_tokens == 3
    assert "keep_tokens = 3" in report
