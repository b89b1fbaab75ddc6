"""Whole runs: what is written, reuse, resume to the bit, cancel, continue, restart."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from atelier_tests.helpers.progress import CancelAfter, RecordingProgress
from atelier_tests.helpers.training import WHOLE, CancelTraining, make_job, open_pictures
from lora_atelier.core.errors import InputError, StorageError
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.tensors import TensorFile, read_tensors
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import open_base
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.run import RunFolder, RunRef, open_run
from lora_atelier.trainer.train import RunResult, continue_run, train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]


class HostInterrupt(Exception):
    """As ComfyUI's own: an Exception."""


def model_hash(path: Path) -> str:
    with TensorFile(path) as file:
        return file.metadata["sshs_model_hash"]


def assert_same_run(got: RunResult, expected: RunResult) -> None:
    """All tensors, losses and the model hash are equal to the bit."""
    one, other = read_tensors(got.lora_path), read_tensors(expected.lora_path)
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
    assert model_hash(got.lora_path) == model_hash(expected.lora_path)
    assert got.losses == expected.losses
    last = f"checkpoints/step-{got.run.step:08d}/state.safetensors"
    one, other = read_tensors(got.run.folder / last), read_tensors(expected.run.folder / last)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def spoil(path: Path) -> None:
    """Puts a picture in place whose header and end are good, with zeros over its middle."""
    noise = np.random.default_rng(0).integers(0, 255, (160, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(third)
    path.write_bytes(content)


def test_run_directory(whole_run: RunResult) -> None:
    folder = whole_run.run.folder
    assert folder.name == f"tiny-{whole_run.run.key[:8]}"
    assert folder.parent.parts[-2:] == ("atelier", "runs")
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["origins"]["train"]["steps"] == {"value": 7, "origin": "given"}
    assert manifest["origins"]["train"]["clip_skip"] == {"value": 1, "origin": "default"}
    assert manifest["data"]["num_images"] == 5
    assert len(manifest["base"]["sha256"]) == 64
    assert manifest["versions"]["torch"]
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "finished"
    info = open_run(folder)
    assert info.finished
    assert [step for step, _ in info.checkpoints] == [3, 6, 7]
    assert [row["step"] for row in info.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert info.rows[-1]["images_seen"] == 28  # 14 batches of 2: both buckets hold an even number
    assert {path.name for path in whole_run.lora_path.parent.iterdir()} == {
        "tiny.safetensors",
        "tiny-step00000003.safetensors",
        "tiny-step00000006.safetensors",
    }
    assert not list(folder.rglob("*.tmp"))


def test_plan_and_report_say_what_happens(whole_run: RunResult) -> None:
    for words in ("7 steps", "80x48 px: 6", "64x64 px: 4", "UNet 192 modules", "relative error", "atelier/tiny/tiny"):
        assert words in whole_run.report


def test_a_finished_run_is_returned_at_once(job: MakeJob, places: Places) -> None:
    first = train_lora(job(steps=2), **places)
    progress = RecordingProgress()
    again = train_lora(job(steps=2, run_name="other name", save_every_steps=1), progress=progress, **places)
    assert again.steps_done == 0
    assert again.run == first.run
    assert again.losses == first.losses
    assert not any("loading" in line for line in progress.lines)
    assert again.lora_path.parts[-2:] == ("other name", "other name.safetensors")
    assert model_hash(again.lora_path) == model_hash(first.lora_path)
    first.lora_path.unlink()
    assert train_lora(job(steps=2, mode="reuse"), **places).lora_path == first.lora_path
    assert first.lora_path.is_file()


def test_restart_never_touches_the_finished_run(job: MakeJob, places: Places) -> None:
    first = train_lora(job(steps=2), **places)
    before = {path: path.stat().st_mtime_ns for path in first.run.folder.rglob("*") if path.name != "run.lock"}
    again = train_lora(job(steps=2, mode="restart"), **places)
    assert again.steps_done == 2
    assert again.run.folder.name == f"{first.run.folder.name}-2"
    assert again.losses == first.losses
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert model_hash(again.lora_path) == model_hash(first.lora_path)


@pytest.mark.parametrize("error", [Cancelled("stop"), HostInterrupt("stop")])
@pytest.mark.parametrize("num_checks", [5, 12])
def test_resume_is_exact_after_cancel(
    job: MakeJob, places: Places, whole_run: RunResult, error: BaseException, num_checks: int
) -> None:
    with pytest.raises(type(error)) as caught:
        train_lora(job(**WHOLE), progress=CancelTraining(places["output_dir"], num_checks, error), **places)
    assert caught.value is error
    runs = list((places["output_dir"] / "atelier" / "runs").iterdir())
    status = json.loads((runs[0] / "status.json").read_text(encoding="utf-8"))
    assert status["state"] == "cancelled"
    assert 0 < status["step"] < 7
    resumed = train_lora(job(**WHOLE), **places)
    assert resumed.steps_done == 7 - status["step"]
    assert list((places["output_dir"] / "atelier" / "runs").iterdir()) == runs
    assert_same_run(resumed, whole_run)
    assert [step for step, _ in open_run(resumed.run.folder).checkpoints] == [3, 6, 7]


def test_cancel_while_loading_leaves_a_run_that_starts(job: MakeJob, places: Places, whole_run: RunResult) -> None:
    with pytest.raises(Cancelled):
        train_lora(job(**WHOLE), progress=CancelAfter(3), **places)
    assert_same_run(train_lora(job(**WHOLE), **places), whole_run)


def test_reuse_leaves_an_interrupted_run_alone(job: MakeJob, places: Places, whole_run: RunResult) -> None:
    with pytest.raises(Cancelled):
        train_lora(job(**WHOLE), progress=CancelTraining(places["output_dir"], 8), **places)
    fresh = train_lora(job(mode="reuse", **WHOLE), **places)
    assert fresh.steps_done == 7
    assert fresh.run.folder.name.endswith("-2")
    assert_same_run(fresh, whole_run)


def test_continue_equals_one_long_run(
    job: MakeJob, places: Places, whole_run: RunResult, tiny_base: Path, dataset: Dataset
) -> None:
    short = train_lora(job(**{**WHOLE, "steps": 4}), **places)
    before = (short.run.folder / "manifest.json").read_bytes()
    child = continue_run(short.run, base=open_base(tiny_base, name="x"), dataset=dataset, extra_steps=3, **places)
    assert child.run.folder != short.run.folder
    assert child.steps_done == 3
    assert (short.run.folder / "manifest.json").read_bytes() == before
    assert model_hash(child.lora_path) == model_hash(whole_run.lora_path)
    manifest = json.loads((child.run.folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["config"]["parent"] == f"{short.run.key}:4"
    again = continue_run(short.run, base=open_base(tiny_base, name="x"), dataset=dataset, extra_steps=3, **places)
    assert again.steps_done == 0


def test_continue_names_the_steps_there_are(
    whole_run: RunResult, places: Places, tiny_base: Path, dataset: Dataset
) -> None:
    run = RunRef(folder=whole_run.run.folder, key=whole_run.run.key, step=5)
    with pytest.raises(InputError, match="no checkpoint at step 5; there are: 3, 6, 7"):
        continue_run(run, base=open_base(tiny_base, name="x"), dataset=dataset, extra_steps=1, **places)


def test_keep_last(job: MakeJob, places: Places) -> None:
    result = train_lora(job(steps=6, save_every_steps=1, keep_last=2), **places)
    assert [step for step, _ in open_run(result.run.folder).checkpoints] == [4, 5, 6]
    assert {path.name for path in result.lora_path.parent.iterdir()} == {
        "tiny.safetensors",
        "tiny-step00000004.safetensors",
        "tiny-step00000005.safetensors",
    }


def test_save_every_epoch(job: MakeJob, places: Places) -> None:
    result = train_lora(job(steps=11, save_every_epochs=1), **places)
    assert [step for step, _ in open_run(result.run.folder).checkpoints] == [5, 10, 11]


def test_a_different_file_is_never_replaced(job: MakeJob, places: Places) -> None:
    first = train_lora(job(steps=1), **places)
    content = first.lora_path.read_bytes()
    second = train_lora(job(steps=1, seed=8), **places)
    assert second.lora_path.name == "tiny-2.safetensors"
    assert first.lora_path.read_bytes() == content


def test_works_inside_inference_mode_and_leaves_no_trace(job: MakeJob, places: Places, whole_run: RunResult) -> None:
    random_state = torch.random.get_rng_state()
    with torch.inference_mode():
        result = train_lora(job(**WHOLE), **places)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(random_state, torch.random.get_rng_state())
    assert_same_run(result, whole_run)


def test_the_key_ignores_what_does_not_decide_the_numbers(tiny_base: Path, dataset: Dataset) -> None:
    def key(**changes: Any) -> str:
        return make_job(dataset, base=tiny_base, **changes).key(base_hash="b", data_hash="d")

    same = key()
    assert key(run_name="x", save_every_steps=3, save_every_epochs=1, keep_last=1, mode="restart") == same
    assert key(blocks="all") == same
    assert key(blocks="IN4-7, mid") == key(blocks="MID,IN04-07") == key(blocks="IN04,IN05 in6-7,MID")
    for change in ({"steps": 5}, {"seed": 1}, {"blocks": "MID"}, {"rank": 3}, {"optimizer": {"lr_unet": 2e-3}}):
        assert key(**change) != same


def test_keys_of_the_first_version(tiny_base: Path, dataset: Dataset) -> None:
    """Made before the later settings were there; old runs must be found by them."""

    def key(**changes: Any) -> str:
        return make_job(dataset, base=tiny_base, **changes).key(base_hash="b", data_hash="d")

    assert key() == "3561dbe31f3771754dbc28a5b0a3a0a6d88b5999bf111cf3506c395c0779b077"
    assert key(**WHOLE) == "22ea94da6ba1b0ee784bedf8a609eefe4030aa7eb66669c36f5ca4a6647f6ddc"
    changed = {"optimizer": {"weight_decay": 0.5}, "objective": {"noise_offset": 0.1}, "blocks": "MID"}
    assert key(**changed) == "f9f254d3491c31ef6bf767654dc9dec0eb72c64b435f432a02f3fe7887f90cb7"
    assert key(ema_decay=0.99) != key()
    assert key(objective={"weighting": "min_snr"}) != key()


def test_an_edited_caption_is_another_run(tiny_base: Path, dataset: Dataset, places: Places) -> None:
    first = train_lora(make_job(dataset, base=tiny_base, steps=1), **places)
    edited = dataset.with_tags({0: ["something", "else"]}, note="edited")
    second = train_lora(make_job(edited, base=tiny_base, steps=1), **places)
    assert second.steps_done == 1
    assert second.run.key != first.run.key


def test_a_name_is_composed_from_what_differs(tiny_base: Path, dataset: Dataset) -> None:
    job = make_job(dataset, base=tiny_base, run_name="", blocks="OUT03-06", train_text_encoder=False)
    assert job.run_name() == "rings-r2-a2-s4-b2-px64-seed7-unet-only-lr0.001-te0.001-OUT03-06"[:60]


def test_two_processes_cannot_train_one_run(job: MakeJob, places: Places) -> None:
    with pytest.raises(Cancelled):
        train_lora(job(steps=3), progress=CancelTraining(places["output_dir"], 4), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    with RunFolder.held(folder), pytest.raises(StorageError, match="trained by another process"):
        train_lora(job(steps=3), **places)


@pytest.mark.parametrize(
    ("name", "content"),
    [("state.safetensors", None), ("state.json", b"\0\0\0\0"), ("state.json", b"[]"), ("state.json", b'{"step": 5}')],
)
def test_a_damaged_checkpoint_is_passed_over(
    job: MakeJob, places: Places, whole_run: RunResult, name: str, content: bytes | None
) -> None:
    with pytest.raises(Cancelled):
        train_lora(job(**WHOLE), progress=CancelTraining(places["output_dir"], 12), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    last = sorted((folder / "checkpoints").iterdir())[-1] / name
    last.write_bytes(last.read_bytes()[:1000] if content is None else content)
    progress = RecordingProgress()
    assert_same_run(train_lora(job(**WHOLE), progress=progress, **places), whole_run)
    assert any("damaged and passed over" in line for line in progress.lines)


def test_a_deleted_final_lora_is_written_again(job: MakeJob, places: Places) -> None:
    first = train_lora(job(steps=2), **places)
    expected = model_hash(first.lora_path)
    for path in (first.lora_path, first.run.folder / "checkpoints" / "step-00000002" / "lora.safetensors"):
        path.unlink()
    again = train_lora(job(steps=2), **places)
    assert again.steps_done == 0
    assert model_hash(again.lora_path) == expected
    assert open_run(again.run.folder).finished


def test_a_picture_damaged_in_the_middle_is_left_out_and_told(
    tiny_base: Path, pictures: Path, places: Places, tmp_path: Path
) -> None:
    folder = shutil.copytree(pictures, tmp_path / "rings")
    spoil(folder / "2_ring" / "02.png")
    dataset = open_pictures(folder)
    assert len(dataset) == 5
    progress = RecordingProgress()
    result = train_lora(make_job(dataset, base=tiny_base, steps=2), progress=progress, **places)
    assert any(line.startswith("left out 2_ring/02.png: ") for line in progress.lines)
    assert "Pictures: 4, 8 after repeats" in result.report
    assert "1 files left out (2_ring/02.png: " in result.report
    assert open_run(result.run.folder).manifest["data"]["num_images"] == 4
    assert train_lora(make_job(dataset, base=tiny_base, steps=2), **places).steps_done == 0
    (folder / "2_ring" / "02.png").unlink()
    without = train_lora(make_job(open_pictures(folder), base=tiny_base, steps=2), **places)
    assert without.run == result.run


def test_only_damaged_pictures_are_refused(tiny_base: Path, pictures: Path, places: Places, tmp_path: Path) -> None:
    folder = shutil.copytree(pictures, tmp_path / "rings")
    for path in (folder / "2_ring").glob("*.png"):
        spoil(path)
    with pytest.raises(InputError, match="no picture in .* can be used"):
        train_lora(make_job(open_pictures(folder), base=tiny_base), **places)
    assert not (places["output_dir"] / "atelier").exists()
