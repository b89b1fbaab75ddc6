"""The doctor finds each ill of a folder made ill on purpose, says what to do, and remembers what it decoded."""

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from atelier_tests.helpers.pictures import make_folder
from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from atelier_tests.helpers.sick_folder import make_sick_folder, put, sketch
from lora_atelier.core.errors import InputError
from lora_atelier.core.index import Index
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset.columns import TagColumn, TextColumn
from lora_atelier.dataset.doctor import DoctorParams, Patient, Report, examine
from lora_atelier.dataset.doctor_checks import TABLE_CHECKS
from lora_atelier.dataset.pixels import PHASH_KIND, examine_pixels
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset, Subset
from lora_atelier.dataset.triggers import class_triggers, missing_and_late, shared_words


@pytest.fixture(scope="module")
def sick(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = make_sick_folder(tmp_path_factory.mktemp("sick"))
    return open_folder(root / "set", DatasetParams(), reg_folder=root / "reg")


@pytest.fixture(scope="module")
def report(sick: Dataset) -> Report:
    return examine(sick, DoctorParams(batch_size=4))


EXPECTED = {
    "unusable_files": ("error", 1, "cut.png"),
    "damaged_pixels": ("error", 1, "broken.png"),
    "ignored_folders": ("warning", 1, "notes/"),
    "captions_differ": ("warning", 1, "wide.txt 4 tags, wide.caption 4 tags"),
    "stem_collisions": ("warning", 2, "twin.webp"),
    "empty_captions": ("warning", 1, "empty.png"),
    "missing_trigger": ("warning", 2, "none.png"),
    "late_trigger": ("warning", 1, "late.png"),
    "shared_trigger_words": ("warning", 21, "OyamaMahiro"),
    "tags_on_all": ("warning", 22, ""),
    "crop_loss": ("warning", 1, "wide.png"),
    "high_repeats": ("warning", 9, "30_OyamaMahiro"),
    "alpha_channel": ("warning", 1, "ghost.png"),
    "duplicates_across": ("warning", 2, "same.png"),
    "duplicates_train": ("note", 2, "copy.jpg"),
    "odd_extensions": ("note", 1, "Photo.Jpg"),
    "doubled_tags": ("note", 1, "none.png"),
    "spelling_variants": ("note", 1, "late.png"),
    "resolution_tiers": ("note", 1, "small.png"),
    "exif_orientation": ("note", 1, "turned.jpg"),
}


def test_every_ill_is_found_and_nothing_else(report: Report) -> None:
    found = {finding.check: finding for finding in report.findings}
    assert set(found) == set(EXPECTED)
    for check, (severity, files, example) in EXPECTED.items():
        finding = found[check]
        assert (finding.severity, finding.files) == (severity, files), check
        assert example in " ".join((*finding.examples, *finding.details)), check
        assert len(finding.advice) > 20


def test_the_report_as_text_and_json(report: Report) -> None:
    text = report.text()
    assert text.startswith("Data set doctor: 29 pictures (6 for regularisation) in 3 folders: 2 errors, 12 warnings")
    assert "upscaled 1 (3%)" in text
    assert "Looked for and not found: " in text
    data = json.loads(json.dumps(report.to_json()))
    assert data["counts"] == {"error": 2, "warning": 12, "note": 6}
    assert all(entry["advice"] and entry["files"] for entry in data["findings"])
    severities = [entry["severity"] for entry in data["findings"]]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


def test_without_pixels_it_says_what_it_did_not_look_at(sick: Dataset) -> None:
    report = examine(sick, DoctorParams(look_at_pixels=False))
    assert "damaged_pixels" not in {finding.check for finding in report.findings}
    assert any("damage" in entry for entry in report.not_done)
    assert "Not looked at: damage inside files (look_at_pixels is off)" in report.text()


def test_a_healthy_folder(tmp_path: Path) -> None:
    for seed in range(4):
        put(tmp_path / "10_kayoko", f"{seed}.png", sketch(seed, (1024, 1024)), f"kayoko, 1girl, hat {seed}")
    report = examine(open_folder(tmp_path, DatasetParams()), DoctorParams())
    assert report.findings == ()
    assert "nothing to complain about" in report.text()
    assert "ideal 4 (100%)" in report.text()


def test_decoding_is_remembered_cancelled_and_gone_on_with(sick: Dataset, tmp_path: Path) -> None:
    with Index(tmp_path / "index.sqlite") as index:
        with pytest.raises(Cancelled):
            examine_pixels(sick, index=index, progress=CancelAfter(12))
        kept = index.count(PHASH_KIND)
        assert 0 < kept < len(sick)
        second = examine_pixels(sick, index=index)
        assert second.decoded <= len(sick) - kept
        third = examine_pixels(sick, index=index)
        assert third.decoded == 0
        assert np.array_equal(second.hashes, third.hashes)
        assert third.damaged == second.damaged
        np.testing.assert_array_equal(second.transparent, third.transparent)
    np.testing.assert_array_equal(examine_pixels(sick).hashes, third.hashes)


def test_progress_names_what_it_does(sick: Dataset) -> None:
    progress = RecordingProgress()
    examine(sick, DoctorParams(), progress=progress)
    assert "Looking for missing triggers" in progress.lines
    assert any(text == "Looking at pixels" for _, _, text in progress.updates)


@pytest.mark.parametrize("check", TABLE_CHECKS, ids=lambda check: check.name)
def test_each_check_alone_on_a_healthy_table(check: object, tmp_path: Path) -> None:
    make_folder(tmp_path / "kayoko", {f"{n}.png": f"kayoko, thing {n}" for n in range(3)}, (512, 512))
    dataset = open_folder(tmp_path / "kayoko", DatasetParams())
    assert check.run(Patient(dataset=dataset, params=DoctorParams())) is None  # type: ignore[attr-defined]


def test_a_tag_written_twice_alike(tmp_path: Path) -> None:
    make_folder(tmp_path, {"a.png": "kayoko, hat, hat", "b.png": "kayoko, hat"})
    patient = Patient(dataset=open_folder(tmp_path, DatasetParams()), params=DoctorParams())
    (check,) = [check for check in TABLE_CHECKS if check.name == "doubled_tags"]
    found = check.run(patient)
    assert found is not None
    assert found.examples == ("a.png",)


def test_triggers_from_prefix_first_tag_and_given_words(tmp_path: Path) -> None:
    captions = {f"{n}.png": f"by kantoku, 1girl, {n}" for n in range(4)}
    captions["odd.png"] = "1girl, By_Kantoku"
    make_folder(tmp_path / "set", captions)
    dataset = open_folder(tmp_path / "set", DatasetParams())
    (guessed,) = class_triggers(dataset)
    assert guessed.words == ("by kantoku",)
    missing, late = missing_and_late(dataset, guessed)
    assert (len(missing), [dataset.names[int(row)] for row in late]) == (0, ["odd.png"])
    (given,) = class_triggers(dataset, "other, by kantoku")
    assert [len(rows) for rows in missing_and_late(dataset, given)] == [0, 1]
    prefixed = replace(dataset, subsets=(replace(dataset.subsets[0], caption_prefix="style, more"),))
    assert class_triggers(prefixed)[0].words == ("style",)
    assert [len(rows) for rows in missing_and_late(prefixed, class_triggers(prefixed)[0])] == [0, 0]


def test_names_that_share_a_word_or_a_beginning() -> None:
    assert [entry.word for entry in shared_words(["OyamaMahiro", "OyamaMihari", "Tilty"])] == ["oyama"]
    assert [entry.word for entry in shared_words(["kayoko (blue archive)", "aru (blue archive)"])] == [
        "archive",
        "blue",
    ]
    assert shared_words(["anisphia", "euphyllia"]) == []
    assert [entry.word for entry in shared_words(["mikachan", "mikadono"])] == ["mika"]
    assert shared_words(["Kayoko", "kayoko"]) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"resolution_px": 2048}, "the resolution 2048 x 2048 px does not fit the bucket sides 256 to 1024"),
        ({"duplicate_distance": 12}, "duplicate_distance is 12, allowed is 0 to 11 bits"),
        ({"ideal_factor": 0.5}, "ideal_factor is 0.5, allowed is 1 to 16"),
    ],
)
def test_bad_settings(sick: Dataset, changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        examine(sick, DoctorParams(**changes))  # type: ignore[arg-type]


def big_dataset(rows: int, tags_per_row: int = 30, folders: int = 20) -> Dataset:
    """A table without files."""
    random = np.random.default_rng(0)
    vocabulary = tuple(f"tag {number} of many" for number in range(40_000))
    ids = (random.pareto(0.9, rows * tags_per_row) * 20).astype(np.int64).clip(0, len(vocabulary) - 1)
    return Dataset(
        root=Path("set"),
        subsets=tuple(
            Subset(folder=Path(f"set/{n}_name{n}"), concept=f"name{n}", repeats=n + 1) for n in range(folders)
        ),
        names=TextColumn.from_strings(f"picture {row}.png" for row in range(rows)),
        width_px=random.integers(300, 3000, rows).astype(np.int32),
        height_px=random.integers(300, 3000, rows).astype(np.int32),
        size_bytes=np.ones(rows, dtype=np.int64),
        mtime_ns=np.ones(rows, dtype=np.int64),
        subset_index=np.sort(random.integers(0, folders, rows)).astype(np.int32),
        caption_source=np.ones(rows, dtype=np.uint8),
        tags=TagColumn(vocabulary, np.arange(rows + 1, dtype=np.int64) * tags_per_row, ids.astype(np.int32)),
        layout="made up",
    )  # fmt: skip


def test_checks_of_the_table_are_quick_on_many_pictures() -> None:
    patient = Patient(dataset=big_dataset(20_000), params=DoctorParams(batch_size=4))
    start = time.process_time()
    for check in TABLE_CHECKS:
        check.run(patient)
    assert time.process_time() - start < 10.0
