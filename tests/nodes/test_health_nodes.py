"""Doctor, profile, balance, previews, tag reports as nodes: what goes in comes out, files only where asked for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.sick_folder import put, sketch
from lora_atelier import NODE_CLASS_MAPPINGS
from lora_atelier.core.errors import AtelierError, InputError
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset
from lora_atelier.nodes.host import set_host

LOOKING = (
    "AtelierDatasetDoctor",
    "AtelierDatasetProfile",
    "AtelierContactSheet",
    "AtelierBucketPreview",
    "AtelierTagPlots",
    "AtelierTagBleeding",
    "AtelierTagDocument",
)


@pytest.fixture
def host(tmp_path: Path) -> Any:
    host = FakeHost(tmp_path)
    set_host(host)
    yield host
    set_host(None)


@pytest.fixture
def dataset(host: FakeHost) -> Dataset:
    root = host.input_dir() / "set"
    for seed in range(4):
        put(root / "1_a~kayoko", f"{seed}.png", sketch(seed, (160, 160)), f"kayoko, 1girl, aiming, hat {seed}")
    put(root / "1_b", "0.png", sketch(9, (200, 100)), "style, aiming at viewer")
    return open_folder(root, DatasetParams())


def run(node_id: str, dataset: Dataset, **changes: Any) -> dict[str, Any]:
    node = NODE_CLASS_MAPPINGS[node_id]
    declared = node.INPUT_TYPES()["required"]
    values = {}
    for name, entry in declared.items():
        options = entry[1] if len(entry) > 1 else {}
        values[name] = options.get("default", entry[0][0] if isinstance(entry[0], list) else None)
    if "resolution_px" in values:
        values["resolution_px"] = 256
    return getattr(node(), node.FUNCTION)(**{**values, "dataset": dataset, **changes})  # type: ignore[no-any-return]


def by_name(node_id: str, answer: dict[str, Any]) -> dict[str, Any]:
    return dict(zip(NODE_CLASS_MAPPINGS[node_id].RETURN_NAMES, answer["result"], strict=True))


def files_of(host: FakeHost) -> set[Path]:
    return {path for folder in ("input", "output") for path in (host.base / folder).rglob("*") if path.is_file()}


@pytest.mark.parametrize("node_id", LOOKING)
def test_looking_changes_nothing_and_shows_its_report(node_id: str, host: FakeHost, dataset: Dataset) -> None:
    before = files_of(host)
    answer = run(node_id, dataset)
    out = by_name(node_id, answer)
    assert out["dataset"] is dataset
    assert answer["ui"]["text"] == [out["report"]]
    assert files_of(host) == before
    for name, kind in zip(
        NODE_CLASS_MAPPINGS[node_id].RETURN_NAMES, NODE_CLASS_MAPPINGS[node_id].RETURN_TYPES, strict=True
    ):
        if kind == "IMAGE":
            assert out[name].ndim == 4
            assert 0.0 <= float(out[name].min()) <= float(out[name].max()) <= 1.0
        if name.endswith("_json"):
            json.loads(out[name])


@pytest.mark.parametrize("node_id", ["AtelierDatasetDoctor", "AtelierDatasetProfile", "AtelierContactSheet",
                                     "AtelierBucketPreview", "AtelierBalanceRepeats"])  # fmt: skip
def test_an_empty_data_set_is_refused_in_words(node_id: str, dataset: Dataset) -> None:
    with pytest.raises(InputError, match="holds no pictures|no training folder"):
        run(node_id, dataset.take([], note="nothing left"))


@pytest.mark.parametrize("node_id", ["AtelierTagBleeding", "AtelierTagDocument"])
def test_tag_reports_of_nothing(node_id: str, dataset: Dataset) -> None:
    assert run(node_id, dataset.take([], note="nothing left"))["result"][1]


def test_the_doctor_remembers_in_the_hosts_index(host: FakeHost, dataset: Dataset) -> None:
    run("AtelierDatasetDoctor", dataset)
    assert host.index().count("phash:1") == len(dataset)


def test_balance_sets_repeats_and_writes_nothing_by_itself(host: FakeHost, dataset: Dataset) -> None:
    before = files_of(host)
    out = by_name("AtelierBalanceRepeats", run("AtelierBalanceRepeats", dataset))
    assert [subset.repeats for subset in out["dataset"].subsets] == [1, 4]
    assert out["text"] == "1_a~kayoko\n4_b\n"
    assert files_of(host) == before


def test_balance_writes_on_demand(host: FakeHost, dataset: Dataset) -> None:
    answer = run(
        "AtelierBalanceRepeats", dataset, form="kohya TOML", write="the text, as a file", file_name="plans/mine"
    )
    assert (host.output_dir() / "plans" / "mine.toml").read_text(encoding="utf-8") == answer["result"][2]
    assert "Wrote 1 file" in answer["result"][1]
    run("AtelierBalanceRepeats", dataset, write="multiply.txt into the folders")
    written = sorted((host.input_dir() / "set").rglob("multiply.txt"))
    assert [path.read_text(encoding="utf-8") for path in written] == ["1\n", "4\n"]


def test_a_plain_folder_is_split_on_demand(host: FakeHost) -> None:
    root = host.input_dir() / "plain"
    for folder, count in (("x", 4), ("y", 1)):
        for seed in range(count):
            put(root / folder, f"{seed}.png", sketch(seed, (64, 64)), "a")
    out = run("AtelierBalanceRepeats", open_folder(root, DatasetParams()), split_folders=True)["result"][0]
    assert {subset.folder.name: subset.repeats for subset in out.subsets} == {"x": 1, "y": 4}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "file_name is empty; give the name of a file below the output folder"),
        ("../escape.md", "climbs out"),
        ("/etc/escape.md", "outside the allowed folders"),
        ("tags.csv", r"ends with \.csv, but this text is written as \.md"),
        ("con/tags.md", "reserved name"),
        ("what?.md", "cannot be a name on Windows"),
    ],
)
def test_files_outside_or_of_another_kind_are_refused(
    name: str, message: str, host: FakeHost, dataset: Dataset
) -> None:
    before = files_of(host)
    if name:
        with pytest.raises(AtelierError, match=message):
            run("AtelierTagDocument", dataset, file_name=name)
    with pytest.raises(AtelierError, match=message.replace(r"\.md", r"\.txt")):
        run("AtelierBalanceRepeats", dataset, write="the text, as a file", file_name=name.replace(".md", ".txt"))
    assert files_of(host) == before


def test_multiply_goes_into_allowed_folders_only(host: FakeHost, tmp_path: Path) -> None:
    put(tmp_path / "outside" / "1_a", "0.png", sketch(1, (64, 64)), "a")
    outside = open_folder(tmp_path / "outside", DatasetParams())
    with pytest.raises(AtelierError, match="lies outside the allowed folders, so multiply.txt is not written"):
        run("AtelierBalanceRepeats", outside, write="multiply.txt into the folders")
    assert not list(tmp_path.rglob("multiply.txt"))


def test_the_document_is_written_where_a_name_is_given(host: FakeHost, dataset: Dataset) -> None:
    answer = run("AtelierTagDocument", dataset, file_name="tags", form="CSV")
    assert (host.output_dir() / "tags.csv").read_text(encoding="utf-8") == answer["result"][2]
    assert "tags.csv" in answer["result"][1]


def test_names_against_bleeding_are_those_rename_reads(dataset: Dataset) -> None:
    names = by_name("AtelierTagBleeding", run("AtelierTagBleeding", dataset, min_count=1))["names"]
    assert names.splitlines() == ["aiming at viewer,aav"]
    renamed = run_step(dataset, names)
    assert "aav" in renamed.tag_counts()


def run_step(dataset: Dataset, names: str) -> Dataset:
    from lora_atelier.tagger.steps._spec import StepContext
    from lora_atelier.tagger.steps.rename import RenameParams, apply

    return apply(dataset, RenameParams(names=names), StepContext())[0]


def test_tokens_are_counted_or_said_to_be_an_estimate(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    from lora_atelier.dataset import plots
    from lora_atelier.nodes import tag_reports

    for name in ("frequency_plot", "cooccurrence_plot", "per_picture_plot", "tokens_plot"):
        monkeypatch.setattr(plots, name, lambda *args, **values: sketch(1, (8, 8)))

    monkeypatch.setattr(tag_reports, "token_counter", lambda base: (None, ""))
    assert "Tokens are an ESTIMATE" in run("AtelierTagPlots", dataset)["result"][1]
    monkeypatch.setattr(tag_reports, "token_counter", lambda base: (lambda texts: [80] * len(texts), "a test"))
    said = run("AtelierTagPlots", replace(dataset))["result"][1]
    assert "Tokens counted by a test." in said
    assert "over 75: 5" in said
