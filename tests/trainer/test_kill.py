"""Kill -9 at any moment: the resumed run is the uninterrupted one to the bit, and nothing is half written."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from atelier_tests.helpers.child import start_child
from atelier_tests.helpers.training import WHOLE, make_job
from lora_atelier.core.tensors import TensorFile, read_tensors
from lora_atelier.dataset.table import Dataset
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import RunResult, train_lora

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a POSIX signal")

# The child trains and kills itself at a named moment, so that the test does not depend on the machine's speed.
SELF_KILLER = """
import os, signal, sys
from pathlib import Path
from atelier_tests.helpers.training import WHOLE, CancelTraining, make_job, open_pictures
from lora_atelier.trainer import checkpoints, loop, run
from lora_atelier.trainer.train import train_lora
folder, pictures, base, cache, moment = sys.argv[1:]
die = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
class Killer(CancelTraining):
    def check(self):
        try:
            super().check()
        except BaseException:
            die()
progress = Killer(Path(folder) / "output", 11 if moment == "between" else 10**9)
if moment == "half checkpoint":  # the state is written, the folder not yet renamed
    old = checkpoints.write_json
    checkpoints.write_json = lambda path, value: die() if value.get("step") == 6 else old(path, value)
if moment == "unpublished":  # the checkpoint is there, its LoRA not yet in the loras folder
    old_publish = run.RunFolder.publish
    run.RunFolder.publish = lambda self, point, *a, **k: die() if point.step == 6 else old_publish(self, point, *a, **k)
if moment == "unfinished":  # everything is saved, the status does not say so yet
    old_status = run.RunFolder.write_status
    run.RunFolder.write_status = lambda self, state, **k: die() if state == "finished" else old_status(self, state, **k)
if moment == "steadily":  # saves as often as possible, for kills from outside
    loop.AUTOSAVE_EVERY_S = 0.0
job = make_job(open_pictures(Path(pictures)), base=Path(base), **WHOLE)
print("ready", flush=True)
train_lora(job, progress=progress, output_dir=Path(folder) / "output", loras_dir=Path(folder) / "loras",
           cache_dir=Path(cache))
"""


def assert_nothing_is_lost(got: RunResult, expected: RunResult, loras_dir: Path) -> None:
    for one_path, other_path in zip(
        (got.lora_path, got.run.folder / "checkpoints/step-00000007/state.safetensors"),
        (expected.lora_path, expected.run.folder / "checkpoints/step-00000007/state.safetensors"),
        strict=True,
    ):
        one, other = read_tensors(one_path), read_tensors(other_path)
        assert one.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    with TensorFile(got.lora_path) as one_file, TensorFile(expected.lora_path) as other_file:
        assert one_file.metadata["sshs_model_hash"] == other_file.metadata["sshs_model_hash"]
    info = open_run(got.run.folder)
    assert [step for step, _ in info.checkpoints] == [3, 6, 7]
    assert [row["step"] for row in info.rows] == [1, 2, 3, 4, 5, 6, 7]
    assert got.losses == expected.losses
    assert {path.name for path in (loras_dir / "atelier" / "tiny").iterdir()} == {
        "tiny.safetensors",
        "tiny-step00000003.safetensors",
        "tiny-step00000006.safetensors",
    }
    assert not list(got.run.folder.rglob("*.tmp"))


@pytest.mark.parametrize("moment", ["between", "half checkpoint", "unpublished", "unfinished"])
def test_killed_at_a_named_moment(
    moment: str,
    tiny_base: Path,
    pictures: Path,
    dataset: Dataset,
    cache_dir: Path,
    whole_run: RunResult,
    tmp_path: Path,
) -> None:
    child = start_child(SELF_KILLER, str(tmp_path), str(pictures), str(tiny_base), str(cache_dir), moment, cwd=tmp_path)
    _, errors = child.communicate(timeout=300)
    assert child.returncode == -signal.SIGKILL, errors
    (folder,) = (tmp_path / "output" / "atelier" / "runs").iterdir()
    assert json.loads((folder / "status.json").read_text(encoding="utf-8"))["state"] == "running"
    job = make_job(dataset, base=tiny_base, **WHOLE)
    resumed = train_lora(job, output_dir=tmp_path / "output", loras_dir=tmp_path / "loras", cache_dir=cache_dir)
    assert resumed.steps_done == {"between": 4, "half checkpoint": 4, "unpublished": 1, "unfinished": 0}[moment]
    assert_nothing_is_lost(resumed, whole_run, tmp_path / "loras")


def rows_of(folder: Path) -> tuple[int, int]:
    """Returns (rows, time of the last change) of the metrics of the run below the folder."""
    for path in (folder / "output").glob("atelier/runs/*/metrics.csv"):
        return len(path.read_text(encoding="utf-8").splitlines()) - 1, path.stat().st_mtime_ns
    return 0, 0


def wait_for_rows(child: subprocess.Popen[str], folder: Path) -> bool:
    """Waits until the child has taken the run up and rows are there; False if it ended before."""
    _, before_ns = rows_of(folder)
    while child.poll() is None:
        rows, changed_ns = rows_of(folder)
        if rows > 0 and changed_ns != before_ns:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
def test_killed_at_20_random_moments(
    tiny_base: Path, pictures: Path, dataset: Dataset, cache_dir: Path, whole_run: RunResult, tmp_path: Path
) -> None:
    """Each child is killed at a random time of its training, again and again, and then resumed to the end.

    Only kills after the first row of the metrics count: before it there is nothing to lose.
    """
    draw, kills, alive_s = random.Random(1), 0, 6.0
    while kills < 20:
        folder = tmp_path / f"kill{kills:02d}"
        for _ in range(draw.randint(1, 3)):
            child = start_child(
                SELF_KILLER, str(folder), str(pictures), str(tiny_base), str(cache_dir), "steadily", cwd=tmp_path
            )
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            trains, started = wait_for_rows(child, folder), time.perf_counter()
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(timeout=draw.uniform(0.0, alive_s))
                alive_s = min(alive_s, time.perf_counter() - started) if trains else alive_s
            child.kill()
            _, errors = child.communicate()
            assert child.returncode in (0, -signal.SIGKILL), errors
            if child.returncode == 0:
                break
            kills += 1
        job = make_job(dataset, base=tiny_base, **WHOLE)
        places = {"output_dir": folder / "output", "loras_dir": folder / "loras", "cache_dir": cache_dir}
        for place in places.values():
            place.mkdir(parents=True, exist_ok=True)
        assert_nothing_is_lost(train_lora(job, **places), whole_run, folder / "loras")
        shutil.rmtree(folder)
