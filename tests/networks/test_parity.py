"""Forward, change, gradient and file against lycoris-lora and peft, the tools whose formats these are."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from lora_atelier.core.params import Choice
from lora_atelier.families._spec import Target
from lora_atelier.networks._apply import module_change, split_file
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._spec import get_network
from lora_atelier.networks.lokr import factorization

MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(32, 48),
    "conv1x1": lambda: nn.Conv2d(32, 48, 1),
    "conv3x3": lambda: nn.Conv2d(32, 48, 3, padding=1),
}
every_module = pytest.mark.parametrize("kind", MODULES)


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return MODULES[kind]()


def inputs(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((2, 5, 32) if kind == "linear" else (2, 32, 8, 6), generator=generator)


def attached(name: str, given: dict[str, Any], module: nn.Module, stem: str = "m") -> AdapterSet:
    target = Target(stem=stem, path=stem, part="unet", block="MID", kind="linear", module=module)
    params = get_network(name).params(**given)
    return AdapterSet.attach([target], Choice(kind="network", name=name, params=params), seed=3).train(False)


def disturbed(other: nn.Module) -> dict[str, torch.Tensor]:
    """Gives every trained tensor of the other tool a value, and returns its file's tensors."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in other.parameters():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
    return {key: value.detach().clone() for key, value in other.state_dict().items()}


LYCORIS: list[tuple[str, dict[str, Any], str, str, dict[str, Any]]] = [
    ("loha", {"rank": 4, "alpha": 2.0}, "loha", "LohaModule", {"lora_dim": 4, "alpha": 2.0}),
    ("loha", {"rank": 16, "alpha": 2.0}, "loha", "LohaModule", {"lora_dim": 16, "alpha": 2.0}),
    ("loha", {"rank": 3, "tucker": True}, "loha", "LohaModule", {"lora_dim": 3, "use_tucker": True}),
    ("loha", {"rank": 4, "rank_stabilized": True}, "loha", "LohaModule", {"lora_dim": 4, "rs_lora": True}),
    ("lokr", {"rank": 2, "alpha": 4.0}, "lokr", "LokrModule", {"lora_dim": 2, "alpha": 4.0}),
    ("lokr", {"rank": 2, "factor": 4}, "lokr", "LokrModule", {"lora_dim": 2, "factor": 4}),
    (
        "lokr", {"factor": 8, "full_matrix": True}, "lokr", "LokrModule",
        {"lora_dim": 8, "factor": 8, "full_matrix": True},
    ),
    ("lokr", {"rank": 1, "decompose_both": True}, "lokr", "LokrModule", {"lora_dim": 1, "decompose_both": True}),
    ("lokr", {"rank": 2, "tucker": True}, "lokr", "LokrModule", {"lora_dim": 2, "use_tucker": True}),
    ("lora", {"rank": 4, "alpha": 2.0}, "locon", "LoConModule", {"lora_dim": 4, "alpha": 2.0}),
    ("lora", {"rank": 4, "tucker": True, "alpha": 1.0}, "locon", "LoConModule", {"lora_dim": 4, "use_tucker": True}),
    (
        "lora", {"rank": 4, "alpha": 1.0, "rank_stabilized": True}, "locon", "LoConModule",
        {"lora_dim": 4, "rs_lora": True},
    ),
    (
        "lora", {"rank": 4, "alpha": 1.0, "dora": "input"}, "locon", "LoConModule",
        {"lora_dim": 4, "weight_decompose": True, "wd_on_out": False},
    ),
    (
        "lora", {"rank": 4, "alpha": 1.0, "dora": "output"}, "locon", "LoConModule",
        {"lora_dim": 4, "weight_decompose": True, "wd_on_out": True},
    ),
    ("diag_oft", {"rank": 8}, "diag_oft", "DiagOFTModule", {"lora_dim": 8}),
    ("full", {}, "full", "FullModule", {}),
]  # fmt: skip
NAMES = [f"{name} {given}" for name, given, *_ in LYCORIS]


@every_module
@pytest.mark.parametrize(("name", "given", "file", "cls", "options"), LYCORIS, ids=NAMES)
def test_lycoris(name: str, given: dict[str, Any], file: str, cls: str, options: dict[str, Any], kind: str) -> None:
    modules = pytest.importorskip(f"lycoris.modules.{file}")
    module, x = made(kind), inputs(kind)
    options = {"alpha": 1.0, **options} if name != "full" else options
    other = getattr(modules, cls)("m", module, 1.0, **options)
    state = disturbed(other)
    if name == "full":
        state = {"diff": torch.randn(module.weight.shape) * 0.1, "diff_b": torch.randn(48) * 0.1}
    adapters = attached(name, given, module)

    # names, shapes and the scale of the file are theirs
    own = {key.removeprefix("m."): value for key, value in adapters.state().items()}
    assert {key: tuple(value.shape) for key, value in own.items()} == {
        key: tuple(value.shape) for key, value in state.items()
    }
    if "alpha" in own:
        assert float(own["alpha"]) == pytest.approx(float(state["alpha"]))

    adapters.load_state({f"m.{key}": value for key, value in state.items()})
    live, change = module(x), adapters.delta("m")
    live.square().sum().backward()
    gradients = {key: value.grad.clone() for key, value in adapters.parts_of("m").items()}
    adapters.detach_from_model()
    if name == "full":
        with torch.no_grad():
            module.weight += state["diff"]
            module.bias += state["diff_b"]
        torch.testing.assert_close(live, module(x), rtol=1e-4, atol=1e-5)
        return
    base = module.weight.detach().clone()
    if file not in ("loha", "lokr"):  # whose get_diff_weight multiplies by the scale a second time
        merged = other.get_merged_weight()[0]
        torch.testing.assert_close(change, merged.detach().reshape(base.shape) - base, rtol=1e-4, atol=1e-5)
    [(_, parts)] = split_file({f"m.{key}": value for key, value in state.items()}).items()
    torch.testing.assert_close(module_change(parts, weight=base)[0], change, rtol=1e-4, atol=1e-5)
    other.apply_to()
    theirs = module(x)
    torch.testing.assert_close(live, theirs, rtol=1e-4, atol=2e-5)
    if given.get("dora"):
        return  # LyCORIS lets the gradient through the norm
    other.zero_grad()
    theirs.square().sum().backward()
    named = dict(other.named_parameters())
    for key, gradient in gradients.items():
        torch.testing.assert_close(gradient, named[key].grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("stem", ["attn2_to_k", "ff_net_2"])
@every_module
def test_ia3_is_lycoris(stem: str, kind: str) -> None:
    ia3 = pytest.importorskip("lycoris.modules.ia3")
    module, x = made(kind), inputs(kind)
    inward = stem == "ff_net_2"
    other = ia3.IA3Module("m", module, 1.0, train_on_input=inward)
    state = disturbed(other)
    adapters = attached("ia3", {}, module, stem)
    own = adapters.parts_of(stem)["weight"]
    with torch.no_grad():
        own.copy_(state["weight"].reshape(own.shape))
    live = module(x)
    ours = adapters.file_tensors()
    adapters.detach_from_model()
    base = module.weight.detach().clone()
    expected = other.get_diff_weight()[0].detach()
    for tensors in (ours, {f"{stem}.weight": state["weight"], f"{stem}.on_input": state["on_input"]}):
        [(_, parts)] = split_file(tensors).items()
        torch.testing.assert_close(module_change(parts, weight=base)[0], expected, rtol=1e-4, atol=1e-6)
    module.weight = nn.Parameter(base + expected)
    torch.testing.assert_close(live, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [nn.LayerNorm(32), nn.GroupNorm(8, 32)], ids=["layer_norm", "group_norm"])
def test_norm_is_lycoris(module: nn.Module) -> None:
    norms = pytest.importorskip("lycoris.modules.norms")
    other = norms.NormModule("m", module, 1.0)
    state = disturbed(other)
    x = torch.randn(2, 5, 32) if isinstance(module, nn.LayerNorm) else torch.randn(2, 32, 4, 4)
    adapters = attached("norm", {}, module)
    assert {key.removeprefix("m.") for key in adapters.state()} <= set(state)
    adapters.load_state({f"m.{key}": state[key] for key in ("w_norm", "b_norm")})
    live = module(x)
    adapters.detach_from_model()
    other.apply_to()
    torch.testing.assert_close(live, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("factor", [-1, 2, 4, 8, 16, 12])
def test_factorization_is_lycoris(factor: int) -> None:
    general = pytest.importorskip("lycoris.functional.general")
    for dimension in (1, 7, 24, 64, 127, 128, 250, 320, 360, 512, 640, 768, 1024, 1280, 2048, 2560, 5120, 10240):
        assert factorization(dimension, factor) == general.factorization(dimension, factor)


def into_peft(module: nn.Module, config: Any) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.inject_adapter_in_model(config, nn.ModuleDict({"m": module}))["m"]


@pytest.mark.parametrize("kind", ["linear", "conv1x1", "conv3x3"])
def test_dora_of_the_output_axis_is_peft(kind: str) -> None:
    peft = pytest.importorskip("peft")
    module, twin, x = made(kind), made(kind), inputs(kind)
    wrapped = into_peft(twin, peft.LoraConfig(r=4, lora_alpha=2, use_dora=True, target_modules=["m"]))
    adapters = attached("lora", {"rank": 4, "alpha": 2.0, "dora": "output"}, module)
    parts = adapters.parts_of("m")
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for value in parts.values():
            value.add_(torch.randn(value.shape, generator=generator) * 0.1)
        wrapped.lora_A["default"].weight.copy_(parts["lora_down.weight"])
        wrapped.lora_B["default"].weight.copy_(parts["lora_up.weight"])
        length = wrapped.lora_magnitude_vector["default"].weight
        length.copy_(parts["dora_scale"].reshape(length.shape))
    ours, theirs = module(x), wrapped(x)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    ours.square().sum().backward()
    theirs.square().sum().backward()
    torch.testing.assert_close(
        parts["lora_down.weight"].grad, wrapped.lora_A["default"].weight.grad, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(
        parts["lora_up.weight"].grad, wrapped.lora_B["default"].weight.grad, rtol=1e-3, atol=1e-3
    )
    torch.testing.assert_close(parts["dora_scale"].grad.flatten(), length.grad.flatten(), rtol=1e-3, atol=1e-3)


def test_rank_stabilized_is_peft() -> None:
    peft = pytest.importorskip("peft")
    module, twin, x = made("linear"), made("linear"), inputs("linear")
    wrapped = into_peft(twin, peft.LoraConfig(r=9, lora_alpha=2, use_rslora=True, target_modules=["m"]))
    adapters = attached("lora", {"rank": 9, "alpha": 2.0, "rank_stabilized": True}, module)
    parts = adapters.parts_of("m")
    with torch.no_grad():
        parts["lora_up.weight"].normal_()
        wrapped.lora_A["default"].weight.copy_(parts["lora_down.weight"])
        wrapped.lora_B["default"].weight.copy_(parts["lora_up.weight"])
    torch.testing.assert_close(module(x), wrapped(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "conv3x3"])
def test_loha_is_peft(kind: str) -> None:
    peft = pytest.importorskip("peft")
    module, twin, x = made(kind), made(kind), inputs(kind)
    wrapped = into_peft(twin, peft.LoHaConfig(r=3, alpha=2, target_modules=["m"], init_weights=False))
    adapters = attached("loha", {"rank": 3, "alpha": 2.0}, module)
    names = {"hada_w1_a": "hada_w1_a", "hada_w1_b": "hada_w1_b", "hada_w2_a": "hada_w2_a", "hada_w2_b": "hada_w2_b"}
    with torch.no_grad():
        for own, other in names.items():
            getattr(wrapped, other)["default"].copy_(adapters.parts_of("m")[own].normal_(std=0.2))
    torch.testing.assert_close(module(x), wrapped(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_dylora_cut_to_a_prefix_is_a_lora(share: float) -> None:
    """What training with a prefix computes is the file cut there, with alpha scaled by sqrt(rank / prefix) / rank."""
    module, x = made("linear"), inputs("linear")
    adapters = attached("dylora", {"rank": 8, "alpha": 4.0, "unit": 2}, module)
    parts = adapters.parts_of("m")
    with torch.no_grad():
        parts["lora_up.weight"].normal_()
    keep = int(8 * share)
    down, up = parts["lora_down.weight"].detach()[:keep], parts["lora_up.weight"].detach()[:, :keep]
    plain = nn.functional.linear(x, module.weight, module.bias)
    expected = plain + (4.0 / 8) * (8 / keep) ** 0.5 * (x @ down.t() @ up.t())
    adapters.train(True)
    found = False
    for seed in range(60):
        torch.manual_seed(seed)
        found = found or torch.allclose(module(x), expected, rtol=1e-4, atol=1e-5)
    assert found


def test_only_the_last_unit_of_a_dylora_learns() -> None:
    module, x = made("linear"), inputs("linear")
    adapters = attached("dylora", {"rank": 8, "unit": 2}, module).train(True)
    parts = adapters.parts_of("m")
    with torch.no_grad():
        parts["lora_up.weight"].normal_()
    torch.manual_seed(0)
    module(x).square().sum().backward()
    touched = (parts["lora_down.weight"].grad.abs().sum(dim=1) > 0).nonzero().flatten().tolist()
    assert len(touched) == 2
    assert touched[0] % 2 == 0
    assert touched[1] == touched[0] + 1


def test_lora_plus_makes_a_group_of_its_own() -> None:
    adapters = attached("lora", {"rank": 4, "up_lr_ratio": 16.0}, made("linear"))
    groups = adapters.param_groups()
    assert [(name, factor) for name, _, factor in groups] == [("unet", 1.0), ("unet x16", 16.0)]
    assert groups[1].parameters[0] is adapters.parts_of("m")["lora_up.weight"]
    assert {group.part for group in groups} == {"unet"}
