"""Widgets from parameter dataclasses."""

from dataclasses import dataclass

import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.core.params import Params, param
from lora_atelier.nodes.widgets import params_from, widgets


@dataclass(frozen=True, kw_only=True)
class Example(Params):
    count: int = param(3, doc="How many.", unit="px", minimum=1, maximum=9, step=2)
    share: float = param(0.25, doc="Which part", minimum=0.0, maximum=1.0)
    name: str = param("a", doc="Name.", multiline=True)
    kind: str = param("b", doc="Kind.", choices=("a", "b"))
    on: bool = param(True, doc="Whether.", advanced=True)
    seed: int = param(0, doc="Seed.", minimum=0, maximum=10)


def test_every_field_becomes_a_widget_with_its_own_numbers() -> None:
    found = widgets(Example)
    assert found["count"] == ("INT", {"default": 3, "tooltip": "How many.", "min": 1, "max": 9, "step": 2})
    assert found["share"][1] == {
        "default": 0.25,
        "tooltip": "Which part.",
        "min": 0.0,
        "max": 1.0,
        "step": 0.01,
        "round": False,
    }
    assert found["name"] == ("STRING", {"default": "a", "tooltip": "Name.", "multiline": True})
    assert found["kind"] == (["a", "b"], {"default": "b", "tooltip": "Kind."})
    assert found["on"] == ("BOOLEAN", {"default": True, "tooltip": "Whether.", "advanced": True})
    assert found["seed"][1]["control_after_generate"] is False


def test_a_node_may_fold_other_fields_away() -> None:
    found = widgets(Example, shown=("on",))
    assert [name for name, entry in found.items() if not entry[1].get("advanced")] == ["on"]


def test_values_come_back_as_parameters() -> None:
    assert params_from(Example, {"count": 5, "model": object()}) == Example(count=5)
    with pytest.raises(InputError, match="count"):
        params_from(Example, {"count": 100})
