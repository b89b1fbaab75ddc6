"""What every network must do, whichever files the folder holds."""

import pytest
import torch
from torch import nn

from lora_atelier.core.params import Choice, choice_from_json
from lora_atelier.families._spec import Components, Family, Target
from lora_atelier.networks._apply import lora_delta, split_file
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import Network, networks

MODULES = {
    "linear": lambda: nn.Linear(32, 48),
    "conv1x1": lambda: nn.Conv2d(32, 48, 1),
    "conv3x3": lambda: nn.Conv2d(32, 48, 3, stride=2, padding=1),
}
everyone = pytest.mark.parametrize("network", networks().values(), ids=networks().keys())
every_module = pytest.mark.parametrize("kind", MODULES)


def choice(network: Network) -> Choice:
    return Choice(kind="network", name=network.name, params=network.params())


def attached(network: Network, module: nn.Module) -> AdapterSet:
    target = Target(stem="lora_unet_m", path="m", part="unet", block="MID", kind="linear", module=module)
    return AdapterSet.attach([target], choice(network), seed=3).train(False)


def disturb(adapters: AdapterSet) -> None:
    with torch.no_grad():
        for name, value in adapters.parts_of("lora_unet_m").items():
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)


def inputs(kind: str) -> torch.Tensor:
    return torch.randn(2, 5, 32) if kind == "linear" else torch.randn(2, 32, 8, 6)


@everyone
def test_name_words_and_parameters(network: Network) -> None:
    assert networks()[network.name] is network
    assert network.summary.endswith(".")
    assert network.source
    assert set(network.required_parts) <= set(network.part_names)
    assert all(parameter.doc for parameter in network.params.parameters())
    given = choice(network)
    assert choice_from_json(given.to_json(), networks()) == given
    assert network.rank(given.params) >= 1
    assert network.alpha(given.params) > 0


@everyone
@every_module
def test_a_fresh_adapter_adds_exactly_nothing(network: Network, kind: str) -> None:
    module, x = MODULES[kind](), inputs(kind)
    plain = module(x)
    assert torch.equal(attached(network, module).delta("lora_unet_m").abs().max(), torch.tensor(0.0))
    assert torch.equal(module(x), plain)


@everyone
@every_module
def test_forward_file_and_merged_weight_agree(network: Network, kind: str) -> None:
    module, x = MODULES[kind](), inputs(kind)
    adapters = attached(network, module)
    disturb(adapters)
    live = module(x)
    adapters.detach_from_model()
    tensors = adapters.state()
    [(stem, parts)] = split_file(tensors).items()
    assert stem == "lora_unet_m"
    assert set(parts) - {"alpha"} <= set(network.part_names)
    shape = tuple(module.weight.shape)
    change = lora_delta(parts, weight_shape=shape)
    torch.testing.assert_close(change, adapters.delta(stem))
    module.weight = nn.Parameter(module.weight.detach() + change)
    torch.testing.assert_close(live, module(x), rtol=1e-4, atol=1e-5)


@everyone
@every_module
def test_every_part_is_learnt(network: Network, kind: str) -> None:
    module = MODULES[kind]()
    adapters = attached(network, module)
    disturb(adapters)
    module(inputs(kind)).square().sum().backward()
    for name, value in adapters.parts_of("lora_unet_m").items():
        assert value.grad is not None, name
        assert bool(value.grad.abs().sum() > 0), name


@everyone
def test_it_trains_on_every_default_target(network: Network, tiny: Components, family: Family) -> None:
    adapters = AdapterSet.attach(family.targets(tiny), choice(network), seed=0)
    groups = adapters.parameters_by_part()
    optimizer = torch.optim.AdamW([*groups["unet"], *groups["text_encoder"]], lr=1e-2)
    noisy, goal = torch.randn(2, 4, 4, 4), torch.randn(2, 4, 4, 4)
    losses = []
    for _ in range(6):
        text = family.encode_text(tiny, ["red circle", "star"], clip_skip=1)
        loss = (family.predict(tiny.unet, noisy, torch.tensor([1, 500]), text) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    state = adapters.state()
    assert {stem for stem in split_file(state)} <= family.accepted_stems(tiny)
    assert all(torch.isfinite(value).all() for value in state.values())
