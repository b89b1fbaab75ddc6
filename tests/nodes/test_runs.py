"""The loss of a run as a picture, and a run as a text."""

import dataclasses
import sys
from pathlib import Path

import pytest

from lora_atelier.core.errors import InputError, MissingLibraryError
from lora_atelier.nodes._plot import loss_plot, smoothed
from lora_atelier.nodes._report import run_report
from lora_atelier.trainer.run import RunInfo

RUN = RunInfo(
    folder=Path("runs") / "tiny-01234567",
    key="0" * 64,
    name="tiny",
    manifest={"total_steps": 4},
    status={"state": "finished", "step": 4, "report": "Plan of tiny: 4 steps."},
    rows=tuple(
        {"step": float(step), "loss": 1.0 / step, "lr_unet": 1e-3, "lr_text_encoder": 0.0} for step in range(1, 5)
    ),
    checkpoints=((4, Path("loras") / "atelier" / "tiny.safetensors"),),
    lora_path=Path("loras") / "atelier" / "tiny.safetensors",
)


def test_moving_average_by_hand():
    assert smoothed([2.0, 2.0, 2.0], 0.95) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 3.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])
    assert smoothed([1.0, 3.0], 0.0) == [1.0, 3.0]


def test_the_loss_is_drawn():
    picture = loss_plot(RUN, smoothing=0.9)
    assert picture.size == (800, 450)
    assert len(picture.getcolors(maxcolors=1_000_000) or []) > 10


def test_a_run_without_steps_has_no_loss():
    with pytest.raises(InputError, match="tiny has no step to draw"):
        loss_plot(dataclasses.replace(RUN, rows=()), smoothing=0.9)


def test_without_matplotlib_the_command_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match="pip install matplotlib"):
        loss_plot(RUN, smoothing=0.9)


def test_report():
    text = run_report(RUN, score="", loras_dir=Path("loras"))
    assert text.splitlines() == [
        "tiny (tiny-01234567)",
        "Plan of tiny: 4 steps.",
        "mean loss of the first 1 steps 1.0000, of the last 1 steps 0.2500",
        "checkpoint at step 4: atelier/tiny.safetensors",
    ]
    with pytest.raises(InputError, match="connect the output 'report' of 'Score Grid'"):
        run_report(RUN, score="{}", loras_dir=Path("loras"))
