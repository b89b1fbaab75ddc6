"""The ground the experiments stand on: one base, one tagger, one detector, short trainings, generated pictures."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from lora_atelier.core.params import Choice
from lora_atelier.core.tensors import read_tensors
from lora_atelier.dataset.detect import Detector, open_detector
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset
from lora_atelier.families._base import Base, open_base
from lora_atelier.networks.lora import LoraParams
from lora_atelier.nodes.host import PICO_NAME, set_host
from lora_atelier.nodes.host.local import LocalHost
from lora_atelier.pico.generate import tensor_to_pictures
from lora_atelier.pico.judge import BASE_FILE, DETECTOR_FILE, TAGGER_FOLDER, Judge
from lora_atelier.pico.sheets import labelled_sheet
from lora_atelier.tagger.picking import PickParams
from lora_atelier.tagger.recipe import run_recipe
from lora_atelier.tagger.runner import Tagger, open_tagger
from lora_atelier.tagger.steps._spec import StepContext
from lora_atelier.tagger.tag import tag_dataset
from lora_atelier.trainer.checkpoints import list_checkpoints
from lora_atelier.trainer.config import Job, TrainParams
from lora_atelier.trainer.objectives.epsilon import EpsilonParams
from lora_atelier.trainer.optimizers._spec import find_optimizer
from lora_atelier.trainer.train import train_lora

STRENGTH = 1.35
"""As in the quickstart: a short training is put on a third stronger."""
SIDE_PX = 96
DRAWN_AT_ONCE = 16
SAMPLING: dict[str, Any] = {"steps": 12, "cfg": 3.0, "sampler": "euler", "scheduler": "normal", "denoise": 1.0}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a training is set up; as it stands, with the settings of the quickstart.

    Attributes:
        alpha: Of a LoRA of rank 16.
        optimizer: The optimizer's name.
        settings: The optimizer's own.
        blocks: Which are trained.
        train: Settings of the run that differ from the ones all have.
    """

    alpha: float = 16.0
    optimizer: str = "adamw"
    settings: Mapping[str, Any] = field(
        default_factory=lambda: {
            "lr_unet": 4e-3, "lr_text_encoder": 3e-3, "schedule": "cosine", "warmup_steps": 20, "beta2": 0.99,
            "weight_decay": 0.01,
        }
    )  # fmt: skip
    blocks: str = ""
    train: Mapping[str, Any] = field(default_factory=dict)

    def optimizer_choice(self) -> Choice:
        """The optimizer with its settings."""
        params = find_optimizer(self.optimizer).params(**self.settings)
        return Choice(kind="optimizer", name=self.optimizer, params=params)


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A finished training.

    Attributes:
        lora: The LoRA file.
        checkpoints: The LoRA of every kept checkpoint by its step, the last one included.
        seconds: Of the training loop, as the run counted them.
        loss: Mean of the last hundred steps.
        losses: Of every step.
        report: What the pack said of it.
    """

    lora: Path
    checkpoints: Mapping[int, Path]
    seconds: float
    loss: float
    losses: Sequence[float]
    report: str


QUICKSTART = Recipe()


@dataclass
class World:
    """Folders and models that all experiments share; nothing is trained or drawn twice.

    Attributes:
        folder: Working directory, laid out as the local host has it.
    """

    folder: Path
    _painted: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    @cached_property
    def host(self) -> LocalHost:
        """The local host, which is made the process's host."""
        host = LocalHost(self.folder)
        set_host(host)
        return host

    @cached_property
    def base(self) -> Base:
        """The tiny base."""
        return open_base(BASE_FILE, name=PICO_NAME)

    @cached_property
    def tagger(self) -> Tagger:
        """The tiny tagger as the pack runs it."""
        return open_tagger(TAGGER_FOLDER, threads=1)

    @cached_property
    def judge(self) -> Judge:
        """The same tagger as the judge of generated pictures."""
        return Judge()

    @cached_property
    def detector(self) -> Detector:
        """The tiny detector."""
        return open_detector(DETECTOR_FILE, threads=1)

    @cached_property
    def _models(self) -> tuple[Any, Any, Any]:
        return self.host.load_base(self.base)

    def data_folder(self, name: str) -> Path:
        """Where drawn pictures of this name lie."""
        return self.folder / "datasets" / name

    def open(self, folder: Path, *, keep_tokens: int = 1) -> Dataset:
        """A drawn folder as a data set; its first tags, such as the trigger, are kept in front."""
        return open_folder(folder, DatasetParams(keep_tokens=keep_tokens), index=self.host.index())

    def tagged(self, dataset: Dataset, mode: str) -> Dataset:
        """The data set with the tagger's tags, blanks for underscores."""
        params = PickParams()
        result = tag_dataset(dataset, self.tagger, self.host.index(), params=params, mode=mode, workers=1)
        return self.steps(result.dataset, "normalise")

    def steps(self, dataset: Dataset, recipe: str) -> Dataset:
        """The data set after a recipe of tag steps."""
        return run_recipe(dataset, recipe, StepContext())[0]

    def job(self, dataset: Dataset, recipe: Recipe, *, name: str, seed: int, steps: int, **train: Any) -> Job:
        """A training of the tiny base with small batches."""
        common = {
            "batch_size": 4, "resolution_px": SIDE_PX, "save_every_steps": 100, "keep_last": 1,
            "bucket_step_px": 8, "bucket_min_px": 32, "bucket_max_px": 128,
        }  # fmt: skip
        return Job(
            base=self.base,
            dataset=dataset,
            params=TrainParams(**{**common, **train, **recipe.train, "run_name": name, "steps": steps, "seed": seed}),
            network=Choice(kind="network", name="lora", params=LoraParams(rank=16, alpha=recipe.alpha)),
            optimizer=recipe.optimizer_choice(),
            objective=Choice(kind="objective", name="epsilon", params=EpsilonParams()),
            blocks=recipe.blocks,
        )

    def train(
        self, dataset: Dataset, *, name: str, seed: int, steps: int, recipe: Recipe = QUICKSTART, **train: Any
    ) -> Trained:
        """Trains a LoRA, goes on with one that was stopped, or finds the one trained before.

        Args:
            dataset: The pictures.
            name: Of the run.
            seed: Of the run.
            steps: Of the run.
            recipe: How it is set up.
            train: More settings of the run, such as how often a checkpoint is kept.
        """
        started = time.monotonic()
        result = train_lora(
            self.job(dataset, recipe, name=name, seed=seed, steps=steps, **train),
            output_dir=self.host.output_dir(),
            loras_dir=self.host.loras_dir(),
            cache_dir=self.host.cache_dir(),
            index=self.host.index(),
        )
        last = result.losses[-100:]
        points = list_checkpoints(result.run.folder)
        return Trained(
            lora=result.lora_path,
            checkpoints={point.step: point.lora_path for point in points if point.lora_path is not None},
            seconds=max(result.seconds_training, 0.0) or time.monotonic() - started,
            loss=sum(last) / len(last),
            losses=result.losses,
            report=result.report,
        )

    def draw(
        self, lora: Path | None, prompts: Sequence[str], *, first_seed: int, strength: float = STRENGTH, **sampling: Any
    ) -> list[Image.Image]:
        """One picture per prompt with the LoRA on; noise is drawn for many at once from one seed.

        Args:
            lora: The file; None draws with the base alone.
            prompts: One per picture.
            first_seed: Decides the noise.
            strength: Of the LoRA.
            sampling: What differs from how pictures are drawn otherwise, such as fewer steps.
        """
        model, clip, vae = self._models
        if lora is not None:
            model, clip = self.host.apply_lora(
                model, clip, read_tensors(lora), strength_model=strength, strength_clip=strength, stem_strengths={}
            )
        negative = self.host.encode_prompt(clip, "")
        pictures: list[Image.Image] = []
        for start in range(0, len(prompts), DRAWN_AT_ONCE):
            some = prompts[start : start + DRAWN_AT_ONCE]
            encoded = [self.host.encode_prompt(clip, prompt) for prompt in some]
            said = [[torch.cat([one[0][0] for one in encoded]), {}]]
            latent = {"samples": torch.zeros(len(some), 4, SIDE_PX // 8, SIDE_PX // 8)}
            drawn = self.host.sample_latent(
                model, said, negative, latent, seed=first_seed + start, **{**SAMPLING, **sampling}
            )
            pixels = self.host.decode(vae, drawn).permute(0, 3, 1, 2) * 2 - 1
            pictures += tensor_to_pictures(pixels)
        return pictures

    def keep_sheet(self, name: str, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> None:
        """Keeps pictures with their prompts, for looking at them."""
        path = self.folder.parent / "sheets" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        labelled_sheet(pictures, list(prompts)).save(path)
