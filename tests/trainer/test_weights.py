"""bf16 weights: plain ones lose small updates, stochastically rounded ones do not; and the pack says so before."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_atelier.core.errors import InputError
from lora_atelier.trainer.config import Job, TrainParams
from lora_atelier.trainer.plan import check_job
from lora_atelier.trainer.train import train_lora
from lora_atelier.trainer.weights import AdapterWeights, stochastically_rounded


def test_rounding_goes_to_a_neighbour_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    value = 1.0 + 0.3 * 2.0**-7  # three tenths of the way between two bf16 numbers
    for sign in (1.0, -1.0):
        rounded = stochastically_rounded(torch.full((20000,), sign * value))
        assert rounded.dtype == torch.bfloat16
        assert set(rounded.float().tolist()) == {sign, sign * (1.0 + 2.0**-7)}
        assert float(rounded.float().mean()) == pytest.approx(sign * value, rel=1e-4)


def test_numbers_of_bf16_stay_what_they_are() -> None:
    exact = torch.tensor([0.0, 1.0, -2.5, 1e-30, float("inf"), float("-inf")]).bfloat16().float()
    assert torch.equal(stochastically_rounded(exact).float(), exact)
    assert bool(torch.isnan(stochastically_rounded(torch.tensor([float("nan")]))).all())


@pytest.mark.parametrize("stochastic", [True, False])
def test_small_updates(stochastic: bool) -> None:
    """A thousand updates of 1e-4 on a weight of 1: bf16 alone stays at 1, with chance it comes to about 1.1."""
    own = torch.nn.Parameter(torch.ones(256, dtype=torch.bfloat16))
    weights = AdapterWeights(stochastic_rounding=stochastic)
    optimizer = torch.optim.SGD(weights.worked_on([own]), lr=1e-4)
    for step in range(1000):
        own.grad = -torch.ones_like(own)
        weights.take_gradients()
        optimizer.step()
        weights.give_back(seed=0, step=step)
        optimizer.zero_grad()
        assert own.grad is None
    assert float(own.detach().float().mean()) == pytest.approx(1.1 if stochastic else 1.0, abs=0.01)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"trained_dtype": "bf16"}, "set precision to bf16"),
        ({"trained_dtype": "fp16", "precision": "bf16"}, "set precision to fp16"),
        ({"stochastic_rounding": True}, "choose trained_dtype bf16"),
        ({"accumulation_images": 4, "gradient_accumulation_steps": 2}, "count in pictures or in batches"),
        ({"accumulation_images": 2, "batch_size": 4}, "an update has at least one batch"),
        ({"ema_decay": 1.0}, "ema_decay is 1"),
    ],
)
def test_settings_that_contradict_each_other(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainParams(**given)


def test_pure_half_precision_is_warned_of(job: Callable[..., Job]) -> None:
    def warned(**changes: Any) -> str:
        return " ".join(check_job(job(**changes)).warnings)

    assert "usually nothing is learned" in warned(precision="bf16", trained_dtype="bf16")
    assert "switch stochastic_rounding on" in warned(precision="bf16", trained_dtype="bf16")
    assert "keep trained_dtype fp32" in warned(precision="fp16", trained_dtype="fp16")
    assert warned(precision="bf16", trained_dtype="bf16", stochastic_rounding=True) == ""
    assert warned(precision="bf16") == ""


def test_pictures_without_captions_are_warned_of(job: Callable[..., Job]) -> None:
    told = job()
    rows = {row: () for row in range(1, len(told.dataset))}
    silent = replace(told, dataset=told.dataset.with_tags(rows, note="emptied"))
    (warning,) = check_job(silent).warnings
    assert f"{len(rows)} of {len(told.dataset)} pictures have no caption" in warning
    subsets = [replace(subset, caption_prefix="zork") for subset in silent.dataset.subsets]
    assert check_job(replace(silent, dataset=silent.dataset.with_subsets(subsets, note="prefix"))).warnings == ()


def test_steps_that_fp16_cannot_hold_are_refused(job: Callable[..., Job]) -> None:
    settings: dict[str, Any] = {"precision": "fp16", "trained_dtype": "fp16", "optimizer_name": "prodigy"}
    with pytest.raises(InputError, match="begins with steps of 1e-06, which fp16 cannot hold"):
        check_job(job(**settings))
    check_job(job(**{**settings, "trained_dtype": "fp32"}))


def test_a_run_with_bf16_weights(job: Callable[..., Job], places: dict[str, Path]) -> None:
    settings = {"precision": "bf16", "trained_dtype": "bf16", "stochastic_rounding": True, "blocks": "MID"}
    result = train_lora(job(steps=2, train_text_encoder=False, **settings), **places)
    from lora_atelier.core.tensors import read_tensors

    state = read_tensors(result.run.folder / "checkpoints" / "step-00000002" / "state.safetensors")
    kinds = {value.dtype for name, value in state.items() if name.startswith("adapter/") and value.ndim > 1}
    assert kinds == {torch.bfloat16}
    moments = {value.dtype for name, value in state.items() if name.startswith("optimizer/") and value.ndim > 1}
    assert moments == {torch.float32}
