"""Tensors on their way to the device."""

from typing import Any

import torch

from lora_atelier.core.transfer import to_device


class Told:
    """Stands in for a tensor on the host and keeps what is done with it."""

    def __init__(self) -> None:
        self.device, self.pinned, self.asked = torch.device("cpu"), False, {}

    def is_pinned(self) -> bool:
        return self.pinned

    def pin_memory(self) -> "Told":
        self.pinned = True
        return self

    def to(self, device: torch.device, **given: Any) -> str:
        self.asked = {"device": device, **given}
        return "there"


def test_what_goes_to_a_gpu_is_pinned() -> None:
    told: Any = Told()
    assert to_device(told, "cuda:0") == "there"
    assert told.pinned
    assert told.asked == {"device": torch.device("cuda:0"), "non_blocking": True}


def test_what_is_there_stays_as_it_is() -> None:
    tensor = torch.ones(2)
    assert to_device(tensor, "cpu") is tensor
