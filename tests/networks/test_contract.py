"""What every network must do, whichever files the folder holds."""

from typing import Any

import pytest
import torch
from torch import nn

from lora_atelier.core.params import Choice, choice_from_json
from lora_atelier.families._spec import Components, Family, Target
from lora_atelier.families._targets import every_target
from lora_atelier.networks._apply import lora_delta, module_change, split_file
from lora_atelier.networks._attach import AdapterSet, ModuleSettings
from lora_atelier.networks._spec import Network, get_network, networks
from lora_atelier.networks._targeting import parse_targeting

STEM = "lora_unet_m"
MODULES = {
    "linear": lambda: nn.Linear(32, 48),
    "linear without bias": lambda: nn.Linear(32, 48, bias=False),
    "conv1x1": lambda: nn.Conv2d(32, 48, 1),
    "conv3x3": lambda: nn.Conv2d(32, 48, 3, stride=2, padding=1),
    "layer_norm": lambda: nn.LayerNorm(32),
    "group_norm": lambda: nn.GroupNorm(8, 32),
}
KINDS = {"linear": "linear", "linear without bias": "linear", "conv1x1": "conv2d", "conv3x3": "conv2d"}

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in networks()),
    ("lora", {"dora": "input"}),
    ("lora", {"dora": "output"}),
    ("lora", {"tucker": True, "rank": 4, "conv_rank": 3}),
    ("lora", {"rank_stabilized": True, "rank": 9}),
    ("lora", {"conv_rank": 2, "conv_alpha": 1.0}),
    ("loha", {"rank": 2}),
    ("loha", {"rank": 16, "alpha": 4.0}),
    ("loha", {"rank": 2, "tucker": True}),
    ("loha", {"rank": 9, "tucker": True}),
    ("lokr", {"rank": 2}),
    ("lokr", {"rank": 1, "factor": 4, "decompose_both": True}),
    ("lokr", {"factor": 4, "full_matrix": True}),
    ("lokr", {"rank": 2, "tucker": True}),
    ("lokr", {"rank": 100, "alpha": 7.0}),
    ("diag_oft", {"rank": 4}),
    ("full", {"train_bias": False}),
    ("dylora", {"rank": 8, "unit": 2}),
]
NAMES = [" ".join([name, *(f"{key}={value}" for key, value in given.items())]) for name, given in VARIANTS]
everyone = pytest.mark.parametrize("network", networks().values(), ids=networks().keys())
every_variant = pytest.mark.parametrize(("name", "given"), VARIANTS, ids=NAMES)
every_module = pytest.mark.parametrize("kind", MODULES)


def choice(name: str, given: dict[str, Any]) -> Choice:
    return Choice(kind="network", name=name, params=get_network(name).params(**given))


def attached(name: str, given: dict[str, Any], module: nn.Module, stem: str = STEM, **more: Any) -> AdapterSet:
    target = Target(stem=stem, path="m", part="unet", block="MID", kind="linear", module=module)
    return AdapterSet.attach([target], choice(name, given), seed=3, **more).train(False)


def disturb(adapters: AdapterSet) -> None:
    """As after some training: nothing is zero any more."""
    with torch.no_grad():
        for stem in adapters.stems:
            for name, value in adapters.parts_of(stem).items():
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.1)


def inputs(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    flat = kind.startswith("linear") or kind == "layer_norm"
    return torch.randn((2, 5, 32) if flat else (2, 32, 8, 6), generator=generator)


def made(name: str, kind: str) -> nn.Module:
    network = get_network(name)
    if KINDS.get(kind, kind) not in network.adapts:
        pytest.skip(f"{name} is not for {kind}")
    torch.manual_seed(0)
    module = MODULES[kind]()
    for value in module.parameters():
        nn.init.normal_(value, std=0.3)
    return module


@everyone
def test_name_words_and_parameters(network: Network) -> None:
    assert networks()[network.name] is network
    assert network.title
    assert network.summary.endswith(".")
    assert network.source
    assert all(set(names) <= set(network.part_names) for names in network.required_parts)
    assert all(parameter.doc for parameter in network.params.parameters())
    given = choice(network.name, {})
    assert choice_from_json(given.to_json(), networks()) == given
    assert (network.rank(given.params) or 1) >= 1
    assert network.groups(given.params)


@every_variant
@every_module
def test_a_fresh_adapter_adds_nothing(name: str, given: dict[str, Any], kind: str) -> None:
    module, x = made(name, kind), inputs(kind)
    plain = module(x)
    adapters = attached(name, given, module)
    # DoRA divides by a length and multiplies by it again
    tolerance = 1e-5 if given.get("dora") else 0.0
    assert float(adapters.delta(STEM).abs().max()) <= tolerance
    torch.testing.assert_close(module(x), plain, rtol=tolerance, atol=tolerance)
    assert adapters.unchanged_stems() == (STEM,)


@every_variant
@every_module
def test_forward_file_and_merged_weight_agree(name: str, given: dict[str, Any], kind: str) -> None:
    module, x = made(name, kind), inputs(kind)
    network = get_network(name)
    adapters = attached(name, given, module)
    disturb(adapters)
    assert adapters.unchanged_stems() == ()
    live, own = module(x), adapters.delta(STEM)
    adapters.detach_from_model()
    [(stem, parts)] = split_file(adapters.file_tensors()).items()
    assert stem == STEM
    change, bias = module_change(parts, weight=module.weight.detach())
    torch.testing.assert_close(change, own, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        lora_delta(parts, weight_shape=tuple(module.weight.shape), weight=module.weight.detach()), change
    )
    if bias is not None:
        module.bias = nn.Parameter(module.bias.detach() + bias)
    else:
        assert name not in ("norm",)
    module.weight = nn.Parameter(module.weight.detach() + change)
    torch.testing.assert_close(live, module(x), rtol=1e-4, atol=1e-4)
    assert network.knows(parts) or name in ("ia3", "dylora")


@every_variant
@every_module
def test_gradients_are_those_of_the_merged_weight(name: str, given: dict[str, Any], kind: str) -> None:
    """By finite differences of the file's own change, so that no forward is judged by itself."""
    module, x = made(name, kind), inputs(kind).requires_grad_()
    adapters = attached(name, given, module)
    disturb(adapters)
    parts = adapters.parts_of(STEM)
    goal = torch.randn(module(x).shape, generator=torch.Generator().manual_seed(4))
    (module(x) - goal).square().sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    for part, value in parts.items():
        assert value.grad is not None, part
        assert bool(value.grad.abs().sum() > 0), part
    if given.get("dora"):
        return  # its norm takes no part in the gradient; see test_lora.py
    network, size = adapters.network, adapters.size_of(STEM)
    weight = module.weight.detach()

    def loss() -> torch.Tensor:
        detached = {key: value.detach().double() for key, value in parts.items()}
        change = network.delta(
            {key: value.float() for key, value in detached.items()},
            alpha=size.alpha, weight_shape=tuple(weight.shape), weight=weight,
        )  # fmt: skip
        extra = network.bias_delta({key: value.detach() for key, value in parts.items()})
        bias = None if module.bias is None else module.bias.detach() + (0 if extra is None else extra)
        return (adapters.layer_of(STEM).apply(x.detach(), weight + change, bias) - goal).double().square().sum()

    for part, value in parts.items():
        index = int(value.grad.abs().argmax())
        flat, slope = value.detach().view(-1), float(value.grad.view(-1)[index])
        step = 1e-2
        kept = float(flat[index])
        flat[index] = kept + step
        above = loss()
        flat[index] = kept - step
        below = loss()
        flat[index] = kept
        assert float(above - below) / (2 * step) == pytest.approx(slope, rel=0.03), part


@every_variant
@every_module
def test_state_is_taken_up_exactly(name: str, given: dict[str, Any], kind: str) -> None:
    module, x = made(name, kind), inputs(kind)
    adapters = attached(name, given, module)
    disturb(adapters)
    live = module(x)
    saved = {key: value.clone() for key, value in adapters.state().items()}
    adapters.detach_from_model()
    other = attached(name, given, module)
    other.load_state(saved)
    assert torch.equal(module(x), live)
    assert all(torch.equal(value, saved[key]) for key, value in other.state().items())


@every_variant
@every_module
def test_a_file_is_gone_on_with(name: str, given: dict[str, Any], kind: str) -> None:
    module, x = made(name, kind), inputs(kind)
    adapters = attached(name, given, module)
    disturb(adapters)
    live = module(x)
    [(_, parts)] = split_file({key: value.clone() for key, value in adapters.file_tensors().items()}).items()
    adapters.detach_from_model()
    again = attached(name, {}, module, settings={STEM: ModuleSettings(start=parts)})
    torch.testing.assert_close(module(x), live, rtol=1e-4, atol=1e-5)
    if not (name == "lokr" and given.get("tucker") and kind == "conv3x3"):  # its file has no rank, and a scale of 1
        assert again.size_of(STEM).scale == pytest.approx(adapters.size_of(STEM).scale)


@every_variant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_bases(name: str, given: dict[str, Any], dtype: torch.dtype, autocast: bool) -> None:
    for kind in MODULES:
        if KINDS.get(kind, kind) not in get_network(name).adapts:
            continue
        module, x = made(name, kind), inputs(kind)
        adapters = attached(name, given, module)
        disturb(adapters)
        expected = module(x)
        module.to(dtype)
        if autocast:
            with torch.autocast("cpu", dtype=dtype):
                answer = module(x.to(dtype) if kind.endswith("norm") else x)
        else:
            answer = module(x.to(dtype))
        assert answer.dtype == dtype or kind.endswith("norm")
        off = torch.linalg.vector_norm(answer.float() - expected) / torch.linalg.vector_norm(expected)
        assert float(off) < 0.02, kind
        answer.float().square().mean().backward()
        assert all(value.grad.dtype == torch.float32 for value in adapters.parts_of(STEM).values())


@everyone
@pytest.mark.parametrize("field", ["dropout", "rank_dropout", "module_dropout"])
def test_dropout_acts_in_training_alone_and_keeps_the_mean(network: Network, field: str) -> None:
    if field not in {parameter.name for parameter in network.params.parameters()}:
        pytest.skip(f"{network.name} has no {field}")
    for kind in MODULES:
        if KINDS.get(kind, kind) not in network.adapts or (field == "dropout" and network.name == "dylora"):
            continue
        module, x = made(network.name, kind), inputs(kind)
        plain = module(x)
        adapters = attached(network.name, {field: 0.5}, module)
        disturb(adapters)
        still = module(x)
        assert torch.equal(module(x), still)
        adapters.train(True)
        torch.manual_seed(0)
        with torch.no_grad():
            many = torch.stack([module(x) - plain for _ in range(400)])
        assert not torch.equal(many[0], many[1]) or not torch.equal(many[0], many[2])
        wanted = (still - plain) * (0.5 if field == "module_dropout" else 1.0)
        if network.name != "dylora":  # its prefixes are no mean of the whole
            off = torch.linalg.vector_norm(many.mean(dim=0) - wanted) / torch.linalg.vector_norm(wanted)
            assert float(off) < 0.25, kind
        torch.manual_seed(7)
        first = module(x)
        torch.manual_seed(7)
        assert torch.equal(module(x), first)  # a step's randomness comes from its seed alone


@every_variant
@every_module
def test_the_norm_of_a_change_is_limited(name: str, given: dict[str, Any], kind: str) -> None:
    if given.get("dora"):
        pytest.skip("DoRA trains the length itself")
    module = made(name, kind)
    adapters = attached(name, {**given, "max_norm": 0.05}, module)
    disturb(adapters)
    adapters.limit_norms()
    after = adapters.delta(STEM)
    if name == "diag_oft":
        blocks = adapters.parts_of(STEM)["oft_blocks"].detach()
        length = torch.linalg.vector_norm(blocks - blocks.transpose(1, 2))
    elif name == "ia3":
        length = torch.linalg.vector_norm(adapters.parts_of(STEM)["weight"].detach())
    else:
        length = torch.linalg.vector_norm(after)
    assert float(length) == pytest.approx(0.05, rel=1e-3)
    adapters.limit_norms()
    torch.testing.assert_close(adapters.delta(STEM), after, rtol=1e-3, atol=1e-6)
    adapters.detach_from_model()
    free = attached(name, {**given, "max_norm": 1000.0}, made(name, kind))
    disturb(free)
    before = {key: value.clone() for key, value in free.state().items()}
    free.limit_norms()
    assert all(torch.equal(value, before[key]) for key, value in free.state().items())


@everyone
@pytest.mark.parametrize("text", ["", "groups: full"])
def test_it_trains_on_its_targets(network: Network, text: str, tiny: Components, family: Family) -> None:
    params = network.params()
    wanted = parse_targeting(text if network.name != "norm" else "", family.blocks)
    chosen = wanted.choose(every_target(family, tiny), network, params)
    targets = [target for target, _ in chosen]
    adapters = AdapterSet.attach(targets, choice(network.name, {}), seed=0)
    groups = adapters.parameters_by_part()
    rate = {"ia3": 5e-2, "norm": 5e-2, "diag_oft": 5e-2, "full": 1e-3}.get(network.name, 1e-2)
    optimizer = torch.optim.AdamW([*groups["unet"], *groups["text_encoder"]], lr=rate)
    generator = torch.Generator().manual_seed(2)
    noisy, goal = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    losses = []
    for _ in range(6):
        encoded = family.encode_text(tiny, ["red circle", "star"], clip_skip=1)
        loss = (family.predict(tiny.unet, noisy, torch.tensor([1, 500]), encoded) - goal).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    state = adapters.file_tensors()
    assert {stem for stem in split_file(state)} <= family.accepted_stems(tiny)
    assert all(torch.isfinite(value).all() for value in state.values())
