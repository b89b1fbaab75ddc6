"""A run on disk: its folder, manifest, metrics, status and published files."""

import csv
import io
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import AtelierError, FormatError, StorageError
from ..core.files import atomic_path, link_or_copy_new, read_json, sha256_file, storage_error, write_json, write_text
from ._lock import locked
from .checkpoints import Checkpoint, list_checkpoints, remove_half_written
from .loop import Row

MANIFEST_FILE = "manifest.json"
METRICS_FILE = "metrics.csv"
STATUS_FILE = "status.json"
PUBLISHED_FILE = "published.json"
METRICS_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "lr_unet",
    "lr_text_encoder",
    "grad_norm",
    "images_seen",
    "seconds",
    "effective_lr",
    "stage",
)


@dataclass(frozen=True, kw_only=True)
class RunRef:
    """A run on a wire: its folder, its key and the step it reached."""

    folder: Path
    key: str
    step: int


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What a run's folder says.

    Attributes:
        folder: the run's folder.
        key: the run's key.
        name: the run's name.
        manifest: settings with their origin, data, base, versions.
        status: state ("running", "finished", "cancelled", "failed"), step, total_steps, reason, seconds_training.
        rows: one mapping per step, with the columns of ``metrics.csv`` as numbers.
        checkpoints: (step, LoRA file) of every checkpoint made for the user, by rising step; the last one of a finished
            run is the final LoRA.
        lora_path: the final LoRA, None when the run is not finished.
    """

    folder: Path
    key: str
    name: str
    manifest: Mapping[str, Any]
    status: Mapping[str, Any]
    rows: tuple[Mapping[str, float], ...]
    checkpoints: tuple[tuple[int, Path], ...]
    lora_path: Path | None

    @property
    def finished(self) -> bool:
        """Whether the run reached its last step and its LoRA is there."""
        return self.lora_path is not None


def open_run(folder: Path) -> RunInfo:
    """Reads a run's folder.

    Raises:
        StorageError: there is no run.
        FormatError: the manifest is damaged.
    """
    manifest_path = folder / MANIFEST_FILE
    if not manifest_path.is_file():
        raise StorageError(
            f"There is no training run in {folder.name}: it has no {MANIFEST_FILE}; choose a run's folder."
        )
    manifest = _checked_manifest(read_json(manifest_path), manifest_path)
    status = read_json(folder / STATUS_FILE) if (folder / STATUS_FILE).is_file() else {"state": "running", "step": 0}
    kept = [(point.step, point.lora_path) for point in list_checkpoints(folder) if point.kept]
    checkpoints = tuple((step, path) for step, path in kept if path is not None)
    total_steps = int(manifest["total_steps"])
    final = checkpoints[-1][1] if checkpoints and checkpoints[-1][0] >= total_steps else None
    return RunInfo(
        folder=folder,
        key=str(manifest["key"]),
        name=str(manifest["run_name"]),
        manifest=manifest,
        status=status,
        rows=tuple(_read_rows(folder / METRICS_FILE)),
        checkpoints=checkpoints,
        lora_path=final if status.get("state") == "finished" else None,
    )


def runs_folder(output_dir: Path) -> Path:
    """Returns where runs lie below the output folder."""
    return output_dir / "atelier" / "runs"


def find_runs(output_dir: Path, key: str) -> list[RunInfo]:
    """Returns all runs with a key, the latest attempt last, whatever their names."""
    found: list[tuple[float, RunInfo]] = []
    for manifest_path in sorted(runs_folder(output_dir).glob(f"*-{key[:8]}*/{MANIFEST_FILE}")):
        try:
            info = open_run(manifest_path.parent)
        except AtelierError as damage:
            raise FormatError(
                f"The run folder {manifest_path.parent.name} cannot be read ({damage}); delete or rename it."
            ) from damage
        if info.key == key:
            found.append((float(info.manifest.get("attempt", 1)), info))
    return [info for _, info in sorted(found, key=lambda pair: pair[0])]


def new_run(output_dir: Path, *, name: str, key: str, manifest: Mapping[str, Any]) -> Path:
    """Makes a folder ``<name>-<key8>`` (``-2``, ``-3`` ... when taken) with the manifest, and returns it.

    The folder appears whole: a manifest is always in it.

    Raises:
        StorageError: the output folder cannot be written.
    """
    parent = runs_folder(output_dir)
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as cause:
        raise storage_error("make the folder", parent, cause) from cause
    attempt = 1
    while True:
        folder = parent / (f"{name}-{key[:8]}" if attempt == 1 else f"{name}-{key[:8]}-{attempt}")
        if not folder.exists():
            try:
                with atomic_path(folder) as temporary:
                    temporary.mkdir()
                    for inner in ("checkpoints", "plots", "samples"):
                        (temporary / inner).mkdir()
                    said = {**manifest, "key": key, "run_name": name, "attempt": attempt}
                    write_json(temporary / MANIFEST_FILE, said)
            except (OSError, StorageError):
                if not folder.exists():
                    raise  # else another process has just made the folder of that name
            else:
                return folder
        attempt += 1


class RunFolder:
    """The folder of the run that this process trains; made by ``held``."""

    def __init__(self, folder: Path) -> None:
        """Use ``held`` instead, which takes the lock."""
        self.folder = folder
        self.manifest: dict[str, Any] = read_json(folder / MANIFEST_FILE)

    @classmethod
    @contextmanager
    def held(cls, folder: Path) -> Iterator["RunFolder"]:
        """Locks the run for this process and clears away what a killed process left half written.

        Raises:
            StorageError: another process trains this run.
        """
        with locked(folder):
            remove_half_written(folder)
            yield cls(folder)

    def write_status(
        self, state: str, *, step: int, total_steps: int, seconds: float, reason: str = "", report: str = ""
    ) -> None:
        """Writes ``status.json``."""
        said = {
            "state": state,
            "step": step,
            "total_steps": total_steps,
            "seconds_training": round(seconds, 3),
            "reason": reason,
            "report": report,
            "updated": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        write_json(self.folder / STATUS_FILE, said)

    def cut_metrics(self, step: int) -> None:
        """Drops the rows after ``step``: those steps are done again."""
        rows = [row for row in _read_rows(self.folder / METRICS_FILE) if row["step"] <= step]
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(METRICS_COLUMNS)
        writer.writerows([_cell(name, row[name]) for name in METRICS_COLUMNS] for row in rows)
        write_text(self.folder / METRICS_FILE, text.getvalue())

    def append_metrics(self, rows: Sequence[tuple[Row, int]]) -> None:
        """Adds rows to ``metrics.csv``, each with the number of its stage.

        Raises:
            StorageError: the disk is full or cannot be written.
        """
        if not rows:
            return
        path = self.folder / METRICS_FILE
        try:
            with open(path, "a", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerows([_cell(name, value) for name, value in _columns(*row).items()] for row in rows)
        except OSError as cause:
            raise storage_error("write", path, cause) from cause

    def sync_metrics(self) -> None:
        """Makes sure that the rows so far outlast a power cut."""
        with open(self.folder / METRICS_FILE, "r+b") as file:
            os.fsync(file.fileno())

    def published(self) -> dict[str, str]:
        """Returns step -> file name below the loras folder of everything published."""
        path = self.folder / PUBLISHED_FILE
        return dict(read_json(path)) if path.is_file() else {}

    def publish(self, checkpoint: Checkpoint, loras_dir: Path, *, file_name: str) -> Path | None:
        """Puts a checkpoint's LoRA into ``<loras>/atelier/<run name>/`` and returns the place.

        Returns:
            The published file; None if the checkpoint has no LoRA.

        Raises:
            StorageError: the loras folder cannot be written.
        """
        if checkpoint.lora_path is None:
            return None
        name = str(self.manifest["run_name"])
        target = publish_file(checkpoint.lora_path, loras_dir / "atelier" / name, file_name)
        known = self.published()
        said = target.relative_to(loras_dir).as_posix()
        if known.get(str(checkpoint.step)) != said:
            write_json(self.folder / PUBLISHED_FILE, {**known, str(checkpoint.step): said})
        return target

    def withdraw(self, step: int, loras_dir: Path) -> None:
        """Removes the published file of a checkpoint that is not kept any longer.

        Raises:
            OSError: the file is held open by another program (Windows).
        """
        known = self.published()
        name = known.pop(str(step), None)
        if name is not None:
            (loras_dir / name).unlink(missing_ok=True)
            write_json(self.folder / PUBLISHED_FILE, known)


def publish_file(source: Path, folder: Path, name: str) -> Path:
    """Links or copies a LoRA to ``<folder>/<name>.safetensors`` and returns the place.

    A different file of that name is never touched (ComfyUI may have it mapped): a number is added to the name instead.

    Raises:
        StorageError: the folder cannot be written.
    """
    number = 1
    while True:
        target = folder / (f"{name}.safetensors" if number == 1 else f"{name}-{number}.safetensors")
        with suppress(FileExistsError):
            link_or_copy_new(source, target)
            return target
        if target.samefile(source) or sha256_file(target) == sha256_file(source):
            return target
        number += 1


def check_writable(folder: Path, what: str) -> None:
    """Writes and removes a small file, so that a folder that cannot be written is found before the work.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        with atomic_path(folder / ".atelier-write-test") as temporary:
            temporary.write_bytes(b"test")
        # Another process may test the same folder at this moment.
        (folder / ".atelier-write-test").unlink(missing_ok=True)
    except (OSError, StorageError) as cause:
        raise StorageError(
            f"The {what} folder {folder} cannot be written ({cause}); choose another folder or change its permissions."
        ) from cause


def _columns(row: Row, stage: int) -> dict[str, float]:
    return {
        "step": row.step,
        "epoch": row.epoch,
        "loss": row.loss,
        "lr_unet": _first_rate(row, "unet"),
        "lr_text_encoder": _first_rate(row, "text_encoder"),
        "grad_norm": row.grad_norm,
        "images_seen": row.images_seen,
        "seconds": row.seconds,
        "effective_lr": row.effective_lr,
        "stage": stage,
    }


def _first_rate(row: Row, part: str) -> float:
    """The rate of the part's own group; of its first one where every group has a factor."""
    rates = [rate for name, rate in row.lr.items() if name.partition(" ")[0] == part]
    return row.lr.get(part, rates[0] if rates else 0.0)


def _cell(name: str, value: float) -> str:
    if name in ("step", "epoch", "images_seen", "stage"):
        return str(int(value))
    return f"{value:.3f}" if name == "seconds" else repr(float(value))


def _read_rows(path: Path) -> list[dict[str, float]]:
    """Reads ``metrics.csv``; a last line that a killed process left unfinished is dropped."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1].replace("\0", "")
    rows: list[dict[str, float]] = []
    for cells in csv.DictReader(io.StringIO(whole)):
        try:
            # the last columns came later: before them, the rates were those that are set, and a run was one stage
            cells.setdefault("effective_lr", max(cells["lr_unet"], cells["lr_text_encoder"], key=float))
            cells.setdefault("stage", "1")
            rows.append({name: float(cells[name]) for name in METRICS_COLUMNS})
        except (KeyError, TypeError, ValueError):
            break  # a power cut can leave zeros at the end; those steps come after the last checkpoint
    return rows


def _checked_manifest(manifest: Any, path: Path) -> dict[str, Any]:
    missing = [
        key for key in ("key", "run_name", "total_steps") if not isinstance(manifest, dict) or key not in manifest
    ]
    if missing:
        raise FormatError(f"{path.name} of the run {path.parent.name} lacks {', '.join(missing)}; it is damaged.")
    return dict(manifest)
