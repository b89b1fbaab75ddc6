"""What a run was, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..trainer.run import RunInfo

SHARE_AT_EACH_END = 0.1


def run_report(run: RunInfo, *, score: str, loras_dir: Path) -> str:
    """Settings and outcome of a run, and a scorecard where one is given.

    Args:
        run: The run.
        score: JSON of a scorecard, "" for none.
        loras_dir: Files are named relative to it.

    Raises:
        InputError: The scorecard is not one.
    """
    lines = [f"{run.name} ({run.folder.name})", str(run.status.get("report") or _state(run)).strip()]
    if run.rows:
        losses = [row["loss"] for row in run.rows]
        part = max(1, round(len(losses) * SHARE_AT_EACH_END))
        first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
        lines.append(f"mean loss of the first {part} steps {first:.4f}, of the last {part} steps {last:.4f}")
    lines += [f"checkpoint at step {step}: {_shown(path, loras_dir, run.folder)}" for step, path in run.checkpoints]
    if score.strip():
        lines += _score_lines(score)
    return "\n".join(lines)


def _state(run: RunInfo) -> str:
    return f"{run.status.get('state', 'unknown')} at step {run.status.get('step', 0)}"


def _shown(path: Path, loras_dir: Path, folder: Path) -> str:
    for root in (loras_dir, folder):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.name


def _score_lines(score: str) -> list[str]:
    try:
        columns: list[Mapping[str, Any]] = json.loads(score)["columns"]
        return [
            f"{column['label']}: trigger recall {_share(column['trigger_recall'])}, "
            f"false triggers {_share(column['false_triggers'])}, "
            f"other prompts right {_share(column['other_success'])}, "
            f"kept {_share(column['kept'])}"
            for column in columns
        ]
    except (ValueError, KeyError, TypeError) as cause:
        raise InputError("The scorecard is not one; connect the output 'report' of 'Score Grid'.") from cause


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
