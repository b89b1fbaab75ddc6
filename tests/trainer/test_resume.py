"""n steps, a stop and m steps are n + m steps to the bit, for every optimizer, with everything that has a state on."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.training import CancelTraining, make_job, open_pictures
from atelier_tests.trainer.test_train import assert_same_run
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import Cancelled
from lora_atelier.core.tensors import read_tensors
from lora_atelier.dataset.table import Dataset
from lora_atelier.trainer.checkpoints import State, list_checkpoints, load_state, save_checkpoint
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.optimizers._spec import ParamGroup, optimizers
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import continue_run, train_lora

MakeJob = Callable[..., Job]
Places = dict[str, Path]
NAMES = sorted(optimizers())
OTHERS = {"other": {"class_name": "AdEMAMix", "arguments": "weight_decay=0.1"}}
SMALL: dict[str, Any] = {
    "steps": 6,
    "batch_size": 2,
    "accumulation_images": 3,
    "ema_decay": 0.9,
    "blocks": "MID",
    "train_text_encoder": False,
}


def small(name: str) -> dict[str, Any]:
    """Settings of a short run with accumulation and a moving average (which a schedule-free optimizer is itself)."""
    spec = optimizers()[name]
    if spec.needs:
        pytest.importorskip(spec.needs)
    changes = {"ema_decay": 0.0} if spec.averages else {}
    return {**SMALL, "optimizer_name": name, "optimizer": OTHERS.get(name), **changes}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("stop", [1, 3])
def test_the_state_goes_through_a_checkpoint(name: str, stop: int, tmp_path: Path) -> None:
    """The optimizer alone, through the files, with rates that change and a gradient that is missing now and then."""
    spec = optimizers()[name]
    if spec.needs:
        pytest.importorskip(spec.needs)
    params = spec.params(**(OTHERS.get(name) or {}))

    def begun() -> tuple[list[torch.nn.Parameter], torch.optim.Optimizer]:
        draw = torch.Generator().manual_seed(0)
        made = [
            torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((70, 70), (5,), (3, 2, 1, 1), (2,))
        ]
        groups = [
            ParamGroup(name="unet", lr=params.lr_unet, parameters=made[:2]),
            ParamGroup(name="text_encoder", lr=params.lr_unet, parameters=made[2:]),
        ]
        return made, spec.build(groups, params)

    def stepped(made: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            torch.manual_seed(step)
            draw = torch.Generator().manual_seed(step)
            for group in optimizer.param_groups:
                group["lr"] = params.lr_unet * (step + 1) / 6
            for number, parameter in enumerate(made):
                gradient = torch.randn(parameter.shape, generator=draw)
                parameter.grad = None if number == 3 or (number == 1 and step < 2) else gradient
            optimizer.step()

    whole, optimizer = begun()
    stepped(whole, optimizer, range(6))
    first, optimizer = begun()
    stepped(first, optimizer, range(stop))
    weights = {str(number): parameter.detach() for number, parameter in enumerate(first)}
    state = State(adapter=weights, optimizer=optimizer.state_dict(), precision={})
    saved = save_checkpoint(tmp_path, step=stop, kept=True, facts={}, state=state, write_lora=None)
    loaded = load_state(saved)
    second, optimizer = begun()
    optimizer.load_state_dict(dict(loaded.optimizer))
    with torch.no_grad():
        for number, parameter in enumerate(second):
            parameter.copy_(loaded.adapter[str(number)])
    stepped(second, optimizer, range(stop, 6))
    for one, other in zip(whole, second, strict=True):
        assert torch.equal(one, other)


SOME = ["prodigy", "schedule_free_adamw", "came"]
"""One that finds its step size, one that averages, one with a state in parts: the rest is slow."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in SOME else [pytest.mark.slow]) for name in NAMES]
)
def test_cancel_and_resume(name: str, job: MakeJob, places: Places, tmp_path: Path) -> None:
    settings = small(name)
    elsewhere = {**places, "output_dir": tmp_path / "whole", "loras_dir": tmp_path / "whole-loras"}
    whole = train_lora(job(**settings), **elsewhere)
    with pytest.raises(Cancelled):
        train_lora(job(**settings), progress=CancelTraining(places["output_dir"], 9), **places)
    resumed = train_lora(job(**settings), **places)
    assert 0 < resumed.steps_done < 6
    assert_same_run(resumed, whole)
    state = read_tensors(resumed.run.folder / "checkpoints" / "step-00000006" / "state.safetensors")
    assert any(key.startswith("average/") for key in state) == (settings["ema_decay"] > 0.0)


KILLER = """
import json, os, signal, sys
from pathlib import Path
from atelier_tests.helpers.training import make_job, open_pictures
from lora_atelier.trainer import checkpoints
from lora_atelier.trainer.train import train_lora
folder, pictures, base, cache, settings = sys.argv[1:]
old = checkpoints.write_json
def write(path, value):
    if value.get("step") == 4:  # the state of step 4 is half written; that of step 2 is whole
        os.kill(os.getpid(), signal.SIGKILL)
    old(path, value)
checkpoints.write_json = write
job = make_job(open_pictures(Path(pictures)), base=Path(base), save_every_steps=2, **json.loads(settings))
train_lora(job, output_dir=Path(folder) / "output", loras_dir=Path(folder) / "loras", cache_dir=Path(cache))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")
@pytest.mark.parametrize("name", NAMES)
def test_kill_and_resume(
    name: str, tiny_base: Path, pictures: Path, dataset: Dataset, cache_dir: Path, places: Places, tmp_path: Path
) -> None:
    import json

    settings = {**small(name), "stochastic_rounding": True, "trained_dtype": "bf16", "precision": "bf16"}
    elsewhere = {**places, "output_dir": tmp_path / "whole", "loras_dir": tmp_path / "whole-loras"}
    job = make_job(dataset, base=tiny_base, save_every_steps=2, **settings)
    whole = train_lora(job, **elsewhere)
    child = start_child(
        KILLER, str(tmp_path), str(pictures), str(tiny_base), str(cache_dir), json.dumps(settings), cwd=tmp_path
    )
    _, errors = child.communicate(timeout=600)
    assert child.returncode == -signal.SIGKILL, errors
    resumed = train_lora(job, **places)
    assert resumed.steps_done == 4
    assert_same_run(resumed, whole)


def test_accumulation_is_counted_in_images(job: MakeJob, places: Places) -> None:
    """Three pictures an update from batches of two: each takes two batches, which may hold one picture."""
    result = train_lora(job(steps=5, batch_size=2, accumulation_images=3, blocks="MID"), **places)
    rows = open_run(result.run.folder).rows
    shown = [int(row["images_seen"]) for row in rows]
    assert all(later - earlier >= 3 for earlier, later in zip([0, *shown], shown, strict=False))
    facts = [point.facts for point in list_checkpoints(result.run.folder)]
    assert facts[-1]["batches_done"] == 10
    assert "at least 3 pictures for an update" in result.report


def test_a_checkpoint_of_the_first_version_is_resumed(job: MakeJob, places: Places, whole_run: Any) -> None:
    """It does not say how many batches were done, has no average, and holds the betas as a list."""
    import json

    from atelier_tests.helpers.training import WHOLE

    with pytest.raises(Cancelled):
        train_lora(job(**WHOLE), progress=CancelTraining(places["output_dir"], 9), **places)
    (folder,) = (places["output_dir"] / "atelier" / "runs").iterdir()
    for point in list_checkpoints(folder):
        path = point.folder / "state.json"
        facts = json.loads(path.read_text(encoding="utf-8"))
        del facts["batches_done"]
        for group in facts["optimizer"]["param_groups"]:
            group["betas"] = group["betas"]["$tuple"]
        path.write_text(json.dumps(facts), encoding="utf-8")
    metrics = folder / "metrics.csv"
    lines = [line.rpartition(",")[0] for line in metrics.read_text(encoding="utf-8").splitlines()]
    metrics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert open_run(folder).rows[0]["effective_lr"] == 1e-3
    assert_same_run(train_lora(job(**WHOLE), **places), whole_run)


def test_the_average_is_saved_and_the_weights_stay(job: MakeJob, places: Places) -> None:
    plain = train_lora(job(steps=4, blocks="MID", train_text_encoder=False), **places)
    averaged = train_lora(job(steps=4, blocks="MID", train_text_encoder=False, ema_decay=0.999), **places)
    assert averaged.losses == plain.losses
    states = [
        read_tensors(result.run.folder / "checkpoints" / "step-00000004" / "state.safetensors")
        for result in (plain, averaged)
    ]
    adapter = [name for name in states[0] if name.startswith("adapter/")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in adapter)
    files = [read_tensors(result.lora_path) for result in (plain, averaged)]
    ups = [name for name in files[0] if name.endswith("lora_up.weight")]
    lengths = [sum(float(tensors[name].float().norm()) for name in ups) for tensors in files]
    assert 0.0 < lengths[1] < 0.95 * lengths[0]


def test_the_average_by_hand() -> None:
    from types import SimpleNamespace

    from lora_atelier.trainer.average import MovingAverage

    weight = torch.tensor([1.0])
    adapter: Any = SimpleNamespace(stems=("a",), parts_of=lambda stem: {"w": weight})
    average = MovingAverage(adapter, decay=0.5)
    expected = 1.0
    for step, value in enumerate((2.0, 3.0, 5.0), start=1):
        weight.fill_(value)
        average.update(step)
        share = min(0.5, (1 + step) / (10 + step))
        expected = share * expected + (1 - share) * value
        assert average.state()["a.w"].item() == pytest.approx(expected)


def test_effective_rates_are_logged(job: MakeJob, places: Places) -> None:
    """The column shows d x lr, beside the factor lr; what d does is tested with the formulas."""
    settings: dict[str, Any] = {"optimizer_name": "dadapt_lion", "optimizer": {"lr_unet": 0.5, "d0": 2e-6}}
    result = train_lora(job(steps=3, blocks="MID", train_text_encoder=False, **settings), **places)
    rows = open_run(result.run.folder).rows
    assert [row["lr_unet"] for row in rows] == [0.5] * 3
    assert rows[0]["effective_lr"] == pytest.approx(1e-6)
    assert all(1e-6 <= row["effective_lr"] * 1.0001 < 0.1 for row in rows)
    plain = train_lora(job(steps=2, blocks="MID", train_text_encoder=False), **places)
    assert [row["effective_lr"] for row in open_run(plain.run.folder).rows] == [1e-3, 1e-3]


def test_continue_with_another_setting_keeps_the_state(
    job: MakeJob, places: Places, tiny_base: Path, pictures: Path
) -> None:
    """The estimate d is state and goes on; the weight decay is a setting and changes."""
    from dataclasses import replace

    from lora_atelier.families._base import open_base

    dataset = open_pictures(pictures)
    settings: dict[str, Any] = {"blocks": "MID", "train_text_encoder": False, "optimizer_name": "prodigy"}
    parent = train_lora(job(steps=4, **settings), **places)
    choice = job(steps=4, **settings).optimizer
    changed = replace(choice, params=replace(choice.params, weight_decay=0.5, d0=1e-2))
    child = continue_run(
        parent.run, base=open_base(tiny_base, name="x"), dataset=dataset, extra_steps=2, optimizer=changed, **places
    )
    rows = open_run(child.run.folder).rows
    last = open_run(parent.run.folder).rows[-1]["effective_lr"]
    assert last * 0.9 < rows[-1]["effective_lr"] < 1e-3
    facts = list_checkpoints(child.run.folder)[-1].facts["optimizer"]["param_groups"][0]
    assert facts["weight_decay"] == 0.5


def test_an_optimizer_that_averages_refuses_a_second_average(job: MakeJob, places: Places) -> None:
    with pytest.raises(InputError, match="averages the weights itself: set ema_decay to 0"):
        train_lora(job(optimizer_name="schedule_free_adamw", ema_decay=0.9), **places)
