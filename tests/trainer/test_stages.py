"""Runs in stages: what each does, and that a stop anywhere changes nothing."""

import json
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.progress import RecordingProgress
from atelier_tests.helpers.training import draw_pictures, open_pictures
from atelier_tests.trainer.test_train import assert_same_run
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.core.tensors import TensorFile
from lora_atelier.dataset.table import Dataset
from lora_atelier.trainer.checkpoints import list_checkpoints
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.hooks import new_beginnings
from lora_atelier.trainer.plan import check_job
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.staged import Stage, StagedFeed, StageProgress, joined, stage_at
from lora_atelier.trainer.stages import StageParams, TrainStage, stage_steps
from lora_atelier.trainer.train import RunResult, train_lora
from lora_atelier.trainer.weights import AdapterWeights

MakeJob = Callable[..., Job]
Places = dict[str, Path]
SMALL: dict[str, Any] = {"steps": 6, "batch_size": 2, "blocks": "MID", "train_text_encoder": False}
BORDER = 3


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Pictures of the second stage."""
    return open_pictures(draw_pictures(tmp_path_factory.mktemp("others") / "more", count=3))


def stage(dataset: Dataset | None = None, **settings: Any) -> TrainStage:
    return TrainStage(params=StageParams(**settings), dataset=dataset)


def two_stages(others: Dataset) -> tuple[TrainStage, ...]:
    """Everything differs in the second: pictures, size, batches, learning rate, optimizer, schedule."""
    second = {"batch_size": 1, "resolution_px": 48, "unet_lr_factor": 0.5, "optimizer_state": "begin anew"}
    return (stage(steps=BORDER), stage(others, schedule_over="this stage", **second))


class CancelAt(SilentProgress):
    """Cancels once some steps are done."""

    def __init__(self, step: int) -> None:
        self.step = step

    def update(self, done: int, total: int, text: str = "") -> None:
        if total == SMALL["steps"] and done >= self.step:
            raise Cancelled("cancelled by the test")


# what a stage is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "total", "expected"),
    [((3, 5), 8, (3, 5)), ((0,), 8, (8,)), ((3, 0, 1), 8, (3, 4, 1)), ((0, 7), 8, (1, 7))],
)
def test_steps_of_the_stages(asked: tuple[int, ...], total: int, expected: tuple[int, ...]) -> None:
    assert stage_steps([stage(steps=steps) for steps in asked], total) == expected


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ((3, 4), "3 \\+ 4 = 7 steps and the run has 8: set the run's steps to 7"),
        ((8, 0), "take 8 of the run's 8 steps and leave none for stage 2"),
        ((0, 3, 0), "stages 1 and 3 both have steps 0"),
    ],
)
def test_steps_that_do_not_add_up(asked: tuple[int, ...], said: str) -> None:
    with pytest.raises(InputError, match=said):
        stage_steps([stage(steps=steps) for steps in asked], 8)


def test_the_key_says_what_the_stages_are(job: MakeJob, others: Dataset) -> None:
    def key(*stages: TrainStage, data_hash: str = "d") -> str:
        return replace(job(**SMALL), stages=stages).key(base_hash="b", data_hash=data_hash)

    plain = job(**SMALL)
    assert "stages" not in plain.config()
    assert key() == plain.key(base_hash="b", data_hash="d")
    first, second = two_stages(others)
    assert key(first, second) == key(first, second)
    assert len({key(), key(first, second), key(first, second, data_hash="e"), key(second, first)}) == 4
    # what is left to the run is said as what it is
    assert key(stage(steps=3), stage(steps=0, resolution_px=64)) == key(stage(steps=3, batch_size=2), stage(steps=3))


def test_learning_rates_of_the_stages(job: MakeJob) -> None:
    stages = (stage(steps=2), stage(unet_lr_factor=0.5), stage(steps=2, schedule_over="this stage"))
    asked = replace(job(**{**SMALL, "steps": 8}, optimizer={"schedule": "linear"}), stages=stages)
    checked = check_job(asked)
    assert [part.steps for part in checked.stages] == [2, 4, 2]
    whole = [1 - step / 8 for step in range(8)]
    expected = [*whole[:2], *(0.5 * share for share in whole[2:6]), 1.0, 0.5]
    assert [checked.share(step, "unet") for step in range(8)] == pytest.approx(expected)
    assert checked.share(3, "unet x16") == checked.share(3, "unet")
    assert checked.share(3, "text_encoder") == pytest.approx(whole[3])
    assert [stage_at(checked.stages, step).number for step in (0, 1, 2, 5, 6, 7, 8)] == [1, 1, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("name", ["adamw", "prodigy", "lion", "schedule_free_adamw", "came"])
def test_an_optimizer_that_begins_anew(job: MakeJob, name: str) -> None:
    """After the border it does what one does that has never made a step, from the same weights."""
    from lora_atelier.trainer.optimizers._spec import ParamGroup, find_optimizer

    spec = find_optimizer(name)
    params = spec.params()

    def build(values: torch.Tensor) -> tuple[torch.nn.Parameter, torch.optim.Optimizer]:
        made = torch.nn.Parameter(values.clone())
        return made, spec.build([ParamGroup(name="unet", lr=params.lr_unet, parameters=[made])], params)

    def stepped(parameter: torch.nn.Parameter, optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step))
            optimizer.step()

    parameter, optimizer = build(torch.ones(4, 3))
    stages = check_job(replace(job(**SMALL), stages=(stage(steps=BORDER), stage(optimizer_state="begin anew")))).stages
    before_step = new_beginnings(stages, optimizer, AdapterWeights(stochastic_rounding=False))
    assert before_step is not None
    for step in range(6):
        before_step(step)
        if step == BORDER:
            fresh, fresh_optimizer = build(parameter.detach())
        stepped(parameter, optimizer, range(step, step + 1))
    stepped(fresh, fresh_optimizer, range(BORDER, 6))
    assert torch.equal(parameter, fresh)


class Sizes:
    """A feed of batches with given numbers of pictures."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes, self.batches_per_epoch, self.freed = sizes, len(sizes), False

    def num_images(self, index: int) -> int:
        return self.sizes[index % len(self.sizes)]

    def epoch(self, index: int) -> int:
        return index // len(self.sizes)

    def weights(self, index: int) -> int:
        return index

    def free(self) -> None:
        self.freed = True


def staged(job: MakeJob, *steps: int) -> tuple[Stage, ...]:
    asked = job(**{**SMALL, "steps": sum(steps)})
    return check_job(replace(asked, stages=tuple(stage(steps=count) for count in steps))).stages


def test_the_feed_of_a_run_is_those_of_its_stages(job: MakeJob) -> None:
    feeds: list[Any] = [Sizes((2, 1)), Sizes((4,)), Sizes((3, 1, 1))]
    counted = joined(staged(job, 3, 2, 4), feeds, accumulation_steps=1, accumulation_images=3)
    assert counted.starts == (0, 6, 8)
    feed = joined(staged(job, 3, 2, 4), feeds, accumulation_steps=2, accumulation_images=0)
    assert feed.starts == (0, 6, 10)
    assert [feed.num_images(index) for index in range(12)] == [2, 1, 2, 1, 2, 1, 4, 4, 4, 4, 3, 1]
    assert [feed.epoch(index) for index in (0, 2, 5, 6, 9, 10, 13)] == [0, 1, 2, 3, 6, 7, 8]
    assert [feed.epochs_done(batches) for batches in (0, 1, 2, 3, 6, 7)] == [0, 1, 1, 2, 3, 4]
    assert feed.weights(7) == 1
    assert [part.freed for part in feeds] == [True, False, False]


def test_the_feed_of_one_stage_is_that_of_the_run() -> None:
    feed = StagedFeed([Sizes((2, 1))], [0])  # type: ignore[list-item]
    assert feed.place(17) == (0, 17)


def test_progress_says_the_stage(job: MakeJob) -> None:
    shown = RecordingProgress()
    progress = StageProgress(shown, staged(job, 2, 4))
    for done in (1, 2):
        progress.update(done, 6, "loss 0.1")
    assert shown.updates == [(1, 6, "stage 1 of 2, loss 0.1"), (2, 6, "stage 2 of 2, loss 0.1")]


# whole runs --------------------------------------------------------------------------------------------------------


def test_one_stage_is_the_run_without_stages(job: MakeJob, places: Places, tmp_path: Path) -> None:
    elsewhere = {**places, "output_dir": tmp_path / "plain", "loras_dir": tmp_path / "plain-loras"}
    plain = train_lora(job(**SMALL), **elsewhere)
    assert_same_run(train_lora(replace(job(**SMALL), stages=(stage(),)), **places), plain)


@pytest.fixture(scope="module")
def whole(
    tiny_base: Path, dataset: Dataset, others: Dataset, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    """Two stages without an interruption."""
    from atelier_tests.helpers.training import make_job

    folder = tmp_path_factory.mktemp("staged")
    asked = replace(make_job(dataset, base=tiny_base, **SMALL, **STATEFUL), stages=two_stages(others))
    return train_lora(asked, output_dir=folder / "output", loras_dir=folder / "loras", cache_dir=cache_dir)


STATEFUL: dict[str, Any] = {"ema_decay": 0.9, "accumulation_images": 2, "save_every_epochs": 2}


def test_what_a_run_in_stages_writes(whole: RunResult) -> None:
    info = open_run(whole.run.folder)
    assert [int(row["stage"]) for row in info.rows] == [1, 1, 1, 2, 2, 2]
    assert [row["lr_unet"] for row in info.rows] == [1e-3] * 3 + [5e-4] * 3
    assert [row["epoch"] for row in info.rows] == sorted(row["epoch"] for row in info.rows)
    assert BORDER in [step for step, _ in info.checkpoints]
    first, second = info.manifest["stages"]
    assert (first["steps"], first["resolution_px"], first["batch_size"]) == (3, 64, 2)
    assert (second["steps"], second["resolution_px"], second["batch_size"]) == (3, 48, 1)
    assert second["optimizer_begins_anew"]
    for said in ("Stage 1 of 2: steps 1 to 3 on rings", "Stage 2 of 2: steps 4 to 6 on more; 48 px, learning rate"):
        assert said in whole.report
    with TensorFile(whole.lora_path) as file:
        assert json.loads(file.metadata["atelier.stages"]) == info.manifest["stages"]
        assert file.metadata["modelspec.resolution"] == "48x48"
        assert len(json.loads(file.metadata["ss_dataset_dirs"])) == 1
    state = list_checkpoints(whole.run.folder)[-1].facts["optimizer"]
    assert json.dumps(state), "the optimizer's state is plain"


def test_the_same_request_returns_the_run(job: MakeJob, others: Dataset, whole: RunResult, cache_dir: Path) -> None:
    asked = replace(job(**SMALL, **STATEFUL), stages=two_stages(others))
    folder = whole.run.folder.parents[3]
    again = train_lora(asked, output_dir=folder / "output", loras_dir=folder / "loras", cache_dir=cache_dir)
    assert again.steps_done == 0
    assert again.run.key == whole.run.key


@pytest.mark.parametrize("stop", [1, BORDER, BORDER + 1])
def test_cancel_and_resume(stop: int, job: MakeJob, others: Dataset, places: Places, whole: RunResult) -> None:
    """Inside the first stage, at the border, and inside the second."""
    asked = replace(job(**SMALL, **STATEFUL), stages=two_stages(others))
    with pytest.raises(Cancelled):
        train_lora(asked, progress=CancelAt(stop), **places)
    resumed = train_lora(asked, **places)
    assert resumed.steps_done == SMALL["steps"] - stop
    assert_same_run(resumed, whole)


KILLER = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
from atelier_tests.helpers.training import make_job, open_pictures
from atelier_tests.trainer.test_stages import SMALL, STATEFUL, two_stages
from lora_atelier.trainer import checkpoints
from lora_atelier.trainer.train import train_lora
folder, pictures, others, base, cache, step = sys.argv[1:]
old = checkpoints.write_json
def write(path, value):  # the checkpoint of this step is half written
    if value.get("step") == int(step):
        os.kill(os.getpid(), signal.SIGKILL)
    old(path, value)
checkpoints.write_json = write
job = make_job(open_pictures(Path(pictures)), base=Path(base), **SMALL, **STATEFUL, save_every_steps=1)
job = replace(job, stages=two_stages(open_pictures(Path(others))))
train_lora(job, output_dir=Path(folder) / "output", loras_dir=Path(folder) / "loras", cache_dir=Path(cache))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
@pytest.mark.parametrize(
    "killed",
    [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(5, marks=pytest.mark.slow)],
    ids=["in the first stage", "at the border", "in the second stage"],
)
def test_kill_and_resume(
    killed: int,
    tiny_base: Path,
    job: MakeJob,
    pictures: Path,
    others: Dataset,
    cache_dir: Path,
    places: Places,
    whole: RunResult,
    tmp_path: Path,
) -> None:
    child = start_child(
        KILLER,
        str(tmp_path),
        str(pictures),
        str(others.root),
        str(tiny_base),
        str(cache_dir),
        str(killed),
        cwd=tmp_path,
    )
    _, errors = child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL, errors
    asked = replace(job(**SMALL, **STATEFUL, save_every_steps=1), stages=two_stages(others))
    resumed = train_lora(asked, **places)
    assert resumed.steps_done == SMALL["steps"] - (killed - 1)
    assert_same_run(resumed, whole)


def test_a_damaged_picture_of_a_stage_is_left_out(job: MakeJob, places: Places, tmp_path: Path) -> None:
    folder = draw_pictures(tmp_path / "damaged", count=3)
    (folder / "2_ring" / "01.png").write_bytes((folder / "2_ring" / "01.png").read_bytes()[:-200])
    told = RecordingProgress()
    asked = replace(job(**{**SMALL, "steps": 2}), stages=(stage(steps=1), stage(open_pictures(folder))))
    result = train_lora(asked, progress=told, **places)
    assert any("left out" in line and "01.png" in line for line in told.lines)
    assert open_run(result.run.folder).manifest["stages"][1]["num_images"] == 2


def test_a_run_without_its_own_pictures_is_told(job: MakeJob, others: Dataset) -> None:
    checked = check_job(replace(job(**SMALL), stages=(stage(others),)))
    assert [dataset.root.name for dataset in checked.datasets] == ["more"]
    assert any("that of the run itself is not trained on" in warning for warning in checked.warnings)
