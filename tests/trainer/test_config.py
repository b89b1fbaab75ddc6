"""Names and keys of jobs, and what their settings say about themselves."""

import pytest

from lora_atelier.trainer.config import TrainParams
from lora_atelier.trainer.names import differences, normal_blocks, origins


def test_settings_round_trip_and_are_documented() -> None:
    params = TrainParams(steps=12, precision="bf16", run_name="x")
    assert TrainParams.from_json(params.to_json()) == params
    assert all(parameter.doc for parameter in TrainParams.parameters())


def test_origins() -> None:
    found = origins(TrainParams(steps=12))
    assert found["steps"] == {"value": 12, "origin": "given"}
    assert found["seed"]["origin"] == "default"
    assert differences(TrainParams(steps=12)) == {"steps": 12}


@pytest.mark.parametrize(
    ("text", "normal"), [("", ""), (" all ", ""), ("in04 - 07, out03", "IN04-07,OUT03"), ("in4 in5", "IN4,IN5")]
)
def test_normal_blocks(text: str, normal: str) -> None:
    assert normal_blocks(text) == normal
