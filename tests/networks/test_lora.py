import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lora_atelier.core.errors import FormatError, InputError
from lora_atelier.core.params import Choice
from lora_atelier.families._spec import Target
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._layer import Layer, op_of
from lora_atelier.networks._spec import Size
from lora_atelier.networks.lora import DOWN, MID, NETWORK, UP, LoraParams, delta, init

MODULES = {
    "linear": lambda: nn.Linear(24, 40),
    "linear without bias": lambda: nn.Linear(24, 40, bias=False),
    "conv 1x1": lambda: nn.Conv2d(24, 40, 1),
    "conv 3x3": lambda: nn.Conv2d(24, 40, 3, padding=1),
    "conv 3x3 stride 2": lambda: nn.Conv2d(24, 40, 3, stride=2, padding=1),
    "conv 3x3 dilated": lambda: nn.Conv2d(24, 40, 3, padding=2, dilation=2),
}


def inputs(module: nn.Module) -> torch.Tensor:
    return torch.randn(2, 7, 24) if isinstance(module, nn.Linear) else torch.randn(2, 24, 9, 6)


def attach(module: nn.Module, rank: int = 4, alpha: float = 2.0, dropout: float = 0.0) -> AdapterSet:
    target = Target(stem="m", path="m", part="unet", block="MID", kind="linear", module=module)
    params = LoraParams(rank=rank, alpha=alpha, dropout=dropout)
    adapters = AdapterSet.attach([target], Choice(kind="network", name="lora", params=params), seed=1)
    with torch.no_grad():
        adapters.parts_of("m")[UP].normal_()
    return adapters


@pytest.mark.parametrize("name", MODULES)
def test_forward_equals_a_module_with_the_delta_in_its_weight(name: str) -> None:
    module = MODULES[name]()
    x = inputs(module)
    adapters = attach(module)
    adapted = module(x)
    change = adapters.delta("m")
    parts = adapters.parts_of("m")
    naive = torch.einsum("or,r...->o...", parts[UP].flatten(1), parts[DOWN]) * (2.0 / 4)
    torch.testing.assert_close(change, naive.reshape(module.weight.shape))
    adapters.detach_from_model()
    with torch.no_grad():
        module.weight += change
    torch.testing.assert_close(adapted, module(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODULES)
def test_gradients_equal_those_of_the_plain_formula(name: str) -> None:
    module = MODULES[name]()
    x = inputs(module).requires_grad_()
    adapters = attach(module)
    parts = adapters.parts_of("m")
    leaves = [x, parts[DOWN], parts[UP]]
    own = torch.autograd.grad(module(x).square().sum(), leaves)
    adapters.detach_from_model()
    weight = module.weight + torch.einsum("or,r...->o...", parts[UP].flatten(1), parts[DOWN]).reshape(
        module.weight.shape
    ) * (2.0 / 4)
    if isinstance(module, nn.Conv2d):
        y = F.conv2d(x, weight, module.bias, module.stride, module.padding, module.dilation)
    else:
        y = F.linear(x, weight, module.bias)
    for value, expected in zip(own, torch.autograd.grad(y.square().sum(), leaves), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3)


def test_starting_values_are_kohyas() -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in ((40, 24), (40, 24, 1, 1), (40, 24, 3, 3)):
        module = nn.Linear(24, 40) if len(shape) == 2 else nn.Conv2d(24, 40, shape[2])
        layer = Layer(op=op_of(module), module=module)
        parts = init(layer, params=LoraParams(), size=Size(rank=64, alpha=8.0), generator=generator)
        reference = torch.empty(64, *shape[1:])
        nn.init.kaiming_uniform_(reference, a=math.sqrt(5))
        bound = float(reference.abs().max())
        assert parts[DOWN].shape == (64, *shape[1:])
        assert parts[UP].shape == (40, 64, *([1] * (len(shape) - 2)))
        assert float(parts[DOWN].abs().max()) == pytest.approx(bound, rel=0.05)
        assert float(parts[DOWN].std()) == pytest.approx(bound / math.sqrt(3), rel=0.1)
        assert not parts[UP].any()


def test_dropout_acts_in_training_alone_and_keeps_the_mean() -> None:
    module = nn.Linear(24, 40)
    adapters = attach(module, rank=64, dropout=0.5)
    x = torch.randn(1, 1, 24).expand(1, 4000, 24)
    dropped = module(x)
    assert not torch.equal(dropped[0, 0], dropped[0, 1])
    adapters.train(False)
    torch.testing.assert_close(dropped.mean(dim=1), module(x)[:, 0], rtol=0.3, atol=0.5)
    assert torch.equal(module(x)[0, 0], module(x)[0, 1])


def test_delta_reads_alpha_none_tucker_and_flattened_files() -> None:
    down, up, mid = torch.randn(4, 6, 1, 1), torch.randn(8, 4, 1, 1), torch.randn(4, 4, 3, 3)
    plain = delta({DOWN: down, UP: up}, alpha=None, weight_shape=None)
    torch.testing.assert_close(plain, (up.flatten(1) @ down.flatten(1)).reshape(8, 6, 1, 1))
    tucker = delta({DOWN: down, UP: up, MID: mid}, alpha=2.0, weight_shape=(8, 6, 3, 3))
    naive = torch.einsum("op,pqhw,qi->oihw", up.flatten(1), mid, down.flatten(1)) * 0.5
    torch.testing.assert_close(tucker, naive)
    flattened = delta({DOWN: torch.randn(4, 54), UP: torch.randn(8, 4)}, alpha=1.0, weight_shape=(8, 6, 3, 3))
    assert flattened.shape == (8, 6, 3, 3)
    half = delta({DOWN: down.half(), UP: up.half()}, alpha=1.0, weight_shape=None)
    assert half.dtype == torch.float32


def test_delta_refuses_shapes_that_do_not_fit() -> None:
    with pytest.raises(FormatError, match=r"down of shape \[4, 6\] and up of shape \[8, 3\]"):
        delta({DOWN: torch.zeros(4, 6), UP: torch.zeros(8, 3)}, alpha=1.0, weight_shape=None)
    with pytest.raises(FormatError, match="another architecture"):
        delta({DOWN: torch.zeros(4, 6), UP: torch.zeros(8, 4)}, alpha=1.0, weight_shape=(8, 7))


@pytest.mark.parametrize(
    "wrong", [{"rank": 0}, {"rank": -1}, {"rank": 2.5}, {"alpha": 0.0}, {"alpha": math.nan}, {"dropout": 1.0}]
)
def test_parameters_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        LoraParams(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["linear", "conv 1x1", "conv 3x3"])
def test_forward_and_delta_equal_peft(name: str) -> None:
    peft = pytest.importorskip("peft")
    module, other = MODULES[name](), MODULES[name]()
    other.load_state_dict(module.state_dict())
    adapters = attach(module, rank=8, alpha=3.0)
    holder = nn.ModuleDict({"m": other})
    wrapped = peft.inject_adapter_in_model(peft.LoraConfig(r=8, lora_alpha=3, target_modules=["m"]), holder)["m"]
    parts = adapters.parts_of("m")
    with torch.no_grad():
        wrapped.lora_A["default"].weight.copy_(parts[DOWN])
        wrapped.lora_B["default"].weight.copy_(parts[UP])
    x = inputs(module)
    torch.testing.assert_close(module(x), wrapped(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(adapters.delta("m"), wrapped.get_delta_weight("default"), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "tucker"), [("linear", False), ("conv 1x1", False), ("conv 3x3", False), ("conv 3x3", True)]
)
def test_forward_and_delta_equal_lycoris(name: str, tucker: bool) -> None:
    locon = pytest.importorskip("lycoris.modules.locon")
    module = MODULES[name]()
    other = locon.LoConModule("m", module, 1.0, 8, 3.0, use_tucker=tucker)
    with torch.no_grad():
        other.lora_up.weight.normal_()
    state = {key: value.detach() for key, value in other.state_dict().items()}
    parts = {key: value for key, value in state.items() if key in (DOWN, UP, MID)}
    change = delta(parts, alpha=float(state["alpha"]), weight_shape=tuple(module.weight.shape))
    expected = other.get_diff_weight()[0].reshape(module.weight.shape)
    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
    if tucker:
        return
    adapters = attach(module, rank=8, alpha=3.0)
    adapters.load_state({f"m.{key}": value for key, value in {**parts, "alpha": torch.tensor(3.0)}.items()})
    x = inputs(module)
    own = module(x)
    adapters.detach_from_model()
    other.apply_to()
    torch.testing.assert_close(own, module(x), rtol=1e-4, atol=1e-5)


def test_the_spec_says_where_it_comes_from() -> None:
    assert "2106.09685" in NETWORK.source
    assert NETWORK.size(LoraParams(rank=16, alpha=8.0), (4, 4)).scale == 0.5
