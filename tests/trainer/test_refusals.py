"""What is refused before any work, and disks that fail in mid-run."""

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.progress import RecordingProgress
from atelier_tests.helpers.training import CancelTraining
from lora_atelier.core.errors import AtelierError, InputError, StorageError, TrainingError, UnknownNameError
from lora_atelier.core.params import Choice
from lora_atelier.core.progress import Cancelled
from lora_atelier.trainer import checkpoints, session
from lora_atelier.trainer.config import Job, TrainParams
from lora_atelier.trainer.objectives.epsilon import OBJECTIVE
from lora_atelier.trainer.optimizers.adamw import AdamWParams
from lora_atelier.trainer.plan import check_job, saves_at
from lora_atelier.trainer.precision import OutOfMemory
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"steps": 0}, "steps is 0, allowed is 1 to"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"precision": "fp8"}, "precision"),
        ({"mode": "again"}, "mode"),
        ({"save_dtype": "int8"}, "save_dtype"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm is nan, allowed is a finite number"),
        ({"train_unet": False, "train_text_encoder": False}, "both off"),
        ({"bucket_min_px": 512, "bucket_max_px": 256}, "bucket_min_px is 512"),
        ({"clip_skip": 13}, "clip_skip is 13"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainParams(**changes)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -1.0])
def test_learning_rates_that_make_no_sense(rate: float) -> None:
    with pytest.raises(InputError, match="lr_unet is"):
        AdamWParams(lr_unet=rate)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"clip_skip": 4}, "clip_skip is 4, but the text encoder of tiny.safetensors has 3 layers"),
        ({"blocks": "OUT12"}, "unknown block in the selection 'OUT12' 'OUT12'; did you mean"),
        ({"blocks": "TE", "train_text_encoder": False}, "lie in a part that is not trained"),
        ({"optimizer": {"lr_unet": 0.0}}, "lr_unet is 0, but train_unet is on"),
        ({"optimizer": {"warmup_steps": 4}}, "warmup_steps is 4 and the run has 4 steps"),
        ({"resolution_px": 512}, "512"),
    ],
)
def test_settings_that_do_not_fit_together(job: MakeJob, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        check_job(job(**changes))


def test_a_rate_of_zero_is_fine_for_a_part_that_is_not_trained(job: MakeJob) -> None:
    check_job(job(optimizer={"lr_text_encoder": 0.0}, train_text_encoder=False))
    check_job(job(optimizer={"lr_text_encoder": 0.0}, blocks="MID"))


def test_blocks_without_a_module_are_named(job: MakeJob, places: Places) -> None:
    with pytest.raises(InputError, match="hold no module that lora trains .*; blocks that do are IN01, IN02, IN04"):
        train_lora(job(blocks="IN00,OUT00-02"), **places)


def test_an_objective_of_another_kind_is_refused(job: MakeJob) -> None:
    object.__setattr__(OBJECTIVE, "prediction_type", "v_prediction")
    try:
        with pytest.raises(InputError, match="models that predict v_prediction, but tiny.safetensors"):
            check_job(job())
    finally:
        object.__setattr__(OBJECTIVE, "prediction_type", "epsilon")


def test_an_unknown_schedule_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="'cosine'"):
        AdamWParams(schedule="cosin")


def test_an_option_of_the_wrong_kind_is_refused(job: MakeJob) -> None:
    good = job()
    wrong = Job(
        base=good.base,
        dataset=good.dataset,
        params=good.params,
        network=good.network,
        optimizer=Choice(kind="optimizer", name="adamw", params=good.objective.params),
        objective=good.objective,
    )
    with pytest.raises(InputError, match="wire an optimizer"):
        check_job(wrong)


@pytest.mark.parametrize("place", ["output_dir", "loras_dir", "cache_dir"])
def test_a_folder_that_cannot_be_written_is_found_before_any_work(
    job: MakeJob, places: Places, tmp_path: Path, place: str
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("in the way", encoding="utf-8")
    progress = RecordingProgress()
    with pytest.raises(StorageError, match="cannot be written"):
        train_lora(job(), progress=progress, **{**places, place: blocked / "below"})
    assert progress.lines == []


def test_too_little_space_is_found_before_the_first_step(
    job: MakeJob, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(path: Path, needed_bytes: int) -> None:
        raise StorageError(f"{path} needs {needed_bytes} bytes of disk space")

    monkeypatch.setattr(session, "ensure_space", no_space)
    with pytest.raises(StorageError, match="bytes of disk space"):
        train_lora(job(), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    status = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    assert (status["state"], status["step"]) == ("failed", 0)


def test_a_disk_that_is_full_in_mid_run_keeps_the_last_checkpoint(
    job: MakeJob, places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tensors = checkpoints.write_tensors

    def full_at_step_4(path: Path, tensors: Any, metadata: Any) -> None:
        if "step-00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_tensors(path, tensors, metadata)

    monkeypatch.setattr(checkpoints, "write_tensors", full_at_step_4)
    with pytest.raises(StorageError, match="the disk is full.*last good checkpoint of the run is step 2"):
        train_lora(job(steps=6, save_every_steps=2), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    info = open_run(folder)
    assert [step for step, _ in info.checkpoints] == [2]
    assert info.status["state"] == "failed"
    assert info.status["seconds_training"] > 0.0
    assert not list(folder.rglob("*.tmp"))
    monkeypatch.undo()
    assert train_lora(job(steps=6, save_every_steps=2), **places).steps_done == 4


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), RuntimeError("a fault")])
def test_a_failure_while_saving_does_not_replace_the_cancel(
    job: MakeJob, places: Places, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    def broken(*_: Any) -> None:
        raise failure

    stop = Cancelled("stop")
    monkeypatch.setattr(checkpoints, "write_tensors", broken)
    with pytest.raises(Cancelled) as caught:
        train_lora(job(), progress=CancelTraining(places["output_dir"], 4, stop), **places)
    assert caught.value is stop
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    status = open_run(folder).status
    assert (status["state"], status["step"]) == ("interrupted", 0)
    assert status["reason"].startswith("Cancelled: stop (")


def test_too_little_memory_says_what_to_change(job: MakeJob, places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutOfMemory("CUDA out of memory")

    monkeypatch.setattr(session, "train", full)
    with pytest.raises(TrainingError, match="lower batch_size or resolution_px"):
        train_lora(job(), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    assert open_run(folder).status["state"] == "failed"


def test_open_run_of_another_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="There is no training run"):
        open_run(tmp_path)


def test_a_damaged_manifest_is_named(job: MakeJob, places: Places) -> None:
    run = train_lora(job(steps=1), **places).run
    (run.folder / "manifest.json").write_text("{}", encoding="utf-8")
    with pytest.raises(AtelierError, match="lacks key, run_name, total_steps"):
        open_run(run.folder)


def test_saves_at_by_hand() -> None:
    def steps(every_steps: int, every_epochs: int, batches: int, accumulation: int) -> list[int]:
        return [
            step
            for step in range(1, 13)
            if saves_at(
                step,
                every_steps=every_steps,
                every_epochs=every_epochs,
                batches_per_epoch=batches,
                batches_before=(step - 1) * accumulation,
                batches_done=step * accumulation,
            )
        ]

    assert steps(5, 0, 3, 1) == [5, 10]
    assert steps(0, 1, 5, 1) == [5, 10]
    assert steps(0, 2, 3, 1) == [6, 12]
    assert steps(0, 1, 5, 2) == [3, 5, 8, 10]
    assert steps(0, 1, 2, 4) == list(range(1, 13))
    assert steps(4, 1, 5, 1) == [4, 5, 8, 10, 12]
    assert steps(0, 0, 5, 1) == []
