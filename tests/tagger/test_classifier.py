"""A classifier of one's own: examples, training both ways, and its label as the arbiter of a group."""

import errno
import json

import numpy as np
import pytest
import torch
from PIL import Image

from atelier_tests.helpers.onnx_tagger import write_tagger
from atelier_tests.helpers.progress import CancelAfter
from lora_atelier.core.errors import FormatError, InputError, StorageError
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.tensors import read_tensors, write_tensors
from lora_atelier.dataset.columns import SOURCES, TagColumn
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.tagger.classifier import (
    FINE_TUNED,
    ClassifierParams,
    examples_from_folders,
    examples_from_tags,
    examples_of,
    label_weights,
    read_info,
    split,
    verdict,
)
from lora_atelier.tagger.classifier_apply import ApplyParams, with_labels
from lora_atelier.tagger.classifier_linear import (
    WEIGHTS_FILE,
    feature_scorer,
    fit,
    predict_linear,
    read_linear,
    train_linear,
)
from lora_atelier.tagger.pipeline import score_dataset
from lora_atelier.tagger.runner import open_tagger

SHADES = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200)}


@pytest.fixture
def labelled(tmp_path):
    """A folder per label with noisy pictures of its colour."""
    random = np.random.default_rng(0)
    for label, colour in SHADES.items():
        folder = tmp_path / "labelled" / f"3_{label}"
        folder.mkdir(parents=True)
        for n in range(14):
            noise = random.integers(-60, 61, (20, 20, 3)) + random.integers(-40, 41, 3)
            Image.fromarray(np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)).save(folder / f"{n}.png")
    return open_folder(tmp_path / "labelled", DatasetParams())


@pytest.fixture
def tagger(tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return open_tagger(write_tagger(tmp_path / "tiny", embedding=True), threads=1)


def train(dataset, tagger, index, folder, **params):
    settings = ClassifierParams(**params)
    return train_linear(
        dataset, examples_of(dataset, settings), tagger, index, settings, folder, tagger_name="tiny"
    )  # fmt: skip


# examples ------------------------------------------------------------------------------------------------------
def test_labels_by_folder(labelled):
    examples = examples_from_folders(labelled)
    assert examples.names == ("blue", "green", "red")
    assert examples.counts().tolist() == [14, 14, 14]
    for row, label in zip(examples.rows, examples.labels, strict=True):
        assert examples.names[label] in str(labelled.path(row).parent)


def test_labels_by_exclusive_tags(make_dataset):
    captions = {0: "big_hat, x", 1: "small hat", 2: "Big Hat", 3: "big hat, small hat", 4: "y", 5: "small_hat"}
    examples = examples_from_tags(make_dataset(7, captions=captions), ["big hat", "small hat"])
    assert dict(zip(examples.rows.tolist(), examples.labels.tolist(), strict=True)) == {0: 0, 1: 1, 2: 0, 5: 1}
    assert examples.left_out == 3


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ("big hat", "two or more labels, found was only 'big hat'"),
        ("", "two or more labels, found was none"),
        ("big hat, bg hat", "'bg hat' matched 0 images, did you mean 'big hat'"),
        ("big hat, rare", "'rare' has 1 pictures"),
    ],
)
def test_labels_that_will_not_do(make_dataset, tags, message):
    captions = {0: "big hat", 1: "big hat", 2: "rare"}
    with pytest.raises(InputError, match=message):
        examples_of(make_dataset(4, captions=captions), ClassifierParams(labels_from="tags", tags=tags))


def test_one_folder_is_no_set_of_labels(make_dataset):
    with pytest.raises(InputError, match="one folder per label"):
        examples_from_folders(make_dataset(4))


def test_split_keeps_some_of_every_label_on_both_sides(labelled):
    examples = examples_from_folders(labelled)
    learn, test = split(examples, held_out=0.2, seed=1)
    assert not set(learn) & set(test)
    assert len(learn) + len(test) == 42
    assert np.bincount(examples.labels[test]).tolist() == [3, 3, 3]
    assert np.array_equal(test, split(examples, held_out=0.2, seed=1)[1])
    assert not np.array_equal(test, split(examples, held_out=0.2, seed=2)[1])


def test_verdict_counts():
    found = verdict(("a", "b"), np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert found.confusion.tolist() == [[1, 1], [0, 2]]
    assert (found.accuracy, found.chance) == (0.75, 0.5)
    assert "a: 1 of 2, 1 taken for b" in found.text()
    assert label_weights(np.array([0, 0, 0, 1]), 2, balanced=True) == pytest.approx([2 / 3, 2.0])


# logistic regression -------------------------------------------------------------------------------------------
def test_fit_finds_the_minimum():
    """The gradient of the penalised loss vanishes, by the plain formula in numpy."""
    random = np.random.default_rng(0)
    x = random.standard_normal((60, 5)).astype(np.float32)
    y = (x[:, 0] + 0.5 * random.standard_normal(60) > 0).astype(np.int64)
    model = fit(x, y, 2, l2=0.1, balanced=False)
    standard = (x - model.mean) / model.deviation
    errors = model.probabilities(x).astype(np.float64)
    errors[np.arange(60), y] -= 1.0
    gradient = errors.T @ standard / 60 + 0.1 * model.weight
    assert np.abs(gradient).max() < 2e-3
    assert np.abs(errors.mean(axis=0)).max() < 2e-3


def test_features_that_never_change_are_left_out_and_nothing_else_is_refused():
    x = np.ones((6, 3), np.float32)
    with pytest.raises(InputError, match="says the same of every picture"):
        fit(x, np.array([0, 1] * 3), 2, l2=0.1)
    x[:, 1] = np.arange(6)
    assert fit(x, np.array([0, 1] * 3), 2, l2=0.1).columns.tolist() == [1]


@pytest.mark.parametrize("embedding", [True, False])
def test_trained_tested_saved_and_read_again(tmp_path, labelled, index, embedding):
    pytest.importorskip("onnx")
    tagger = open_tagger(write_tagger(tmp_path / "t", embedding=embedding), threads=1)
    folder = tmp_path / "classifier"
    found, scored = train(labelled, tagger, index, folder)
    assert found.accuracy > 0.9
    assert found.confusion.sum() == 9
    assert scored.inferred == 42
    info = read_info(folder)
    assert info["labels"] == ["blue", "green", "red"]
    assert info["accuracy"] == pytest.approx(found.accuracy)
    assert info["features"] == (9 if embedding else 17)
    scorer = feature_scorer(tagger)
    assert scorer.identity == info["tagger_identity"]
    chances, again = predict_linear(labelled, read_linear(folder, 3), scorer, index)
    assert again.inferred == 0
    assert chances.sum(axis=1) == pytest.approx(np.ones(42), abs=1e-5)
    labels = examples_from_folders(labelled).labels
    assert (chances.argmax(axis=1) == labels).mean() > 0.9


def test_a_picture_that_cannot_be_read_has_no_label(labelled, tagger, index, tmp_path):
    train(labelled, tagger, index, tmp_path / "c")
    labelled.path(3).write_bytes(b"broken")
    dataset = open_folder(labelled.root, DatasetParams())
    if len(dataset) < 42:  # the scan has noticed it already
        dataset = labelled
    chances, scored = predict_linear(dataset, read_linear(tmp_path / "c", 3), feature_scorer(tagger), index)
    bad = np.isnan(chances).all(axis=1)
    assert bad.sum() == len(scored.failed)


def test_weights_of_another_classifier_are_refused(labelled, tagger, index, tmp_path):
    folder = tmp_path / "c"
    train(labelled, tagger, index, folder)
    with pytest.raises(FormatError, match="does not fit its 2 labels"):
        read_linear(folder, 2)
    tensors = read_tensors(folder / WEIGHTS_FILE)
    write_tensors(folder / WEIGHTS_FILE, {**tensors, "mean": torch.zeros(2)})
    with pytest.raises(FormatError, match="train it anew"):
        read_linear(folder, 3)


def test_info_that_is_none_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"lacks classifier\.json"):
        read_info(tmp_path)
    for info, message in (
        ({"labels": ["a"]}, "train it anew"),
        ({"labels": ["a", "b"], "method": "x"}, "train it anew"),
    ):
        (tmp_path / "classifier.json").write_text(json.dumps(info), encoding="utf-8")
        with pytest.raises(FormatError, match=message):
            read_info(tmp_path)
    good = {"labels": ["a", "b"], "method": FINE_TUNED, "format": 99}
    (tmp_path / "classifier.json").write_text(json.dumps(good), encoding="utf-8")
    with pytest.raises(FormatError, match="format 99"):
        read_info(tmp_path)


# fine-tuning ---------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def tiny_vit(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8,
        num_labels=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vit")
    transformers.ViTForImageClassification(config).save_pretrained(str(folder), safe_serialization=True)
    facts = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def finetune(dataset, model, folder, *, progress=None, **params):
    from lora_atelier.tagger.classifier_finetune import train_finetuned

    settings = ClassifierParams(method=FINE_TUNED, **params)
    return train_finetuned(
        dataset, examples_of(dataset, settings), model, settings, folder, device=torch.device("cpu"), progress=progress
    )


def test_fine_tuned_on_a_local_model(labelled, tiny_vit, index, tmp_path):
    from lora_atelier.tagger.classifier_finetune import ImageClassifier

    folder = tmp_path / "tuned"
    found = finetune(labelled, tiny_vit, folder, epochs=6, learning_rate=5e-3)
    assert found.accuracy > 0.7
    assert read_info(folder)["labels"] == ["blue", "green", "red"]
    assert not list(folder.rglob("*.bin"))
    classifier = ImageClassifier(folder, ("blue", "green", "red"), torch.device("cpu"))
    scored = score_dataset(labelled, classifier, index)
    said = scored.scores.dense(3).argmax(axis=1)
    assert (said == examples_from_folders(labelled).labels).mean() > 0.7
    assert score_dataset(labelled, classifier, index).from_store == 42
    with pytest.raises(FormatError, match="2 labels"):
        ImageClassifier(folder, ("a", "b"), torch.device("cpu"))


def test_fine_tuning_can_be_cancelled_and_leaves_nothing(labelled, tiny_vit, tmp_path):
    with pytest.raises(Cancelled):
        finetune(labelled, tiny_vit, tmp_path / "tuned", progress=CancelAfter(3))
    assert not (tmp_path / "tuned").exists()


def test_an_older_model_stays_where_the_new_one_cannot_be_written(labelled, tiny_vit, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    finetune(labelled, tiny_vit, tmp_path / "tuned", epochs=1)
    before = (tmp_path / "tuned" / "model" / "model.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transformers.ViTForImageClassification, "save_pretrained", full)
    with pytest.raises(StorageError, match="the disk is full"):
        finetune(labelled, tiny_vit, tmp_path / "tuned", epochs=1)
    assert (tmp_path / "tuned" / "model" / "model.safetensors").read_bytes() == before
    monkeypatch.undo()
    finetune(labelled, tiny_vit, tmp_path / "tuned", epochs=2)
    assert (tmp_path / "tuned" / "model" / "model.safetensors").read_bytes() != before


def test_the_same_seed_gives_the_same_weights(labelled, tiny_vit, tmp_path):
    for name in ("one", "two"):
        finetune(labelled, tiny_vit, tmp_path / name, epochs=1, seed=5)
    one, two = (read_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert all(torch.equal(tensor, two[key]) for key, tensor in one.items())


def test_folders_without_a_model_are_refused(labelled, tiny_vit, tmp_path):
    pytest.importorskip("transformers")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"put config\.json, model\.safetensors"):
        finetune(labelled, tmp_path / "empty", tmp_path / "c")
    (tmp_path / "empty" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "empty" / "model.safetensors").write_bytes(b"no")
    with pytest.raises(FormatError, match="cannot be loaded as an image-classification model"):
        finetune(labelled, tmp_path / "empty", tmp_path / "c")


# the label as arbiter ------------------------------------------------------------------------------------------
NAMES = ("small hat", "big hat", "_none")


def settle(rows, chances, **params):
    column = TagColumn.from_rows(rows)
    table = np.array(chances, np.float32)
    return with_labels(column, NAMES, table, np.arange(len(rows), dtype=np.int64), ApplyParams(**params))


def test_the_label_takes_the_place_of_its_group():
    result, rules = settle(
        [("x", "small_hat", "y", "Big Hat"), ("big hat", "z"), ("x",), ("small hat", "q"), ("small hat", "big hat")],
        [(0.1, 0.9, 0.0), (0.8, 0.2, 0.0), (0.6, 0.4, 0.0), (0.1, 0.2, 0.7), (0.4, 0.35, 0.25)],
    )
    assert [result.row(row) for row in range(5)] == [
        ("x", "y", "Big Hat"),  # it is there already: it stays where it is
        ("small hat", "z"),  # it takes the place of the other
        ("x", "small hat"),  # it is new
        ("q",),  # none of them
        ("small hat", "big hat"),  # not sure enough: nothing is touched
    ]
    by_rule = {rule.rule: rule for rule in rules}
    assert by_rule["label small hat"].touched == 2
    assert by_rule["left alone, not sure enough"].touched == 1
    assert by_rule["label big hat"].removed == 1


def test_probability_and_source_are_kept():
    result, _ = settle([("x", "small hat", "big hat"), ("y",)], [(0.1, 0.9, 0.0), (0.75, 0.25, 0.0)])
    assert result.row(0) == ("x", "big hat")
    assert result.scores[1] == np.float16(0.9)
    assert [SOURCES[n] for n in result.sources] == ["caption", "classifier", "caption", "classifier"]
    assert result.scores[3] == np.float16(0.75)
    assert np.isnan(result.scores[0])


def test_only_where_the_group_is_and_without_taking_out():
    rows = [("x",), ("small hat", "y")]
    chances = [(0.9, 0.1, 0.0), (0.1, 0.9, 0.0)]
    result, _ = settle(rows, chances, where="where a tag of the group is")
    assert [result.row(row) for row in range(2)] == [("x",), ("big hat", "y")]
    result, _ = settle(rows, chances, replace_group=False)
    assert [result.row(row) for row in range(2)] == [("x", "small hat"), ("small hat", "y", "big hat")]


def test_twice_is_once():
    rows = [("x", "small_hat", "y", "Big Hat"), ("big hat", "z"), ("x",), ("small hat", "small_hat")]
    chances = [(0.1, 0.9, 0.0), (0.8, 0.2, 0.0), (0.6, 0.4, 0.0), (0.9, 0.1, 0.0)]
    once, _ = settle(rows, chances)
    assert once.row(3) == ("small hat",)
    twice, _ = with_labels(once, NAMES, np.array(chances, np.float32), np.arange(4, dtype=np.int64), ApplyParams())
    assert [once.row(row) for row in range(4)] == [twice.row(row) for row in range(4)]


def test_pictures_without_an_answer_are_left_alone():
    result, _ = settle([("small hat", "big hat")], [(np.nan, np.nan, np.nan)])
    assert result.row(0) == ("small hat", "big hat")
