"""States of every form go through JSON and tensors without a bit of difference."""

import json
from collections import deque
from typing import Any

import pytest
import torch

from lora_atelier.core.errors import FormatError, TrainingError
from lora_atelier.trainer._state_codec import give_tensors, take_tensors
from lora_atelier.trainer.optimizers._spec import Trained
from lora_atelier.trainer.optimizers.other import OtherParams, check, parse_arguments

STATE: dict[str, Any] = {
    "state": {
        0: {"step": 3, "mean": torch.ones(2), "bytes": torch.tensor([1, 255], dtype=torch.uint8), "name": "a"},
        1: {
            "queue": deque([torch.zeros(1), None], maxlen=4),
            "pair": (1, 2.5),
            "inner": {"x": torch.tensor(7), 3: True},
        },
        "k": torch.tensor([4]),
        "shared": {"d": torch.tensor(1e-6)},
    },
    "param_groups": [
        {"lr": 0.1, "betas": (0.9, 0.99), "growth": float("inf"), "d": torch.tensor([0.5]), "params": [0, 1]},
        {"lr": 1e-300, "betas": [0.9, 0.99], "dtype": torch.bfloat16, "params": []},
    ],
}


def through(state: dict[str, Any]) -> dict[str, Any]:
    tensors: dict[str, torch.Tensor] = {}
    rest = json.loads(json.dumps(take_tensors(state, tensors, "optimizer/"), allow_nan=False))
    assert all(name.startswith("optimizer/") for name in tensors)
    return give_tensors(rest, {**tensors, "adapter/x": torch.zeros(1)}, "optimizer/")


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple, deque)):
        kinds = type(one) is type(other) and len(one) == len(other)
        return kinds and all(same(left, right) for left, right in zip(one, other, strict=True))
    return bool(type(one) is type(other) and one == other)


def test_every_form_comes_back() -> None:
    got = through(STATE)
    assert got["param_groups"][1].pop("betas") == (0.9, 0.99)  # as the first version wrote them
    expected = {**STATE, "param_groups": [dict(group) for group in STATE["param_groups"]]}
    del expected["param_groups"][1]["betas"]
    assert same(got, expected)
    assert got["state"][1]["queue"].maxlen == 4


def test_what_cannot_be_written_is_refused() -> None:
    with pytest.raises(TrainingError, match="keeps a Generator in its state"):
        take_tensors({"state": {0: {"random": torch.Generator()}}, "param_groups": []}, {}, "")


def test_missing_tensors_are_named() -> None:
    tensors: dict[str, torch.Tensor] = {}
    rest = take_tensors(STATE, tensors, "optimizer/")
    del tensors["optimizer/nested/group/0/d"]
    with pytest.raises(FormatError, match="nested/group/0/d' is missing"):
        give_tensors(rest, tensors, "optimizer/")
    with pytest.raises(FormatError, match="belongs to no parameter"):
        give_tensors({"state": {}, "param_groups": []}, {"optimizer/5/mean": torch.zeros(1)}, "optimizer/")


@pytest.mark.parametrize("name", ["ADOPT", "rmsprop", "MADGRAD", "Prodigy", "DAdaptAdan", "SPAM", "AdEMAMix"])
def test_other_classes_are_tried_and_taken(name: str) -> None:
    lr = 1.0 if name in ("Prodigy", "DAdaptAdan") else 1e-4
    params = OtherParams(class_name=name, lr_unet=lr, lr_text_encoder=lr)
    assert all(isinstance(line, str) for line in check(params, Trained(unet=True, text_encoder=True, steps=100)))


def test_arguments() -> None:
    got = parse_arguments("weight_decay=0.1 betas=0.9,0.99 decouple=True mode=none name=abc; n=3")
    assert got == {"weight_decay": 0.1, "betas": (0.9, 0.99), "decouple": True, "mode": None, "name": "abc", "n": 3}
