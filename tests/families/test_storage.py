"""Weights in 8 bits: cast where they are used, an adapter on top learns."""

from pathlib import Path

import pytest
import torch

from lora_atelier.core.errors import InputError
from lora_atelier.core.params import Choice
from lora_atelier.families import _storage
from lora_atelier.families._spec import Family, TextState
from lora_atelier.networks._attach import AdapterSet
from lora_atelier.networks.lora import LoraParams


def test_the_model_answers_with_the_rounded_weights_and_an_adapter_on_it_learns(
    tiny_path: Path, family: Family
) -> None:
    unet, rounded = (family.load(tiny_path, parts=("unet",)) for _ in range(2))
    with torch.no_grad():
        for module in rounded.unet.modules():
            if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
                module.weight.copy_(module.weight.to(torch.float8_e4m3fn).float())
    changed = _storage.store_in_fp8(unet.unet, compute_dtype=torch.float32, device=torch.device("cpu"))
    weights = [m.weight for m in unet.unet.modules() if isinstance(m, (torch.nn.Linear, torch.nn.Conv2d))]
    assert changed == len(weights)
    assert {weight.dtype for weight in weights} == {torch.float8_e4m3fn}
    noisy, times, text = torch.randn(1, 4, 8, 8), torch.tensor([400]), TextState(hidden=torch.randn(1, 77, 64))
    with torch.no_grad():
        expected = family.predict(rounded.unet, noisy, times, text)
        torch.testing.assert_close(family.predict(unet.unet, noisy, times, text), expected)
    choice = Choice(kind="network", name="lora", params=LoraParams(rank=2, alpha=1.0))
    adapters = AdapterSet.attach(family.targets(unet, text_encoder=False), choice, seed=0)
    torch.testing.assert_close(family.predict(unet.unet, noisy, times, text), expected)
    family.predict(unet.unet, noisy, times, text).square().sum().backward()
    gradients = [adapters.parts_of(stem)["lora_up.weight"].grad for stem in adapters.stems]
    assert all(gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients)


def test_a_device_without_the_type_is_named(tiny_path: Path, family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_storage, "FP8", torch.quint8)
    unet = family.load(tiny_path, parts=("unet",)).unet
    with pytest.raises(InputError, match="8 bits"):
        _storage.store_in_fp8(unet, compute_dtype=torch.float32, device=torch.device("cpu"))
