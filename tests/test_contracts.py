"""What every plug-in keeps, whoever wrote it: these tests run over all that discovery finds."""

import inspect
import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from lora_atelier.core.discovery import discover
from lora_atelier.core.params import Choice, Params, choice_from_json
from lora_atelier.core.tensors import read_tensors, write_tensors
from lora_atelier.networks._apply import lora_delta, split_file
from lora_atelier.networks._layer import Layer, Op
from lora_atelier.networks._spec import network_of_parts
from lora_atelier.trainer.optimizers._spec import OptimizerParams, ParamGroup
from lora_atelier.trainer.schedules._spec import Course

FOLDERS = {
    "NETWORK": "networks",
    "FAMILY": "families",
    "OPTIMIZER": "trainer.optimizers",
    "SCHEDULE": "trainer.schedules",
    "OBJECTIVE": "trainer.objectives",
    "AXIS": "evaluator.axes",
    "METRIC": "evaluator.metrics",
    "TAGGER": "tagger.taggers",
    "STEP": "tagger.steps",
    "PRESET": "tagger.presets",
    "METHOD": "merger.methods",
}
WITHOUT_SOURCE = ("FAMILY", "AXIS")
"""A family's source is its own files' layout, an axis is no algorithm."""
FILE_NAME_IS_NAME = ("NETWORK", "FAMILY", "OPTIMIZER", "SCHEDULE", "OBJECTIVE", "STEP", "PRESET", "METHOD")

PLUGINS: dict[str, dict[str, Any]] = {
    export: discover(f"lora_atelier.{folder}", export) for export, folder in FOLDERS.items()
}
ALL = [(export, name) for export, found in PLUGINS.items() for name in found]
WITH_PARAMS = [(export, name) for export, name in ALL if hasattr(PLUGINS[export][name], "params")]
NETWORKS, OPTIMIZERS = PLUGINS["NETWORK"], PLUGINS["OPTIMIZER"]
SCHEDULES, OBJECTIVES = PLUGINS["SCHEDULE"], PLUGINS["OBJECTIVE"]


def test_each_kind_has_at_least_one():
    assert all(PLUGINS.values()), {export: list(found) for export, found in PLUGINS.items()}


@pytest.mark.parametrize(("export", "name"), ALL)
def test_says_what_it_is_and_where_it_comes_from(export, name):
    plugin = PLUGINS[export][name]
    assert (plugin.title if export == "FAMILY" else plugin.summary).strip()
    if export not in WITHOUT_SOURCE:
        assert len(plugin.source) > 10
    assert plugin.name.strip()
    if export in FILE_NAME_IS_NAME:
        assert plugin.name == name


@pytest.mark.parametrize(("export", "name"), WITH_PARAMS)
def test_parameters_are_documented_and_have_sound_defaults(export, name):
    params = PLUGINS[export][name].params
    assert issubclass(params, Params)
    for parameter in params.parameters():
        where = f"{params.__name__}.{parameter.name}"
        assert len(parameter.doc) > 5, where
        if parameter.type in (int, float):
            assert parameter.minimum is not None, f"{where} has no minimum"
            assert parameter.maximum is not None, f"{where} has no maximum"
            assert parameter.minimum < parameter.maximum, where
    params()


@pytest.mark.parametrize(("export", "name"), WITH_PARAMS)
def test_choices_go_through_json(export, name):
    plugin = PLUGINS[export][name]
    choice = Choice(kind=export.lower(), name=name, params=plugin.params())
    assert choice_from_json(json.loads(json.dumps(choice.to_json())), PLUGINS[export]) == choice


# --- networks ---------------------------------------------------------------------------------------------------------

MODULES = {
    "linear": ((12, 20), (2, 5, 20), Op(kind="linear")),
    "conv1x1": ((12, 20, 1, 1), (2, 20, 6, 5), Op(kind="conv2d")),
    "conv3x3": ((12, 8, 3, 3), (2, 8, 6, 5), Op(kind="conv2d", padding=(1, 1))),
    "conv3x3_stride2": ((12, 8, 3, 3), (2, 8, 6, 6), Op(kind="conv2d", stride=(2, 2), padding=(1, 1))),
}
WEIGHTED = [name for name, network in NETWORKS.items() if "linear" in network.adapts]
"""Networks of linear and convolution layers; tests/networks holds every network to more, on real modules."""
each_network = pytest.mark.parametrize("name", WEIGHTED)
each_module = pytest.mark.parametrize("module", MODULES)


def small_params(network):
    """Defaults with a small rank, where the network has one."""
    names = {parameter.name for parameter in network.params.parameters()}
    return network.params(**{key: value for key, value in {"rank": 4, "alpha": 2.0}.items() if key in names})


class Holder(torch.nn.Module):
    """A weight without a bias."""

    def __init__(self, weight):
        super().__init__()
        self.weight, self.bias = torch.nn.Parameter(weight, requires_grad=False), None


def make_layer(module):
    shape, _, op = MODULES[module]
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    return Layer(op=op, module=Holder(weight), stem="lora_unet_mid_block_attentions_0_proj_in")


def size_of(network, layer):
    return network.size(small_params(network), layer.shape)


def fresh_parts(network, layer):
    generator = torch.Generator().manual_seed(0)
    return network.init(layer, params=small_params(network), size=size_of(network, layer), generator=generator)


def learned_parts(network, layer):
    """Parts as after some training: nothing is zero any more."""
    random = torch.Generator().manual_seed(1)
    parts = fresh_parts(network, layer)
    return {name: part + 0.1 * torch.randn(part.shape, generator=random) for name, part in parts.items()}


def forward(network, x, layer, parts):
    return network.forward(
        x,
        lambda given: layer.apply(given, layer.weight.to(given.dtype)),
        parts,
        params=small_params(network),
        scale=size_of(network, layer).scale,
        layer=layer,
        training=False,
    )


def delta(network, parts, layer):
    alpha = size_of(network, layer).alpha
    return network.delta(parts, alpha=alpha, weight_shape=layer.shape, weight=layer.weight)


@each_module
@each_network
def test_network_changes_nothing_at_first(name, module):
    layer = make_layer(module)
    parts = fresh_parts(NETWORKS[name], layer)
    assert all(part.dtype == torch.float32 for part in parts.values())
    change = delta(NETWORKS[name], parts, layer)
    assert change.shape == torch.Size(layer.shape)
    assert change.dtype == torch.float32
    assert not change.any()


@each_module
@each_network
def test_network_forward_equals_the_patched_weight(name, module):
    network, layer = NETWORKS[name], make_layer(module)
    x = torch.randn(MODULES[module][1], generator=torch.Generator().manual_seed(2))
    parts = learned_parts(network, layer)
    expected = layer.apply(x, layer.weight + delta(network, parts, layer))
    torch.testing.assert_close(forward(network, x, layer, parts), expected, rtol=1e-4, atol=1e-4)


@each_module
@each_network
def test_network_gradients_reach_every_part(name, module):
    network, layer = NETWORKS[name], make_layer(module)
    x = torch.randn(MODULES[module][1], generator=torch.Generator().manual_seed(3), requires_grad=True)
    parts = {key: part.requires_grad_() for key, part in learned_parts(network, layer).items()}
    forward(network, x, layer, parts).pow(2).sum().backward()
    assert all(part.grad is not None and part.grad.any() for part in parts.values())
    assert x.grad is not None


@each_network
def test_network_learns_from_its_start(name):
    network, layer = NETWORKS[name], make_layer("linear")
    random = torch.Generator().manual_seed(4)
    x = torch.randn(MODULES["linear"][1], generator=random)
    parts = {key: part.requires_grad_() for key, part in fresh_parts(network, layer).items()}
    optimizer = torch.optim.Adam(list(parts.values()), lr=0.02)
    goal = torch.randn(layer.shape[0], generator=random)
    losses = []
    for _ in range(60):
        loss = (forward(network, x, layer, parts) - goal).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # rotations, factors of what is there and small Kronecker factors cannot reach every goal
    assert losses[-1] < (0.9 if name in ("diag_oft", "ia3", "lokr") else 0.5) * losses[0]


@each_network
def test_network_answers_in_the_type_of_the_base(name):
    network, layer = NETWORKS[name], make_layer("linear")
    x = torch.randn(MODULES["linear"][1]).bfloat16()
    assert forward(network, x, layer, learned_parts(network, layer)).dtype == torch.bfloat16


@each_module
@each_network
def test_network_survives_a_file(name, module, tmp_path):
    network, layer = NETWORKS[name], make_layer(module)
    size, stem = size_of(network, layer), layer.stem
    parts = learned_parts(network, layer)
    tensors = {f"{stem}.{key}": part for key, part in network.to_file(parts, layer=layer, size=size).items()}
    if size.alpha is not None:
        tensors[f"{stem}.alpha"] = torch.tensor(size.alpha)
    write_tensors(tmp_path / "file.safetensors", tensors)
    modules = split_file(read_tensors(tmp_path / "file.safetensors"))
    assert list(modules) == [stem]
    reader = network_of_parts(modules[stem])
    assert reader is network or reader.name == "lora"
    change = lora_delta(modules[stem], stem=stem, weight=layer.weight)
    torch.testing.assert_close(change, delta(network, parts, layer), rtol=1e-5, atol=1e-5)


@each_network
def test_network_init_depends_on_the_generator_alone(name):
    layer = make_layer("linear")
    first, second = fresh_parts(NETWORKS[name], layer), fresh_parts(NETWORKS[name], layer)
    assert all(torch.equal(first[key], second[key]) for key in first)


# --- schedules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_steps", [0, 1, 10])
@pytest.mark.parametrize("total_steps", [1, 11, 100])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_stays_within_its_bounds(name, total_steps, warmup_steps):
    def factor(step):
        return SCHEDULES[name].factor(step, Course(total_steps=total_steps, warmup_steps=warmup_steps, cycles=2))

    values = [factor(step) for step in range(total_steps + 5)]
    assert all(math.isfinite(value) and 0.0 <= value <= 1.0 for value in values)
    assert values == [factor(step) for step in range(total_steps + 5)]
    rising = values[: min(warmup_steps + 1, total_steps)]
    assert rising == sorted(rising)
    if total_steps > warmup_steps:
        assert values[warmup_steps] == pytest.approx(1.0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedule_is_a_function_of_numbers(name):
    names = list(inspect.signature(SCHEDULES[name].factor).parameters)
    assert names == ["step", "course"]


# --- optimizers -------------------------------------------------------------------------------------------------------


def quadratic(name):
    """Two groups of parameters, their optimizer and the loss of a badly scaled quadratic."""
    optimizer = OPTIMIZERS[name]
    if optimizer.needs:
        pytest.importorskip(optimizer.needs)
    random = torch.Generator().manual_seed(0)
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=random)) for shape in ((4, 6), (6,), (3, 2))]
    # A tenth per step is a large rate for every optimizer; those that find their own rate are given their 1.
    rates = optimizer.params()
    lr = 1.0 if rates.lr_unet >= 0.1 else 0.02
    params = replace(rates, lr_unet=lr, lr_text_encoder=lr)
    groups = [
        ParamGroup(name="unet", lr=lr, parameters=parameters[:2]),
        ParamGroup(name="text_encoder", lr=lr, parameters=parameters[2:]),
    ]
    built = optimizer.build(groups, params)

    def loss():
        return sum(
            (factor * parameter.pow(2)).sum() for factor, parameter in zip((1, 10, 0.1), parameters, strict=True)
        )

    def step():
        built.zero_grad()
        loss().backward()
        built.step()

    return parameters, built, loss, step


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_lowers_a_quadratic(name):
    assert issubclass(OPTIMIZERS[name].params, OptimizerParams)
    _, built, loss, step = quadratic(name)
    assert [group["name"] for group in built.param_groups] == ["unet", "text_encoder"]
    before = loss().item()
    for _ in range(200):
        step()
    assert loss().item() < 0.2 * before


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_resumes_exactly(name):
    whole, _, _, whole_step = quadratic(name)
    for _ in range(6):
        whole_step()
    first, first_built, _, first_step = quadratic(name)
    for _ in range(3):
        first_step()
    second, second_built, _, second_step = quadratic(name)
    with torch.no_grad():
        for target, source in zip(second, first, strict=True):
            target.copy_(source)
    second_built.load_state_dict(first_built.state_dict())
    for _ in range(3):
        second_step()
    assert all(torch.equal(left, right) for left, right in zip(whole, second, strict=True))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_follows_a_rate_that_is_set_from_outside(name):
    parameters, built, _, step = quadratic(name)
    for group in built.param_groups:
        group["lr"] = 0.0
    before = [parameter.detach().clone() for parameter in parameters]
    step()
    assert all(torch.equal(left, right) for left, right in zip(before, parameters, strict=True))


# --- objectives -------------------------------------------------------------------------------------------------------

ALPHAS = torch.linspace(0.999, 0.005, 1000, dtype=torch.float64)


def question_of(objective, seed=0):
    latents = torch.randn(3, 4, 6, 5, generator=torch.Generator().manual_seed(9))
    params = objective.params()
    generator = torch.Generator().manual_seed(seed)
    return latents, params, objective.ask(latents, alphas_cumprod=ALPHAS, params=params, generator=generator)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_asks_by_its_generator_alone(name):
    latents, _, question = question_of(OBJECTIVES[name])
    _, _, again = question_of(OBJECTIVES[name])
    _, _, other = question_of(OBJECTIVES[name], seed=1)
    assert question.noisy_latents.shape == question.target.shape == latents.shape
    assert question.timesteps.shape == (3,)
    assert not question.timesteps.is_floating_point()
    assert torch.equal(question.noisy_latents, again.noisy_latents)
    assert torch.equal(question.timesteps, again.timesteps)
    assert not torch.equal(question.noisy_latents, other.noisy_latents)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objective_is_least_for_the_right_answer(name):
    objective = OBJECTIVES[name]
    _, params, question = question_of(objective)

    def loss(answer):
        return objective.loss(answer, question, alphas_cumprod=ALPHAS, params=params)

    right, wrong = loss(question.target), loss(question.target + 0.5)
    assert right.shape == (3,)
    assert right.dtype == torch.float32
    assert bool((right < wrong).all())
    assert bool((right.abs() < 1e-6).all())
    answer = question.target.clone().requires_grad_()
    loss(answer + 1.0).sum().backward()
    assert answer.grad is not None
    assert answer.grad.isfinite().all()


# --- families ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PLUGINS["FAMILY"])
def test_family_facts(name):
    family = PLUGINS["FAMILY"][name]
    abar = family.alphas_cumprod()
    assert abar.shape == (family.num_train_timesteps,)
    assert abar.dtype == torch.float64
    assert bool((abar.diff() < 0).all())
    assert 0.0 < abar[-1] < abar[0] < 1.0
    assert "MID" in family.blocks
    assert len(set(family.blocks)) == len(family.blocks)
    assert family.architecture.endswith("/lora")
    assert family.base_model_version
    assert family.latent_scale > 0
