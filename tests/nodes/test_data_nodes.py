"""Opening folders and drawing pico data sets: names below the roots only; edits seen, drawing not taken for one."""

import os
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


def defaults(node_id: str) -> dict[str, Any]:
    declared = NODE_CLASS_MAPPINGS[node_id].INPUT_TYPES()["required"]
    return {name: entry[1]["default"] for name, entry in declared.items() if "default" in entry[1]}


def open_folder(folder: str, **changes: Any) -> Any:
    node = NODE_CLASS_MAPPINGS["AtelierOpenDataset"]()
    return node.open(**{**defaults("AtelierOpenDataset"), "folder": folder, **changes})


def make_folder(host: FakeHost, name: str = "mine") -> Path:
    folder = host.input_dir() / name
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a, b", encoding="utf-8")
    return folder


def test_a_folder_with_regularisation(host: FakeHost) -> None:
    make_folder(host)
    make_folder(host, "plain")
    dataset, report = open_folder("mine", reg_folder='"plain" ')
    assert (len(dataset), int(dataset.is_reg.sum())) == (6, 3)
    assert "6" in report or "3" in report


@pytest.mark.parametrize("name", ["", "../loras", "nothing", "/", "C:\\data", "mine\0", "mine/../../loras"])
def test_names_outside_are_refused(host: FakeHost, name: str) -> None:
    make_folder(host)
    with pytest.raises(AtelierError):
        open_folder(name)
    assert NODE_CLASS_MAPPINGS["AtelierOpenDataset"].IS_CHANGED(folder=name)


def test_edits_are_seen(host: FakeHost) -> None:
    folder = make_folder(host)
    node = NODE_CLASS_MAPPINGS["AtelierOpenDataset"]
    states = [node.IS_CHANGED(folder="mine", reg_folder="")]
    assert node.IS_CHANGED(folder="mine", reg_folder="") == states[0]
    (folder / "0.txt").write_text("a, b, c", encoding="utf-8")
    states.append(node.IS_CHANGED(folder="mine", reg_folder=""))
    (folder / "2.png").unlink()
    states.append(node.IS_CHANGED(folder="mine", reg_folder=""))
    assert len(set(states)) == 3


def test_edits_of_captions_with_another_ending_are_seen(host: FakeHost) -> None:
    folder = make_folder(host)
    node = NODE_CLASS_MAPPINGS["AtelierOpenDataset"]
    (folder / "0.words").write_text("a", encoding="utf-8")
    wanted = {"folder": "mine", "reg_folder": "", "caption_extension": ".Words"}
    before = node.IS_CHANGED(**wanted)
    usual = node.IS_CHANGED(folder="mine", reg_folder="")
    (folder / "0.words").write_text("a, b", encoding="utf-8")
    assert node.IS_CHANGED(**wanted) != before
    assert node.IS_CHANGED(folder="mine", reg_folder="") == usual


@pytest.mark.skipif(os.name == "nt", reason="links need a right on Windows")
def test_edits_behind_a_link_into_another_allowed_folder_are_seen(host: FakeHost) -> None:
    folder = make_folder(host)
    elsewhere = host.output_dir() / "more"
    elsewhere.mkdir()
    Image.new("RGB", (64, 64)).save(elsewhere / "9.png")
    (folder / "more").symlink_to(elsewhere)
    node = NODE_CLASS_MAPPINGS["AtelierOpenDataset"]
    before = node.IS_CHANGED(folder="mine", reg_folder="")
    assert len(open_folder("mine")[0]) == 4
    (elsewhere / "9.txt").write_text("new", encoding="utf-8")
    assert node.IS_CHANGED(folder="mine", reg_folder="") != before


def test_edits_of_what_a_site_says_are_seen_and_other_files_are_not(host: FakeHost) -> None:
    folder = make_folder(host)
    node = NODE_CLASS_MAPPINGS["AtelierOpenDataset"]
    states = [node.IS_CHANGED(folder="mine", reg_folder="")]
    for name in ("0.png.json", "1.json", ".2_meta.json", "meta_cap.json", "1.tags"):
        (folder / name).write_text("{}", encoding="utf-8")
        states.append(node.IS_CHANGED(folder="mine", reg_folder=""))
    (folder / "notes.json").write_text("{}", encoding="utf-8")
    assert node.IS_CHANGED(folder="mine", reg_folder="") == states[-1]
    assert len(set(states)) == 6


def test_a_toml_file_is_opened_and_edits_of_what_it_names_are_seen(host: FakeHost) -> None:
    folder = make_folder(host)
    config = host.input_dir() / "set.toml"
    config.write_text("[[datasets]]\n[[datasets.subsets]]\nimage_dir = 'mine'\nnum_repeats = 2\n", encoding="utf-8")
    node = NODE_CLASS_MAPPINGS["AtelierOpenDataset"]
    dataset, report = open_folder("set.toml")
    assert dataset.repeats.tolist() == [2, 2, 2]
    assert "Read 'set.toml' as a kohya configuration" in report
    before = node.IS_CHANGED(folder="set.toml", reg_folder="")
    (folder / "0.txt").write_text("a, b, c", encoding="utf-8")
    after = node.IS_CHANGED(folder="set.toml", reg_folder="")
    config.write_text(config.read_text(encoding="utf-8") + "# edited\n", encoding="utf-8")
    assert len({before, after, node.IS_CHANGED(folder="set.toml", reg_folder="")}) == 3


def test_drawing_is_not_taken_for_an_edit(host: FakeHost) -> None:
    node = NODE_CLASS_MAPPINGS["AtelierPicoDataset"]
    wanted = {"concept": "kest", "num_images": 2, "num_reg_images": 2, "seed": 0}
    before = node.IS_CHANGED(**wanted)
    folder, reg_folder = node().draw(**wanted)
    assert node.IS_CHANGED(**wanted) == before
    dataset, _ = open_folder(folder, reg_folder=reg_folder)
    assert len(dataset) == 4
    caption = next((host.input_dir() / folder).rglob("*.txt"))
    caption.write_text("edited", encoding="utf-8")
    assert node.IS_CHANGED(**wanted) != before
    node().draw(**wanted)
    assert caption.read_text(encoding="utf-8") == "edited"


def test_prompts_with_trigger_and_tag(host: FakeHost) -> None:
    node = NODE_CLASS_MAPPINGS["AtelierPicoPrompts"]()
    prompts, trigger, tag = node.write(concept="vard", kind="trigger", num_prompts=5, seed=0)
    assert (len(prompts.splitlines()), trigger, tag) == (5, "lumo vard", "cross, halo, spots")
