"""The loop without a model: what is read back, how batches are weighed, what is told."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from atelier_tests.trainer.test_optimizer_maths import Reads
from lora_atelier.core import seeds
from lora_atelier.core.progress import SilentProgress
from lora_atelier.trainer.loop import Learner, Route, Row, Standing, train
from lora_atelier.trainer.objectives._spec import objectives
from lora_atelier.trainer.optimizers._spec import ParamGroup, optimizers
from lora_atelier.trainer.precision import Precision
from lora_atelier.trainer.weights import AdapterWeights

ALPHAS = torch.linspace(0.999, 0.005, 1000)
EVERYTHING = {
    "weighting": "min_snr",
    "loss_type": "huber",
    "noise_offset": 0.1,
    "noise_offset_random": True,
    "noise_offset_adaptive": 0.01,
    "ip_noise_gamma": 0.1,
    "ip_noise_random": True,
    "timestep_distribution": "logit_normal",
}


class Batches:
    """Batches whose n-th has the n-th of some sizes, in a circle."""

    def __init__(self, sizes: Sequence[int], *, weights: bool = True) -> None:
        self.sizes, self.weighted = sizes, weights
        self.asked: list[int] = []

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        self.asked.append(index)
        draw = torch.Generator().manual_seed(index)
        return torch.randn(self.num_images(index), 4, 4, 4, generator=draw)

    def text(self, index: int, *, seed: int, step: int, micro: int) -> Any:
        return None

    def weights(self, index: int) -> torch.Tensor | None:
        return torch.full((self.num_images(index),), 0.5) if self.weighted else None

    def mask(self, index: int) -> torch.Tensor | None:
        return torch.ones(self.num_images(index), 1, 4, 4) if self.weighted else None

    def conditioning(self, index: int) -> Any:
        return index

    def num_images(self, index: int) -> int:
        return self.sizes[index % len(self.sizes)]

    def epoch(self, index: int) -> int:
        return index // len(self.sizes)


class Kept:
    """A recorder that keeps what it is told."""

    def __init__(self) -> None:
        self.all: list[Row] = []
        self.saved: list[Standing] = []

    def rows(self, rows: Sequence[Row]) -> None:
        self.all.extend(rows)

    def save(self, standing: Standing, *, kept: bool) -> None:
        self.saved.append(standing)

    def cancel(self, standing: Standing) -> None:
        raise AssertionError("nobody asked to stop")


def run(
    name: str, batches: Batches, *, steps: int = 3, objective: dict[str, Any] | None = None, **route: Any
) -> tuple[Kept, torch.nn.Parameter]:
    """Trains one number by which the noisy latents are scaled."""
    scale = torch.nn.Parameter(torch.full((1, 4, 1, 1), 0.1))
    spec, kind = optimizers()[name], objectives()["epsilon"]
    params = spec.params()
    kept = Kept()
    learner = Learner(
        predict=lambda noisy, timesteps, text, conditioning: noisy * scale,
        batches=batches,
        objective=kind,
        objective_params=kind.params(**(objective or {})),
        alphas_cumprod=ALPHAS,
        optimizer=spec.build([ParamGroup(name="unet", lr=params.lr_unet, parameters=[scale])], params),
        weights=AdapterWeights(stochastic_rounding=False),
        share=lambda step, group: 1.0,
        precision=Precision("fp32", torch.device("cpu")),
        device=torch.device("cpu"),
    )
    given = {"accumulation_steps": 1, "max_grad_norm": 1.0, **route}
    saves = Route(first_step=0, total_steps=steps, seed=1, saves_at=lambda *_: False, **given)
    train(learner, saves, kept, SilentProgress())
    return kept, scale


@pytest.mark.parametrize("name", ["adamw", "dadapt_lion", "prodigy", "lion", "came"])
def test_a_step_of_the_loop_reads_nothing_back(name: str) -> None:
    with Reads() as reads:
        kept, _ = run(name, Batches([2, 1]), objective=EVERYTHING, accumulation_images=3)
    assert reads.count == 0
    assert len(kept.all) == 3


def test_images_are_counted_across_batches() -> None:
    batches = Batches([2, 1, 2])
    kept, _ = run("adamw", batches, steps=4, accumulation_images=4)
    assert batches.asked == list(range(12))
    assert [row.images_seen for row in kept.all] == [5, 10, 15, 20]
    assert kept.saved[-1].batches_done == 12


def test_every_picture_weighs_the_same() -> None:
    """The loss of an update is the mean over its pictures: (2 x mean of two + 1 x the one) / 3."""

    kind, means = objectives()["epsilon"], []
    for micro, size in enumerate((2, 1)):
        latents = Batches([2, 1]).latents(micro, seed=1, step=0, micro=micro)
        assert len(latents) == size
        question = kind.ask(
            latents,
            alphas_cumprod=ALPHAS,
            params=kind.params(),
            generator=seeds.generator(1, 0, f"noise {micro}"),
        )
        losses = kind.loss(question.noisy_latents * 0.1, question, alphas_cumprod=ALPHAS, params=kind.params())
        means.append(float(losses.mean()))
    together, _ = run("adamw", Batches([2, 1], weights=False), steps=1, accumulation_images=3)
    assert together.all[0].loss == pytest.approx((2 * means[0] + means[1]) / 3, rel=1e-5)
    fixed, _ = run("adamw", Batches([2, 1], weights=False), steps=1, accumulation_steps=2)
    assert fixed.all[0].loss == pytest.approx((means[0] + means[1]) / 2, rel=1e-5)


def test_effective_rates() -> None:
    kept, _ = run("adamw", Batches([1]), steps=2)
    assert [row.effective_lr for row in kept.all] == [1e-4, 1e-4]
    kept, _ = run("dadapt_adam", Batches([4]), steps=60)
    rates = [row.effective_lr for row in kept.all]
    assert rates[0] == pytest.approx(1e-6)
    assert rates == sorted(rates)
    assert rates[-1] > 1e-5
    assert {row.lr["unet"] for row in kept.all} == {1.0}
