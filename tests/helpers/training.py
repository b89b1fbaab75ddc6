"""A tiny job on the real family: drawn pictures, a random base of tiny sizes."""

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from lora_atelier.core.params import Choice
from lora_atelier.core.progress import Cancelled, SilentProgress
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import open_base
from lora_atelier.networks.lora import LoraParams
from lora_atelier.trainer.config import Job, TrainParams
from lora_atelier.trainer.objectives.epsilon import EpsilonParams
from lora_atelier.trainer.optimizers._spec import find_optimizer

PICO = Path(__file__).resolve().parents[2] / "pico" / "assets" / "pico-base.safetensors"


class CancelTraining(SilentProgress):
    """Cancels at the n-th check after the training itself has begun."""

    def __init__(self, output_dir: Path, num_checks: int, error: BaseException | None = None) -> None:
        self.runs = output_dir / "atelier" / "runs"
        self.num_checks = num_checks
        self.error = error if error is not None else Cancelled("cancelled by the test")

    def check(self) -> None:
        if any(self.runs.glob("*/status.json")):
            self.num_checks -= 1
            if self.num_checks <= 0:
                raise self.error


WHOLE: dict[str, Any] = {"steps": 7, "save_every_steps": 3, "gradient_accumulation_steps": 2}
"""The settings of the run that interrupted runs are compared with."""


def draw_pictures(folder: Path, *, count: int = 5) -> Path:
    """Writes a kohya data set: ``2_ring`` with pictures of two shapes, captions with tags."""
    inner = folder / "2_ring"
    inner.mkdir(parents=True)
    for number in range(count):
        size = (64, 64) if number % 2 else (80, 48)
        image = Image.new("RGB", size, ("white", "pink", "grey")[number % 3])
        ImageDraw.Draw(image).ellipse((8 + number, 8, 40 + number, 40), outline=("red", "blue")[number % 2], width=6)
        image.save(inner / f"{number:02d}.png")
        (inner / f"{number:02d}.txt").write_text(f"lumo kest, ring, tag{number}", encoding="utf-8")
    return folder


def open_pictures(folder: Path, *, reg_folder: Path | None = None, **options: Any) -> Dataset:
    return open_folder(folder, DatasetParams(**options), reg_folder=reg_folder)


def make_job(
    dataset: Dataset,
    *,
    base: Path,
    blocks: str = "",
    rank: int = 2,
    optimizer: dict[str, Any] | None = None,
    optimizer_name: str = "adamw",
    objective: dict[str, Any] | None = None,
    **train: Any,
) -> Job:
    """A job of a few steps at 64 px; ``train`` changes TrainParams."""
    settings = {
        "run_name": "tiny",
        "save_dtype": "fp16",
        "steps": 4,
        "batch_size": 2,
        "resolution_px": 64,
        "bucket_step_px": 8,
        "bucket_min_px": 32,
        "bucket_max_px": 128,
        "seed": 7,
        **train,
    }
    rates = {"lr_unet": 1e-3, "lr_text_encoder": 1e-3} if optimizer_name == "adamw" else {}
    optimizer_params = find_optimizer(optimizer_name).params(**{**rates, **(optimizer or {})})
    return Job(
        base=open_base(base, name=base.name),
        dataset=dataset,
        params=TrainParams(**settings),
        network=Choice(kind="network", name="lora", params=LoraParams(rank=rank, alpha=float(rank))),
        optimizer=Choice(kind="optimizer", name=optimizer_name, params=optimizer_params),
        objective=Choice(kind="objective", name="epsilon", params=EpsilonParams(**(objective or {}))),
        blocks=blocks,
    )


def places(folder: Path) -> dict[str, Path]:
    """The three folders of a host."""
    found = {name: folder / name.removesuffix("_dir") for name in ("output_dir", "loras_dir", "cache_dir")}
    for path in found.values():
        path.mkdir(parents=True, exist_ok=True)
    return found
