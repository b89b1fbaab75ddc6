import copy
from collections.abc import Iterable, Sequence

import pytest
import torch
from torch import nn

from lora_atelier.core.errors import AtelierError, FormatError, InputError, UnknownNameError
from lora_atelier.core.params import Choice
from lora_atelier.families._checkpointing import recompute_activations
from lora_atelier.families._spec import Components, Family, Target, TextState
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks._blocks import expand_selection
from lora_atelier.networks.lora import LoraParams

CHOICE = Choice(kind="network", name="lora", params=LoraParams(rank=4, alpha=4.0))


def disturb(adapters: AdapterSet) -> None:
    """Gives the adapter an effect: its up matrices start at zero."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for values in adapters.parameters_by_part().values():
            for value in values:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)


def loss_of(tiny: Components, family: Family, captions: Sequence[str] = ("red circle", "blue star")) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    text = family.encode_text(tiny, list(captions), clip_skip=1)
    noisy = torch.randn(2, 4, 8, 8, generator=generator)
    return family.predict(tiny.unet, noisy, torch.tensor([10, 700]), text).square().mean()


def gradients(adapters: AdapterSet) -> dict[str, torch.Tensor]:
    return {
        f"{stem}.{name}": value.grad
        for stem in adapters.stems
        for name, value in adapters.parts_of(stem).items()
        if value.grad is not None
    }


def test_a_fresh_adapter_changes_nothing_and_detaching_leaves_no_trace(tiny: Components, family: Family) -> None:
    before = loss_of(tiny, family)
    targets = family.targets(tiny)
    dictionaries = [dict(target.module.__dict__) for target in targets]
    adapters = AdapterSet.attach(targets, CHOICE, seed=0)
    assert torch.equal(loss_of(tiny, family), before)
    disturb(adapters)
    assert not torch.allclose(loss_of(tiny, family), before)
    adapters.enabled = False
    assert torch.equal(loss_of(tiny, family), before)
    adapters.detach_from_model()
    adapters.detach_from_model()
    assert [dict(target.module.__dict__) for target in targets] == dictionaries
    assert torch.equal(loss_of(tiny, family), before)


def test_the_parameters_do_not_join_the_model(tiny: Components, family: Family) -> None:
    names = list(tiny.unet.state_dict())
    adapters = AdapterSet.attach(family.targets(tiny), CHOICE, seed=0)
    assert list(tiny.unet.state_dict()) == names
    assert not any(value.requires_grad for value in tiny.unet.parameters())
    groups = adapters.parameters_by_part()
    assert len(groups["unet"]) == 2 * 192
    assert len(groups["text_encoder"]) == 2 * 18
    assert sum(value.numel() for values in groups.values() for value in values) == adapters.num_parameters


def test_only_the_adapter_collects_gradients(tiny: Components, family: Family) -> None:
    adapters = AdapterSet.attach(family.targets(tiny), CHOICE, seed=0)
    disturb(adapters)
    loss_of(tiny, family).backward()
    assert len(gradients(adapters)) == 2 * len(adapters.stems)
    assert all(value.grad is None for model in (tiny.unet, *tiny.text_encoders) for value in model.parameters())


def test_starting_values_depend_on_seed_and_stem_alone(tiny: Components, family: Family) -> None:
    targets = family.targets(tiny)
    first = AdapterSet.attach(targets, CHOICE, seed=7)
    first.detach_from_model()
    second = AdapterSet.attach(targets[::-1][:50], CHOICE, seed=7)
    second.detach_from_model()
    third = AdapterSet.attach(targets[:1], CHOICE, seed=8)
    third.detach_from_model()
    state = first.state()
    assert all(torch.equal(value, state[key]) for key, value in second.state().items())
    key = f"{targets[0].stem}.lora_down.weight"
    assert not torch.equal(third.state()[key], state[key])
    assert not torch.equal(state[key], state[f"{targets[1].stem}.lora_down.weight"])


def test_state_round_trip_and_refusals(tiny: Components, family: Family) -> None:
    adapters = AdapterSet.attach(family.targets(tiny), CHOICE, seed=0)
    disturb(adapters)
    saved = {key: value.clone() for key, value in adapters.state().items()}
    assert all(value.shape == () and float(value) == 4.0 for key, value in saved.items() if key.endswith(".alpha"))
    expected = loss_of(tiny, family)
    adapters.detach_from_model()
    other = AdapterSet.attach(family.targets(tiny), CHOICE, seed=1)
    other.load_state(saved)
    assert torch.equal(loss_of(tiny, family), expected)
    key = f"{adapters.stems[0]}.lora_down.weight"
    for broken in (
        {name: value for name, value in saved.items() if name != key},
        {**saved, "extra.alpha": torch.tensor(1.0)},
        {**saved, key: saved[key][:2]},
    ):
        with pytest.raises(FormatError, match="saved"):
            other.load_state(broken)
    with pytest.raises(InputError, match="nowhere"):
        other.parts_of("nowhere")


def test_state_shares_live_memory(tiny: Components, family: Family) -> None:
    adapters = AdapterSet.attach(family.targets(tiny), CHOICE, seed=0)
    key = f"{adapters.stems[0]}.lora_up.weight"
    assert adapters.state()[key].data_ptr() == adapters.parts_of(adapters.stems[0])["lora_up.weight"].data_ptr()


@pytest.mark.parametrize("base_dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_bases_with_fp32_adapters(
    tiny: Components, family: Family, base_dtype: torch.dtype, autocast: bool
) -> None:
    adapters = AdapterSet.attach(family.targets(tiny, text_encoder=False), CHOICE, seed=0)
    disturb(adapters)
    noisy, text = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 64)
    expected = family.predict(tiny.unet, noisy, torch.tensor([300]), TextState(hidden=text))
    expected.square().mean().backward()
    reference = gradients(adapters)
    adapters.requires_grad_(False).requires_grad_(True)
    for values in adapters.parameters_by_part().values():
        for value in values:
            value.grad = None
    tiny.unet.to(base_dtype)
    if autocast:
        with torch.autocast("cpu", dtype=base_dtype):
            answer = family.predict(tiny.unet, noisy, torch.tensor([300]), TextState(hidden=text))
    else:
        answer = family.predict(
            tiny.unet, noisy.to(base_dtype), torch.tensor([300]), TextState(hidden=text.to(base_dtype))
        )
    assert answer.dtype == base_dtype
    torch.testing.assert_close(answer.float(), expected, rtol=0.1, atol=0.1)
    answer.float().square().mean().backward()
    own = gradients(adapters)
    assert own.keys() == reference.keys()
    assert {value.dtype for value in own.values()} == {torch.float32}
    flat, wanted = (torch.cat([value.flatten() for value in group.values()]) for group in (own, reference))
    assert torch.nn.functional.cosine_similarity(flat, wanted, dim=0) > 0.98


def test_gradient_checkpointing_gives_the_same_gradients(tiny: Components, family: Family) -> None:
    adapters = AdapterSet.attach(family.targets(tiny), CHOICE, seed=0)
    disturb(adapters)
    loss_of(tiny, family).backward()
    plain = {key: value.clone() for key, value in gradients(adapters).items()}
    for values in adapters.parameters_by_part().values():
        for value in values:
            value.grad = None
    for module in (tiny.unet, *tiny.text_encoders):
        recompute_activations(module)
    loss_of(tiny, family).backward()
    again = gradients(adapters)
    assert again.keys() == plain.keys()
    for key, value in again.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-3, atol=1e-6)


def saved_bytes(tiny: Components, family: Family, targets: Iterable[Target]) -> int:
    adapters = AdapterSet.attach(list(targets), CHOICE, seed=0)
    kept: dict[int, int] = {}
    own = {value.data_ptr() for model in (tiny.unet, *tiny.text_encoders) for value in model.parameters()}

    def note(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(note, lambda value: value):
        loss_of(tiny, family)
    adapters.detach_from_model()
    return sum(kept.values())


def test_nothing_is_kept_for_the_blocks_before_the_first_trained_one(tiny: Components, family: Family) -> None:
    targets = family.targets(tiny)
    chosen = set(expand_selection("OUT03-06", family.blocks))
    few = saved_bytes(tiny, family, [target for target in targets if target.block in chosen])
    late = saved_bytes(tiny, family, [target for target in targets if target.block == "OUT11"])
    every = saved_bytes(tiny, family, targets)
    assert late < few < 0.75 * every

    adapters = AdapterSet.attach([target for target in targets if target.block in chosen], CHOICE, seed=0)
    reached: dict[str, bool] = {}
    watched = {"down": tiny.unet.down_blocks[-1], "mid": tiny.unet.mid_block, "up": tiny.unet.up_blocks[1]}
    handles = [
        block.register_forward_hook(lambda module, args, out, name=name: reached.update({name: requires_grad(out)}))
        for name, block in watched.items()
    ]
    loss_of(tiny, family).backward()
    for handle in handles:
        handle.remove()
    assert reached == {"down": False, "mid": False, "up": True}
    assert {family.block_of_stem(stem) for stem in adapters.stems} == chosen


def requires_grad(out: object) -> bool:
    if isinstance(out, torch.Tensor):
        return out.requires_grad
    return any(requires_grad(part) for part in out) if isinstance(out, (tuple, list)) else False


def test_two_adapters_stack_and_come_off_in_reverse_order() -> None:
    module = nn.Linear(6, 6)
    target = Target(stem="m", path="m", part="unet", block="MID", kind="linear", module=module)
    x = torch.randn(3, 6)
    plain = module(x)
    first = AdapterSet.attach([target], CHOICE, seed=0)
    disturb(first)
    one = module(x)
    second = AdapterSet.attach([target], CHOICE, seed=1)
    disturb(second)
    torch.testing.assert_close(module(x) - one, one - plain)
    with pytest.raises(AtelierError, match="take that off first"):
        first.detach_from_model()
    second.detach_from_model()
    assert torch.equal(module(x), one)
    first.detach_from_model()
    assert torch.equal(module(x), plain)


def test_an_attached_module_is_not_copied_half() -> None:
    module = nn.Linear(6, 6)
    target = Target(stem="m", path="m", part="unet", block="MID", kind="linear", module=module)
    adapters = AdapterSet.attach([target], CHOICE, seed=0)
    adapters.detach_from_model()
    assert "forward" not in copy.deepcopy(module).__dict__


def test_what_cannot_be_attached_is_refused() -> None:
    def target(module: nn.Module, stem: str = "m") -> Target:
        return Target(stem=stem, path="m", part="unet", block="MID", kind="linear", module=module)

    with pytest.raises(InputError, match="at least one block"):
        AdapterSet.attach([], CHOICE, seed=0)
    with pytest.raises(InputError, match="named twice"):
        AdapterSet.attach([target(nn.Linear(2, 2)), target(nn.Linear(2, 2))], CHOICE, seed=0)
    for module in (
        nn.LayerNorm(4),
        nn.Conv2d(4, 4, 1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv1d(2, 2, 1),
    ):
        with pytest.raises(FormatError, match=type(module).__name__):
            AdapterSet.attach([target(module)], CHOICE, seed=0)
    with pytest.raises(UnknownNameError, match="lora"):
        AdapterSet.attach([target(nn.Linear(2, 2))], Choice(kind="network", name="lorra", params=LoraParams()), seed=0)


def test_the_device_argument_and_an_upstream_inference_mode() -> None:
    with torch.inference_mode():
        weight = torch.randn(6, 6)
    module = nn.Linear(6, 6)
    module.weight = nn.Parameter(weight.clone(), requires_grad=False)
    target = Target(stem="m", path="m", part="unet", block="MID", kind="linear", module=module)
    adapters = AdapterSet.attach([target], CHOICE, seed=0, device="cpu")
    module(torch.randn(2, 6)).sum().backward()
    assert adapters.parts_of("m")["lora_up.weight"].grad is not None
