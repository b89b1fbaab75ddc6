import json
import math
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest

from lora_atelier.core.errors import AtelierError, InputError, UnknownNameError
from lora_atelier.core.params import Choice, Params, choice_from_json, param

FILES = ["a.safetensors"]


@dataclass(frozen=True, kw_only=True)
class Sample(Params):
    rank: int = param(16, doc="Rank of the update.", minimum=1, maximum=1024, step=1)
    learning_rate: float = param(1e-4, doc="Learning rate.", minimum=0.0, maximum=10.0)
    resolution_px: int = param(512, doc="Resolution.", unit="px", minimum=64, step=8)
    flip: bool = param(False, doc="Mirror pictures.")
    precision: str = param("bf16", doc="Arithmetic.", choices=("fp32", "bf16"), advanced=True)
    file: str = param("a.safetensors", doc="File.", choices=lambda: FILES)
    note: str = param("", doc="Any text.", multiline=True)
    free: float = param(0.0, doc="Any number.")
    low: float = param(-1.0, doc="At most zero.", maximum=0.0)


@dataclass(frozen=True, kw_only=True)
class Ordered(Params):
    low: int = param(0, doc="Low end.")
    high: int = param(1, doc="High end.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low > self.high:
            raise InputError(f"low is {self.low}, allowed is at most high, {self.high}")


def test_round_trip_through_json_text():
    given = Sample(rank=4, learning_rate=3, note="ä\nü", flip=True)
    text = json.dumps(given.to_json())
    assert Sample.from_json(json.loads(text)) == given
    assert hash(Sample.from_json(json.loads(text))) == hash(given)
    assert list(given.to_json()) == [parameter.name for parameter in Sample.parameters()]


def test_a_whole_number_serves_as_a_float_and_becomes_one():
    given = Sample(learning_rate=1)
    assert type(given.learning_rate) is float
    assert given == Sample(learning_rate=1.0)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("rank", 0, r"rank is 0, allowed is 1 to 1024"),
        ("rank", 1025, r"rank is 1025"),
        ("rank", 4.0, r"rank is 4\.0, allowed is a whole number"),
        ("rank", True, r"rank is True, allowed is a whole number"),
        ("rank", "4", r"rank is '4', allowed is a whole number"),
        ("rank", None, r"rank is None"),
        ("rank", 10**400, r"rank is"),
        ("learning_rate", math.nan, r"learning_rate is nan, allowed is a finite number, 0 to 10"),
        ("learning_rate", math.inf, r"learning_rate is inf"),
        ("learning_rate", -1e-9, r"allowed is 0 to 10"),
        ("learning_rate", "fast", r"allowed is a number"),
        ("learning_rate", 10**400, r"learning_rate is inf"),
        ("resolution_px", 8, r"allowed is at least 64 px"),
        ("low", 1, r"allowed is at most 0"),
        ("free", -math.inf, r"allowed is a finite number, any value"),
        ("flip", 1, r"flip is 1, allowed is true or false"),
        ("flip", "true", r"allowed is true or false"),
        ("precision", "bf61", r"did you mean 'bf16'"),
        ("precision", "", r"unknown value of precision ''"),
        ("file", "b.safetensors", r"allowed: a\.safetensors"),
        ("note", 3, r"note is 3, allowed is a text"),
        ("note", "\ud800", r"no file can hold"),
        ("note", ["x"] * 1000, r"note is \['x'"),
    ],
)
def test_refused(field, value, words):
    with pytest.raises(InputError, match=words) as caught:
        Sample(**{field: value})
    assert len(str(caught.value)) < 300
    with pytest.raises(InputError, match=words):
        Sample.from_json({field: value})
    with pytest.raises(InputError, match=words):
        replace(Sample(), **{field: value})


def test_values_between_steps_are_allowed():
    assert Sample(resolution_px=100).resolution_px == 100


def test_numpy_floats_become_plain_ones():
    assert type(Sample(free=np.float64(0.5)).free) is float


def test_unknown_keys_are_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="did you mean 'rank'"):
        Sample.from_json({"rnak": 4})


@pytest.mark.parametrize("data", [None, [], "rank", 3])
def test_only_objects_are_read(data):
    with pytest.raises(InputError, match="must be a JSON object"):
        Sample.from_json(data)


def test_rules_across_fields():
    assert Ordered(low=1, high=1).high == 1
    with pytest.raises(InputError, match="at most high"):
        Ordered(low=2)


def test_parameters_resolve_choices_at_the_moment_of_asking(monkeypatch):
    by_name = {parameter.name: parameter for parameter in Sample.parameters()}
    assert by_name["file"].choices == ("a.safetensors",)
    monkeypatch.setitem(globals(), "FILES", ["b.safetensors"])
    assert {parameter.name: parameter for parameter in Sample.parameters()}["file"].choices == ("b.safetensors",)
    assert by_name["rank"].type is int
    assert by_name["resolution_px"].unit == "px"
    assert by_name["precision"].advanced
    assert by_name["note"].multiline


def test_a_field_without_documentation_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Bare(Params):
        rank: int = 4

    with pytest.raises(AtelierError, match=r"Bare\.rank is not documented"):
        Bare()


def test_a_field_that_is_no_scalar_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Nested(Params):
        sizes: tuple = param((), doc="Sizes.")

    with pytest.raises(AtelierError, match=r"Nested\.sizes must be bool, int, float or str"):
        Nested.parameters()


def test_frozen():
    with pytest.raises(AttributeError):
        Sample().rank = 3


class TestChoice:
    plugins = {"sample": SimpleNamespace(params=Sample), "ordered": SimpleNamespace(params=Ordered)}

    def test_round_trip(self):
        choice = Choice(kind="network", name="sample", params=Sample(rank=2))
        data = json.loads(json.dumps(choice.to_json()))
        assert choice_from_json(data, self.plugins) == choice

    def test_parameters_may_be_left_out(self):
        assert choice_from_json({"kind": "network", "name": "ordered"}, self.plugins).params == Ordered()

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            ({"kind": "network", "name": "sampel"}, "unknown network 'sampel'; did you mean 'sample'"),
            ({"kind": "network"}, "needs the keys"),
            ([], "needs the keys"),
            ({"kind": "network", "name": "sample", "parms": {}}, "did you mean 'params'"),
            ({"kind": "network", "name": "sample", "params": {"rnk": 1}}, "did you mean 'rank'"),
            ({"kind": "network", "name": "sample", "params": 3}, "must be a JSON object"),
            ({"kind": "network", "name": "sample", "params": {"rank": 0}}, "rank is 0"),
        ],
    )
    def test_refused(self, data, words):
        with pytest.raises(InputError, match=words):
            choice_from_json(data, self.plugins)
