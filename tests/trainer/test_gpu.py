"""The same run on a CUDA device."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from atelier_tests.helpers.training import WHOLE, CancelTraining
from lora_atelier.core.progress import Cancelled
from lora_atelier.trainer.config import Job
from lora_atelier.trainer.train import RunResult, train_lora

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_cuda_gives_the_numbers_of_the_cpu_and_all_memory_back(
    job: Callable[..., Job], places: dict[str, Path], whole_run: RunResult
) -> None:
    before = torch.cuda.memory_allocated()
    result = train_lora(job(**WHOLE), device="cuda", **places)
    assert result.losses == pytest.approx(whole_run.losses, rel=2e-2)
    assert torch.cuda.memory_allocated() == before


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_cancel_and_resume_on_cuda(job: Callable[..., Job], places: dict[str, Path], precision: str) -> None:
    before = torch.cuda.memory_allocated()
    settings = {**WHOLE, "precision": precision}
    with pytest.raises(Cancelled):
        train_lora(job(**settings), device="cuda", progress=CancelTraining(places["output_dir"], 12), **places)
    resumed = train_lora(job(**settings), device="cuda", **places)
    assert resumed.steps_done == 3
    assert torch.cuda.memory_allocated() == before
