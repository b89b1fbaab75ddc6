"""The training nodes: what the host is asked for, and when."""

import logging

import pytest

from atelier_tests.helpers.fake_host import FakeHost
from atelier_tests.helpers.full_size import write_tiny_checkpoint
from atelier_tests.helpers.training import draw_pictures, open_pictures
from lora_atelier.core.errors import InputError
from lora_atelier.families._base import open_base
from lora_atelier.nodes.host import set_host
from lora_atelier.nodes.train import ContinueTraining, TrainLora

SETTINGS = {
    "run_name": "tiny",
    "steps": 1,
    "resolution_px": 64,
    "bucket_step_px": 8,
    "bucket_min_px": 32,
    "bucket_max_px": 128,
}


@pytest.fixture
def host(tmp_path):
    made = FakeHost(tmp_path)
    set_host(made)
    yield made
    set_host(None)


@pytest.fixture
def given(tmp_path):
    base = open_base(write_tiny_checkpoint(tmp_path / "tiny.safetensors", seed=3), name="tiny")
    return {"base": base, "dataset": open_pictures(draw_pictures(tmp_path / "rings"))}


def test_the_host_is_asked_for_its_memory_only_to_train(host, given, caplog):
    with pytest.raises(InputError, match="clip_skip is 12"):
        TrainLora().train(**given, **SETTINGS, clip_skip=12)
    assert "training" not in host.calls
    with caplog.at_level(logging.INFO, logger="lora_atelier"):
        run, lora, report = TrainLora().train(**given, **SETTINGS)["result"]
    assert host.calls.count("training") == 1
    assert caplog.messages[0].startswith("Plan of tiny: 1 steps")
    assert caplog.messages[-1] == report
    assert TrainLora().train(**given, **SETTINGS)["result"][0] == run
    assert host.calls.count("training") == 1
    assert lora.path.is_file()

    further = {"run_name": "further", "mode": "resume"}
    child = ContinueTraining().go_on(run, **given, extra_steps=1, **further)["result"][0]
    assert child.step == 2
    assert host.calls.count("training") == 2
    assert ContinueTraining().go_on(run, **given, extra_steps=1, **further)["result"][0] == child
    assert host.calls.count("training") == 2


def test_a_trigger_that_no_caption_holds_is_said(host, given, caplog):
    words = next(iter(given["dataset"].tag_counts()))
    for trigger in ("", words, words.upper().replace(" ", "_")):
        assert "no caption holds" not in TrainLora().train(**given, **SETTINGS, trigger=trigger)["result"][2]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    shown = TrainLora().train(**given, **SETTINGS, trigger=f"{words}, zork")
    assert "no caption holds the trigger 'zork'" in shown["result"][2]
    assert shown["ui"]["text"] == [shown["result"][2]]
    assert "zork" in caplog.text
