"""The loss as a picture, and a run as a text."""

from pathlib import Path

import pytest

from lora_atelier.core.errors import InputError, MissingLibraryError
from lora_atelier.trainer.plots import draw_loss, save_loss_plot, smoothed
from lora_atelier.trainer.report import run_report
from lora_atelier.trainer.run import open_run
from lora_atelier.trainer.train import RunResult


def test_moving_average_by_hand() -> None:
    assert smoothed([2.0, 2.0, 2.0]) == pytest.approx([2.0, 2.0, 2.0])
    assert smoothed([1.0, 3.0], weight=0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 3) / 0.75])


def test_the_loss_is_drawn(whole_run: RunResult) -> None:
    run = open_run(whole_run.run.folder)
    picture = draw_loss(run, width_px=640, height_px=400)
    assert picture.size == (640, 400)
    assert len(picture.getcolors(maxcolors=1_000_000) or []) > 10
    assert save_loss_plot(run) == run.folder / "plots" / "loss.png"


def test_a_run_without_steps_has_no_loss(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"key": "k", "run_name": "empty", "total_steps": 3}', encoding="utf-8")
    with pytest.raises(InputError, match="empty has no finished step yet"):
        draw_loss(open_run(tmp_path))


def test_without_matplotlib_the_command_is_named(whole_run: RunResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    with pytest.raises(MissingLibraryError, match="pip install matplotlib"):
        draw_loss(open_run(whole_run.run.folder))


def test_report(whole_run: RunResult) -> None:
    text = run_report(open_run(whole_run.run.folder))
    assert text.startswith("Run tiny (tiny-")
    assert "finished, step 7 of 7" in text
    assert "gradient_accumulation_steps 2" in text
    assert "Checkpoint: step 6" in text
