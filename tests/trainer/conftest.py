"""One tiny base and one set of pictures for all tests of the room; every test has its own output folders."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.training import WHOLE, draw_pictures, make_job, open_pictures
from lora_atelier.dataset.table import Dataset
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.train import RunResult, train_lora

MakeJob = Callable[..., Job]


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("base") / "tiny.safetensors", seed=3)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_pictures(tmp_path_factory.mktemp("pictures") / "rings")


@pytest.fixture(scope="session")
def dataset(pictures: Path) -> Dataset:
    return open_pictures(pictures)


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def job(tiny_base: Path, dataset: Dataset) -> MakeJob:
    def make(**changes: Any) -> Job:
        return make_job(changes.pop("dataset", dataset), base=tiny_base, **changes)

    return make


@pytest.fixture
def places(tmp_path: Path, cache_dir: Path) -> dict[str, Path]:
    found = {"output_dir": tmp_path / "output", "loras_dir": tmp_path / "loras", "cache_dir": cache_dir}
    for folder in found.values():
        folder.mkdir(parents=True, exist_ok=True)
    return found


@pytest.fixture(scope="session")
def whole_run(
    tiny_base: Path, dataset: Dataset, cache_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunResult:
    """A run of 7 steps without an interruption, with a checkpoint every 3 steps."""
    folder = tmp_path_factory.mktemp("whole")
    job = make_job(dataset, base=tiny_base, **WHOLE)
    return train_lora(job, output_dir=folder / "output", loras_dir=folder / "loras", cache_dir=cache_dir)
