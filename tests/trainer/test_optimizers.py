"""Optimizers: the contract over all of them, and AdamW against the paper written out."""

import math
from typing import Any

import pytest
import torch

from lora_atelier.core.errors import UnknownNameError
from lora_atelier.trainer.optimizers._spec import OptimizerParams, ParamGroup, Trained, find_optimizer, optimizers
from lora_atelier.trainer.optimizers.adamw import OPTIMIZER, AdamWParams

BOTH = Trained(unet=True, text_encoder=True, steps=100)


def groups(lr_unet: float = 1e-2, lr_text_encoder: float = 1e-3) -> list[ParamGroup]:
    torch.manual_seed(0)
    return [
        ParamGroup(name="unet", lr=lr_unet, parameters=[torch.nn.Parameter(torch.randn(4, 3))]),
        ParamGroup(name="text_encoder", lr=lr_text_encoder, parameters=[torch.nn.Parameter(torch.randn(2))]),
    ]


def ready(name: str) -> Any:
    spec = optimizers()[name]
    if spec.needs:
        pytest.importorskip(spec.needs)
    return spec


def one_rate(spec: Any) -> bool:
    """Whether it finds its step size itself and needs one learning rate everywhere."""
    return bool(spec.params().lr_unet == 1.0)


@pytest.mark.parametrize("name", sorted(optimizers()))
def test_optimizer_contract(name: str) -> None:
    spec = ready(name)
    assert spec.name == name
    assert spec.summary
    assert spec.source
    assert issubclass(spec.params, OptimizerParams)
    params = spec.params()
    assert spec.params.from_json(params.to_json()) == params
    assert list(params.to_json())[:5] == ["lr_unet", "lr_text_encoder", "schedule", "warmup_steps", "cycles"]
    assert all(isinstance(line, str) for line in spec.check(params, BOTH))
    rates = (1.0, 1.0) if one_rate(spec) else (1e-2, 1e-3)
    made = groups(*rates)
    optimizer = spec.build(made, params)
    assert [group["name"] for group in optimizer.param_groups] == ["unet", "text_encoder"]
    assert [group["lr"] for group in optimizer.param_groups] == list(rates)
    before = [parameter.detach().clone() for group in made for parameter in group.parameters]
    for _ in range(2):  # a schedule-free one begins with the average of one
        for group in made:
            for parameter in group.parameters:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    after = [parameter for group in made for parameter in group.parameters]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))
    floats = sum(
        value.numel()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor) and value.numel() > 1
    )
    assert 0 < floats <= spec.state_floats * sum(parameter.numel() for parameter in after)


def test_adamw_matches_the_paper() -> None:
    """Algorithm 2 of Loshchilov and Hutter 2019, number by number."""
    beta1, beta2, epsilon, decay, lr = 0.8, 0.95, 1e-6, 0.1, 1e-2
    made = groups()[:1]
    parameter = made[0].parameters[0]
    weights = parameter.detach().double().flatten().tolist()
    first, second = [0.0] * len(weights), [0.0] * len(weights)
    optimizer = OPTIMIZER.build(made, AdamWParams(beta1=beta1, beta2=beta2, epsilon=epsilon, weight_decay=decay))
    for step in range(1, 4):
        gradients = [math.sin(step * (index + 1)) for index in range(len(weights))]
        parameter.grad = torch.tensor(gradients).view_as(parameter)
        optimizer.step()
        for index, gradient in enumerate(gradients):
            first[index] = beta1 * first[index] + (1 - beta1) * gradient
            second[index] = beta2 * second[index] + (1 - beta2) * gradient**2
            corrected = first[index] / (1 - beta1**step) / (math.sqrt(second[index] / (1 - beta2**step)) + epsilon)
            weights[index] -= lr * (corrected + decay * weights[index])
    assert parameter.flatten().tolist() == pytest.approx(weights, rel=1e-5)


def test_adamw_without_a_fused_form_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch before 2.4 on the CPU; the settings of the attempt must not stay in the groups."""
    real = torch.optim.AdamW

    def old_adamw(groups: Any, *, fused: bool, **given: Any) -> torch.optim.Optimizer:
        if fused:
            for group in groups:
                group["fused"] = True
            raise RuntimeError("`fused=True` requires all the params to be floating point Tensors of devices: ['cuda']")
        return real(groups, fused=fused, **given)

    monkeypatch.setattr(torch.optim, "AdamW", old_adamw)
    optimizer = OPTIMIZER.build(groups(), AdamWParams())
    assert [group["fused"] for group in optimizer.param_groups] == [False, False]


def test_unknown_optimizer_lists_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="adamw"):
        find_optimizer("adam")
