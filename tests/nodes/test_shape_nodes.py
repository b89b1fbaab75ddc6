"""The nodes that choose and cut pictures: filter, stages, combine, regularisation, masks, focal points, crops."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.fake_host import FakeHost
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError, InputError, StorageError
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.nodes.host import PICO_NAME, set_host
from lora_atelier.pico.datasets import write_concept_dataset
from lora_atelier.pico.judge import TAGGER_FOLDER
from lora_atelier.tagger import runner


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    yield host
    set_host(None)


@pytest.fixture
def drawn(host: FakeHost) -> Any:
    folder = host.input_dir() / "drawn"
    write_concept_dataset(folder, "kest", num_images=5, num_reg_images=4, seed=0)
    return open_folder(folder / "img", DatasetParams(), reg_folder=folder / "reg")


def run(node_id: str, **inputs: Any) -> tuple[Any, ...]:
    """The node's outputs; its report is also what it shows."""
    node = NODE_CLASS_MAPPINGS[node_id]
    declared = node.INPUT_TYPES()["required"]
    defaults = {
        name: entry[1]["default"] if "default" in entry[1] else entry[0][0]
        for name, entry in declared.items()
        if "default" in entry[1] or isinstance(entry[0], list)
    }
    answer = getattr(node(), node.FUNCTION)(**{**defaults, **inputs})
    assert answer["ui"]["text"] == [answer["result"][-1]]
    for picture in answer["ui"].get("images", []):
        assert picture["type"] == "temp"
    return answer["result"]


def test_filter_by_tags_and_by_duplicates(drawn: Any, host: FakeHost) -> None:
    kept, rejected, report = run("AtelierFilterDataset", dataset=drawn, query="lumo kest and not is:reg")
    assert (len(kept), len(rejected)) == (5, 4)
    assert "lumo kest: 5 pictures" in report
    shutil.copy(drawn.path(0), drawn.path(0).with_name("copy.png"))
    again = open_folder(drawn.root, DatasetParams())
    kept, rejected, _ = run("AtelierFilterDataset", dataset=again, query="not is:duplicate")
    assert (len(kept), len(rejected)) == (5, 1)
    listed, _, _ = run("AtelierFilterDataset", dataset=again, query="is:listed", names="copy\n0001.png\n\n")
    assert sorted(listed.names) == ["0001.png", "copy.png"]


def test_a_damaged_picture_is_no_duplicate_of_another(drawn: Any) -> None:
    for row in (0, 1):
        drawn.path(row).write_bytes(drawn.path(row).read_bytes()[:150])
    kept, _, _ = run("AtelierFilterDataset", dataset=drawn, query="duplicates = 0")
    assert len(kept) == len(drawn)


def test_stages(drawn: Any) -> None:
    first, second, report = run("AtelierSplitStages", dataset=drawn, first_query="white background or pink background")
    assert len(first) + len(second) == 5 + 2 * 4
    assert "Stage split" in report


def test_combine_and_mark(drawn: Any) -> None:
    kept, rejected, _ = run("AtelierFilterDataset", dataset=drawn, query="not is:reg")
    training, _ = run("AtelierMarkRegularisation", dataset=rejected, is_reg=False)
    combined, report = run("AtelierCombineDatasets", dataset_1=kept, dataset_3=None, reg_2=training)
    assert (len(combined), int(combined.is_reg.sum())) == (9, 4)
    assert "Combined 2 data sets" in report
    marked, _ = run("AtelierMarkRegularisation", dataset=kept, prior_weight=0.3, query="name:0000*")
    assert marked.is_reg.tolist() == [True, False, False, False, False]


def test_masks_from_a_folder(drawn: Any, host: FakeHost) -> None:
    folder = host.input_dir() / "masks"
    folder.mkdir()
    node = NODE_CLASS_MAPPINGS["AtelierSetMasks"]
    before = node.IS_CHANGED(mask_folder="masks")
    size = int(drawn.width_px[0]), int(drawn.height_px[0])
    Image.new("L", size, 255).save(folder / "0000.png")
    assert node.IS_CHANGED(mask_folder="masks") != before
    masked, report = run("AtelierSetMasks", dataset=drawn.take([0, 1], note="x"), source="files", mask_folder="masks")
    assert masked.mask(0) == folder / "0000.png"
    assert masked.mask(1) == ""
    assert "0000.png: 100% of the picture counts" in report
    cleared, _ = run("AtelierSetMasks", dataset=masked, source="none")
    assert cleared.masks is None


def test_focal_points_with_the_pico_detector(drawn: Any) -> None:
    focused, report = run("AtelierFocalCrop", dataset=drawn, boxes="detector", detector_name=PICO_NAME)
    assert np.isfinite(focused.focus).all()
    assert "A face on" in report
    assert "Focal points for 9 of 9 pictures" in report
    centred, _ = run("AtelierFocalCrop", dataset=focused, mode="centre", boxes="none")
    assert centred.focus is None


def test_crops_with_the_pico_detector_and_captions_that_fit(drawn: Any, host: FakeHost) -> None:
    shutil.copytree(TAGGER_FOLDER, host.base / "tagger")
    wanted = {"train_width_px": 96, "train_height_px": 96, "max_upscale": 0.0, "detector_name": PICO_NAME}
    both, heads, persons, report = run("AtelierSubjectCrops", dataset=drawn, **wanted)
    assert (len(both), len(heads), len(persons)) == (14, 5, 5)
    assert both.is_reg.tolist() == [False] * 5 + [True] * 9
    assert list(heads.names) == list(persons.names)
    assert heads.caption(0) == drawn.caption(0)
    assert "5 body, 5 head" in report
    both, heads, persons, report = run("AtelierSubjectCrops", dataset=drawn, tagger_name=PICO_NAME, **wanted)
    assert all(heads.caption(row).startswith("lumo kest") for row in range(5))
    assert all(set(heads.tags.row(row)) <= set(drawn.tags.row(row)) for row in range(5))
    assert [both.caption(row) for row in range(5)] == [heads.caption(row) for row in range(5)]
    assert [both.caption(row) for row in range(5, 10)] == [persons.caption(row) for row in range(5)]
    assert "Captions of crops (intersect)" in report


def test_crops_are_tagged_once_for_all_thresholds(drawn: Any, host: FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(TAGGER_FOLDER, host.base / "tagger")
    wanted = {"train_width_px": 96, "train_height_px": 96, "max_upscale": 0.0, "detector_name": PICO_NAME}
    looked: list[int] = []
    real = runner.Tagger.tag_image

    def counted(self: Any, image: Any) -> Any:
        looked.append(1)
        return real(self, image)

    monkeypatch.setattr(runner.Tagger, "tag_image", counted)
    captions = []
    for threshold in (0.0, 0.3, 0.99):
        both, *_ = run(
            "AtelierSubjectCrops", dataset=drawn, tagger_name=PICO_NAME, captions="tagger only",
            tagger_threshold=threshold, **wanted,
        )  # fmt: skip
        captions.append([set(both.tags.row(row)) for row in range(10)])
    assert len(looked) == 14 - 4  # every crop once; pictures that are not cropped are left alone
    assert all(few <= many for few, many in zip(captions[2], captions[1], strict=True))
    assert captions[2] != captions[1]


def test_crops_from_box_files_and_names(drawn: Any, host: FakeHost) -> None:
    place = host.input_dir() / "boxes.json"
    place.write_text(json.dumps({"0001": [[10, 10, 40, 40]]}), encoding="utf-8")
    wanted = {"train_width_px": 32, "train_height_px": 32}
    node = NODE_CLASS_MAPPINGS["AtelierSubjectCrops"]
    state = {"boxes": "box files", "detector_name": PICO_NAME, "box_place": "boxes.json", "tagger_name": "x"}
    before = node.IS_CHANGED(**state)
    training = drawn.take(range(5), note="x")
    _, heads, persons, report = run(
        "AtelierSubjectCrops", dataset=training, boxes="box files", box_place="boxes.json", **wanted
    )
    assert (len(heads), len(persons)) == (1, 1)
    assert "4 pictures without a head" in report
    place.write_text(json.dumps({"0001": [[10, 10, 41, 40]]}), encoding="utf-8")
    assert node.IS_CHANGED(**state) != before
    with pytest.raises(AtelierError, match="no file name ends in a box _cx_cy_w_h"):
        run("AtelierSubjectCrops", dataset=training, boxes="file names", **wanted)


def test_a_missing_detector_is_answered_with_the_file_and_its_place(drawn: Any, host: FakeHost) -> None:
    for node_id in ("AtelierSubjectCrops", "AtelierFocalCrop"):
        node = NODE_CLASS_MAPPINGS[node_id]
        refusal = node.VALIDATE_INPUTS(boxes="detector", detector_name="face.onnx")
        assert "unknown detector 'face.onnx'" in refusal
        assert str(host.base / "detectors") in refusal
        assert node.VALIDATE_INPUTS(boxes="file names", detector_name="face.onnx") is True
        with pytest.raises(InputError, match="put a detection model exported to ONNX"):
            run(node_id, dataset=drawn, boxes="detector", detector_name="face.onnx")


def test_places_outside_are_refused(drawn: Any) -> None:
    with pytest.raises(StorageError, match="lies outside the allowed folders"):
        run("AtelierSubjectCrops", dataset=drawn, boxes="box files", box_place=str(Path(__file__).parent))
    with pytest.raises(StorageError, match="lies outside the allowed folders"):
        run("AtelierSetMasks", dataset=drawn, source="files", mask_folder=str(Path(__file__).parent))
    with pytest.raises(InputError, match="there is no mask folder 'nowhere'"):
        run("AtelierSetMasks", dataset=drawn, source="files", mask_folder="nowhere")
