"""Optimizers against references: the papers written out, and pytorch_optimizer's own classes over many steps."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lora_atelier.trainer.optimizers._spec import Optimizer, ParamGroup, optimizers
from lora_atelier.trainer.optimizers.adafactor import AdafactorParams
from lora_atelier.trainer.optimizers.came import CameParams
from lora_atelier.trainer.optimizers.dadapt_adagrad import DAdaptAdagradParams
from lora_atelier.trainer.optimizers.dadapt_adam import DAdaptAdamParams
from lora_atelier.trainer.optimizers.dadapt_lion import DAdaptLionParams
from lora_atelier.trainer.optimizers.dadapt_sgd import DAdaptSgdParams
from lora_atelier.trainer.optimizers.lion import LionParams
from lora_atelier.trainer.optimizers.prodigy import ProdigyParams
from lora_atelier.trainer.optimizers.schedule_free_adamw import ScheduleFreeAdamWParams

SHAPES = ((4, 3), (5,), (3, 2, 1, 1))
Rate = Callable[[int], float]


def parameters(seed: int = 0) -> list[torch.nn.Parameter]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=draw)) for shape in SHAPES]


def groups(made: Sequence[torch.nn.Parameter], lr: float) -> list[ParamGroup]:
    return [
        ParamGroup(name="unet", lr=lr, parameters=made[:2]),
        ParamGroup(name="text_encoder", lr=lr, parameters=made[2:]),
    ]


def gradients(step: int, made: Sequence[torch.nn.Parameter]) -> list[torch.Tensor]:
    """Of a badly scaled quadratic with noise, so that step sizes have something to find."""
    draw = torch.Generator().manual_seed(step)
    return [
        scale * parameter.detach() + 0.1 * torch.randn(parameter.shape, generator=draw)
        for scale, parameter in zip((1.0, 10.0, 0.1), made, strict=True)
    ]


def run(optimizer: torch.optim.Optimizer, made: list[torch.nn.Parameter], steps: int, rate: Rate | None = None) -> None:
    for step in range(steps):
        for parameter, gradient in zip(made, gradients(step, made), strict=True):
            parameter.grad = gradient
        if rate is not None:
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
        optimizer.step()


def rising(step: int) -> float:
    return min(1.0, step / 4)


FAMILY: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "prodigy": (
        ProdigyParams(weight_decay=0.02, use_bias_correction=False, safeguard_warmup=False),
        "Prodigy",
        {"weight_decay": 0.02, "betas": (0.9, 0.999), "safeguard_warmup": False, "bias_correction": False},
    ),
    "prodigy ": (
        ProdigyParams(weight_decay=0.0, d_coef=2.0, growth_rate=1.5),
        "Prodigy",
        {"d_coef": 2.0, "growth_rate": 1.5, "safeguard_warmup": True, "bias_correction": True},
    ),
    "dadapt_adam": (
        DAdaptAdamParams(weight_decay=0.02),
        "DAdaptAdam",
        {"weight_decay": 0.02, "weight_decouple": True},
    ),
    "dadapt_lion": (
        DAdaptLionParams(weight_decay=0.02),
        "DAdaptLion",
        {"weight_decay": 0.02, "weight_decouple": True},
    ),
    "dadapt_sgd": (DAdaptSgdParams(weight_decay=0.01), "DAdaptSGD", {"weight_decay": 0.01}),
    "dadapt_adagrad": (DAdaptAdagradParams(), "DAdaptAdaGrad", {}),
}


@pytest.mark.parametrize("name", FAMILY)
@pytest.mark.parametrize("rate", [None, rising], ids=["rate 1", "warm-up"])
def test_adaptive_optimizers_equal_the_library_s(name: str, rate: Rate | None) -> None:
    library = pytest.importorskip("pytorch_optimizer")
    params, class_name, settings = FAMILY[name]
    own, other = parameters(), parameters()
    optimizer = optimizers()[name.strip()].build(groups(own, 1.0), params)
    reference = getattr(library, class_name)(
        [{"params": other[:2]}, {"params": other[2:]}], lr=1.0, foreach=False, d0=params.d0, **settings
    )
    for steps in (1, 20):
        run(optimizer, own, steps, rate)
        run(reference, other, steps, rate)
        d = float(reference.param_groups[0]["d"]) * reference.param_groups[0]["lr"]
        assert float(optimizer.effective_lr()) == pytest.approx(d, rel=2e-3)  # type: ignore[attr-defined]
        for mine, theirs in zip(own, other, strict=True):
            torch.testing.assert_close(mine.detach(), theirs.detach(), rtol=2e-3, atol=1e-6)
    assert float(optimizer.effective_lr()) > 2e-6  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", [name for name in FAMILY if name == name.strip()])
def test_adaptive_optimizers_reach_the_goal(name: str) -> None:
    made = parameters()
    optimizer = optimizers()[name].build(groups(made, 1.0), FAMILY[name][0].__class__())
    before = sum(float(parameter.detach().square().sum()) for parameter in made[:2])
    run(optimizer, made, 400)
    assert sum(float(parameter.detach().square().sum()) for parameter in made[:2]) < 0.2 * before


def test_lion_by_the_paper() -> None:
    """Program 1 of Chen et al. 2023, number by number."""
    beta1, beta2, decay, lr = 0.9, 0.99, 0.1, 1e-2
    made = parameters()[:1]
    params = LionParams(beta1=beta1, beta2=beta2, weight_decay=decay, lr_unet=lr)
    optimizer = optimizers()["lion"].build([ParamGroup(name="unet", lr=lr, parameters=made)], params)
    weights, mean = made[0].detach().double().flatten().tolist(), [0.0] * 12
    for step in range(1, 5):
        slopes = [math.sin(step * (index + 1)) for index in range(12)]
        made[0].grad = torch.tensor(slopes).view_as(made[0])
        optimizer.step()
        for index, slope in enumerate(slopes):
            leaning = beta1 * mean[index] + (1 - beta1) * slope
            weights[index] -= lr * (math.copysign(1.0, leaning) + decay * weights[index])
            mean[index] = beta2 * mean[index] + (1 - beta2) * slope
    assert made[0].flatten().tolist() == pytest.approx(weights, rel=1e-4, abs=1e-6)


def factored(squared: torch.Tensor) -> torch.Tensor:
    """Rows times columns over their mean: Adafactor's second moment."""
    rows, columns = squared.mean(dim=1, keepdim=True), squared.mean(dim=0, keepdim=True)
    return rows * columns / rows.mean()


def rms(x: torch.Tensor) -> torch.Tensor:
    return x.square().mean().sqrt()


def test_adafactor_by_the_paper() -> None:
    """Algorithm 4 of Shazeer and Stern 2018 with a fixed rate: in the first step beta2 is 0."""
    made = parameters()[:1]
    start, slope = made[0].detach().clone(), torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    params = AdafactorParams(weight_decay=0.1)
    optimizer = optimizers()["adafactor"].build([ParamGroup(name="unet", lr=0.01, parameters=made)], params)
    made[0].grad = slope.clone()
    optimizer.step()
    update = slope / factored(slope.square() + 1e-30).sqrt()
    update = update / rms(update).clamp(min=1.0)
    torch.testing.assert_close(made[0].detach(), start - 0.01 * 0.1 * start - 0.01 * update, rtol=1e-4, atol=1e-6)


def test_came_by_the_paper() -> None:
    """Algorithm 2 of Luo et al. 2023, first step."""
    made = parameters()[:1]
    start, slope = made[0].detach().clone(), torch.randn(4, 3, generator=torch.Generator().manual_seed(2))
    optimizer = optimizers()["came"].build(
        [ParamGroup(name="unet", lr=0.01, parameters=made)], CameParams(weight_decay=0.0)
    )
    made[0].grad = slope.clone()
    optimizer.step()
    update = slope / factored((1 - 0.999) * (slope.square() + 1e-30)).sqrt()
    update = update / rms(update).clamp(min=1.0)
    mean = 0.1 * update
    unsteady = (1 - 0.9999) * ((update - mean).square() + 1e-16)
    torch.testing.assert_close(made[0].detach(), start - 0.01 * mean / factored(unsteady).sqrt(), rtol=1e-3, atol=1e-6)


def test_schedule_free_adamw_by_the_paper() -> None:
    """Algorithm 1 of Defazio et al. 2024: y between z and their average x."""
    beta1, beta2, lr, epsilon = 0.9, 0.999, 0.05, 1e-8
    made = parameters()[:1]
    params = ScheduleFreeAdamWParams(weight_decay=0.0)
    optimizer = optimizers()["schedule_free_adamw"].build([ParamGroup(name="unet", lr=lr, parameters=made)], params)
    x = z = y = made[0].detach().double().clone()
    second, weights = torch.zeros_like(x), 0.0
    for step in range(1, 5):
        slope = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        made[0].grad = slope.clone()
        optimizer.step()
        second = beta2 * second + (1 - beta2) * slope.double().square()
        z = z - lr * slope.double() / ((second / (1 - beta2**step)).sqrt() + epsilon)
        weights += lr**2
        share = lr**2 / weights
        x = (1 - share) * x + share * z
        y = (1 - beta1) * z + beta1 * x
        torch.testing.assert_close(made[0].detach().double(), y, rtol=1e-4, atol=1e-5)
    optimizer.eval()  # type: ignore[attr-defined]
    torch.testing.assert_close(made[0].detach().double(), x, rtol=1e-4, atol=1e-5)


class Reads(TorchDispatchMode):
    """Counts how often a tensor's value is brought to the host."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


HOST_READS = {"adamw8bit", "other"}
"""Those whose insides are not ours to promise."""


@pytest.mark.parametrize("name", sorted(set(optimizers()) - HOST_READS))
def test_a_step_reads_nothing_back(name: str) -> None:
    spec: Optimizer = optimizers()[name]
    made = parameters()
    optimizer = spec.build(groups(made, spec.params().lr_unet), spec.params())
    with Reads() as reads:
        run(optimizer, made, 3)
        effective = getattr(optimizer, "effective_lr", None)
        if effective is not None:
            effective()
    assert reads.count == 0
