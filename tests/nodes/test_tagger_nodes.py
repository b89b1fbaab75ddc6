"""The tagger's nodes over the built-in tagger: a data set, thresholds from the store, several taggers, a classifier."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.onnx_tagger import write_tagger
from lora_atelier.core.errors import FormatError, InputError, StorageError, UnknownNameError
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.nodes import host as host_module
from lora_atelier.nodes._confusion import confusion_plot
from lora_atelier.nodes._images import to_image, to_pil
from lora_atelier.nodes.classifier import ApplyTagClassifier, TrainTagClassifier
from lora_atelier.nodes.host import PICO_NAME
from lora_atelier.nodes.tag import TagImage
from lora_atelier.nodes.tag_dataset import EnsembleTaggers, TagDataset
from lora_atelier.tagger.classifier import Verdict
from lora_atelier.tagger.picking import PickParams
from lora_atelier.tagger.runner import open_tagger, pick


class TaggerHost(FakeHost):
    """Two made-up taggers beside the built-in name."""

    def tagger_names(self):
        return ["one", "two", PICO_NAME]

    def tagger_path(self, name):
        if name not in self.tagger_names():
            raise UnknownNameError(f"unknown tagger {name!r} (allowed: one, two)")
        return self.base / "taggers" / name


@pytest.fixture
def host(tmp_path, monkeypatch):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    found = TaggerHost(tmp_path)
    write_tagger(tmp_path / "taggers" / "one")
    write_tagger(tmp_path / "taggers" / "two", layout="NCHW", output="output", sigmoid=False, embedding=True)
    for module in ("tag", "tag_dataset", "classifier", "_taggers", "_index", "_images"):
        monkeypatch.setattr(f"lora_atelier.nodes.{module}.get_host", lambda: found)
    monkeypatch.setattr(host_module, "get_host", lambda: found)
    return found


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "input" / "set"
    random = np.random.default_rng(0)
    for name, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        (folder / f"2_{name}").mkdir(parents=True)
        for n in range(6):
            noise = random.integers(-20, 21, (16, 16, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"2_{name}" / f"{n}.png")
            (folder / f"2_{name}" / f"{n}.txt").write_text("site tag, long_hair", encoding="utf-8")
    return open_folder(folder, DatasetParams())


def test_tagging_and_another_threshold_from_the_store(host, dataset):
    answer = TagDataset().tag(dataset, "one", "append")
    tagged, report = answer["result"]
    rows = [row for row in range(12) if "2_red" in str(dataset.path(row))]
    assert tagged.caption(rows[0]).startswith("site tag, long_hair, hatsune miku (vocaloid), red")
    assert "blue" not in tagged.caption(rows[0])
    assert "0 from the score store, 12 tagged anew" in report
    assert "CPUExecutionProvider" in report
    assert answer["ui"]["text"] == [report]
    assert tagged.history[-1].startswith("tagged 12 pictures with one (append)")
    again, report = TagDataset().tag(dataset, "one", "overwrite", general_threshold=0.99, exclude="blu")["result"]
    assert "12 from the score store, 0 tagged anew" in report
    assert "the tagger knows no tag 'blu', did you mean 'blue'" in report
    assert len(again.tags.ids) < len(tagged.tags.ids)
    assert dataset.caption(0) == "site tag, long_hair"


def test_an_index_that_cannot_be_used_is_no_hindrance(host, dataset, monkeypatch):
    def refuse():
        raise StorageError("the index cannot be used")

    monkeypatch.setattr(host, "index", refuse)
    _, report = TagDataset().tag(dataset, "one", "append")["result"]
    assert "12 tagged anew" in report
    _, report = TagDataset().tag(dataset, "one", "append", general_threshold=0.9)["result"]
    assert "12 from the score store" in report


def test_an_image_scores_as_its_file_does(host, dataset):
    params = PickParams(include_rating=True, categories="all", general_threshold=0.05, character_threshold=0.05)
    tagged, _ = TagDataset().tag(dataset, "one", "overwrite", **params.to_json())["result"]
    tagger = open_tagger(host.tagger_path("one"))
    for row in range(12):
        picture = to_image([Image.open(dataset.path(row))])
        alone = {tag.name: tag.score for tag in pick(tagger.tag_image(to_pil(picture[0])), params)}
        assert tagged.tags.row(row) == tuple(alone)
    lines = TagImage().tag(to_image([Image.open(dataset.path(0))]), "one", **params.to_json())["result"]
    assert lines[0] == tagged.caption(0)


def test_several_taggers(host, dataset):
    tagged, report = EnsembleTaggers().tag(dataset, "one\ntwo = 0.5\n", "mean", "overwrite")["result"]
    assert "one: 12 pictures" in report
    assert "two: 12 pictures" in report
    assert {"red", "blue"} <= set(tagged.tag_counts())
    assert tagged.tag_counts()["red"] == 6
    _, report = EnsembleTaggers().tag(dataset, "one\ntwo", "max", "append", general_threshold=0.9)["result"]
    assert report.count("12 from the score store, 0 tagged anew") == 2


def test_a_missing_tagger_is_answered_with_the_files(host, dataset):
    said = TagDataset.VALIDATE_INPUTS("wd-vit-tagger-v9")
    assert "put model.onnx and selected_tags.csv" in said
    assert "folder 'wd-vit-tagger-v9' below the taggers model folder" in said
    assert TagDataset.VALIDATE_INPUTS("one") is True
    assert TagDataset.VALIDATE_INPUTS(None) is True
    with pytest.raises(InputError, match=r"tag_mapping\.json"):
        EnsembleTaggers().tag(dataset, "one\ncl_tagger_1_02", "mean", "append")


def test_nothing_is_written_into_the_folder(host, dataset):
    before = sorted((path.name, path.stat().st_mtime_ns) for path in Path(dataset.root).rglob("*"))
    TagDataset().tag(dataset, "one", "overwrite")
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in Path(dataset.root).rglob("*"))


@pytest.mark.parametrize("tagger", ["one", "two"])
def test_a_classifier_trained_and_applied(host, dataset, tagger):
    answer = TrainTagClassifier().train(dataset, "my shades", tagger)
    name, report, picture = answer["result"]
    assert name == "my shades"
    assert "held-out accuracy 100.0%" in report
    assert picture.shape[-1] == 3
    assert len(answer["ui"]["images"]) == 1
    messy = dataset.with_tags({0: ["x", "blue", "red"], 1: ["blue"]}, note="by hand")
    labelled, report = ApplyTagClassifier().apply(messy, name)["result"]
    label = "red" if "2_red" in str(dataset.path(0)) else "blue"
    assert labelled.caption(0) == f"x, {label}"
    assert labelled.caption(5).endswith(label)
    assert "12 from the score store, 0 tagged anew" in report


def test_a_classifier_whose_tagger_changed_is_refused(host, dataset, tmp_path):
    name = TrainTagClassifier().train(dataset, "shades", "one")["result"][0]
    write_tagger(tmp_path / "taggers" / "one", size_px=24)
    with pytest.raises(FormatError, match="other files of the tagger one"):
        ApplyTagClassifier().apply(dataset, name)


def test_names_that_will_not_do(host, dataset):
    with pytest.raises(InputError, match="there is no tag classifier"):
        ApplyTagClassifier().apply(dataset, "none such")
    with pytest.raises(InputError, match="classifier is empty"):
        ApplyTagClassifier().apply(dataset, " ")
    with pytest.raises(InputError, match=r"\.\."):
        ApplyTagClassifier().apply(dataset, "../../secrets")
    with pytest.raises(InputError, match="name is empty"):
        TrainTagClassifier().train(dataset, " ", "one")
    with pytest.raises(InputError, match="fine-tune needs model_folder"):
        TrainTagClassifier().train(dataset, "x", "one", method="fine-tune")


def test_plots_of_few_and_many_labels():
    for number in (2, 40):
        names = tuple(f"label number {n}" for n in range(number))
        confusion = np.random.default_rng(0).integers(0, 9, (number, number)) + 40 * np.eye(number, dtype=np.int64)
        picture = confusion_plot(Verdict(names=names, confusion=confusion), "a title")
        assert picture.mode == "RGB"
        assert picture.width > 300
