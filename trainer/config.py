"""What a training run is asked to do: its settings, and the job that binds them to a base and a data set."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import InputError
from ..core.files import safe_name
from ..core.params import Choice, Params, param, same_as
from ..dataset.table import Dataset
from ..dataset.tiers import BucketParams
from ..families._base import Base
from ..families._checkpointing import ALL, RECOMPUTED
from ..families._spec import TextOptions, get_family
from ..networks._targeting import parse_targeting
from .augment import AugmentParams
from .caption_params import CaptionParams, check_whole, steps_of
from .names import NOT_IN_KEY, composed_name, differences
from .stages import TrainStage, stage_steps
from .starting import StartLora

NUMERICS_VERSION = 1
"""Raised when a change to the code changes the numbers of a run; runs of different versions never share a key."""

DTYPES = ("fp32", "fp16", "bf16")
MODES = ("resume", "reuse", "restart")

FIRST_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "train": (
        "steps",
        "batch_size",
        "resolution_px",
        "seed",
        "train_unet",
        "train_text_encoder",
        "precision",
        "save_dtype",
        "clip_skip",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "max_grad_norm",
        "prior_loss_weight",
        "bucket_step_px",
        "bucket_min_px",
        "bucket_max_px",
        "upscale",
    ),
    "network lora": ("rank", "alpha", "dropout"),
    "optimizer adamw": (
        "lr_unet",
        "lr_text_encoder",
        "schedule",
        "warmup_steps",
        "cycles",
        "beta1",
        "beta2",
        "weight_decay",
        "epsilon",
    ),
    "objective epsilon": ("noise_offset", "min_timestep", "max_timestep"),
    "stage": (
        "steps",
        "resolution_px",
        "batch_size",
        "unet_lr_factor",
        "text_encoder_lr_factor",
        "optimizer_state",
        "schedule_over",
    ),
}
"""Settings that are always part of a run's key. All that came later are part of it where they differ from their
defaults, so that the keys of old runs stay what they were; a default is therefore never changed."""


@dataclass(frozen=True, kw_only=True)
class TrainParams(Params):
    """The settings of a training run."""

    run_name: str = param(
        "",
        doc="Name of the run's folder and of the LoRA files. Left empty it is made from the data set's name and from "
        "what differs from the defaults.",
    )
    steps: int = param(
        1000, doc="Updates of the weights in the whole run.", unit="steps", minimum=1, maximum=10_000_000, step=1
    )
    batch_size: int = same_as(BucketParams, "batch_size")
    resolution_px: int = same_as(BucketParams, "resolution_px")
    seed: int = param(0, doc="Decides every random number of the run.", minimum=0, maximum=2**53, step=1)
    train_unet: bool = param(True, doc="Train modules of the UNet.")
    train_text_encoder: bool = param(True, doc="Train modules of the text encoder.")
    precision: str = param(
        "fp32",
        doc="Number format of the frozen weights and of the computation; what is trained is kept in fp32 unless "
        "trained_dtype says otherwise.",
        choices=DTYPES,
    )
    mode: str = param(
        "resume",
        doc="What happens when this very run exists. resume: a finished one is returned at once, an interrupted one "
        "continues. reuse: a finished one is returned at once, an interrupted one is left and begun anew. restart: "
        "always begun anew, in a folder of its own.",
        choices=MODES,
    )
    save_every_steps: int = param(
        0, doc="Keep a checkpoint every so many steps; 0 is off.", unit="steps", minimum=0, maximum=10_000_000, step=1
    )
    save_every_epochs: int = param(
        0, doc="Keep a checkpoint every so many epochs; 0 is off.", unit="epochs", minimum=0, maximum=1_000_000, step=1
    )
    keep_last: int = param(
        0, doc="How many of these checkpoints are kept; 0 keeps all.", minimum=0, maximum=100_000, step=1
    )
    save_dtype: str = param("fp16", doc="Number format of the LoRA files.", choices=DTYPES)
    clip_skip: int = param(
        1,
        doc="Which layer of the text encoder is used, counted from the last (1). Illustration models often use 2.",
        minimum=1,
        maximum=12,
        step=1,
    )
    gradient_accumulation_steps: int = param(
        1,
        doc="Batches whose mean gradient makes one update: a larger batch for the memory of a small one.",
        minimum=1,
        maximum=1024,
        step=1,
    )
    gradient_checkpointing: bool = param(
        False, doc="Compute the forward pass again in the backward pass: less memory, about 20 % more time."
    )
    max_grad_norm: float = param(
        1.0,
        doc="Gradients longer than this are shortened to it; 0 is off.",
        minimum=0.0,
        maximum=1000.0,
        step=0.1,
        advanced=True,
    )
    prior_loss_weight: float = param(
        1.0, doc="Weight of the loss of regularisation pictures.", minimum=0.0, maximum=10.0, step=0.1, advanced=True
    )
    bucket_step_px: int = same_as(BucketParams, "bucket_step_px")
    bucket_min_px: int = same_as(BucketParams, "bucket_min_px")
    bucket_max_px: int = same_as(BucketParams, "bucket_max_px")
    upscale: bool = same_as(BucketParams, "upscale")

    accumulation_images: int = param(
        0,
        doc="Pictures whose mean gradient makes one update, however they fall into batches; 0 counts batches instead.",
        unit="images",
        minimum=0,
        maximum=100_000,
        step=1,
        advanced=True,
    )
    ema_decay: float = param(
        0.0,
        doc="Save a moving average of the weights instead of the last ones: 0.99 to 0.9999, nearer to 1 for longer "
        "runs; 0 is off.",
        minimum=0.0,
        maximum=0.99999,
        step=0.001,
        advanced=True,
    )
    trained_dtype: str = param(
        "fp32",
        doc="Number format of what is trained. fp16 learns nothing, bf16 loses small updates in long runs; bf16 "
        "needs stochastic_rounding.",
        choices=DTYPES,
        advanced=True,
    )
    stochastic_rounding: bool = param(
        False,
        doc="With the trained_dtype bf16: round up or down by chance, so that small updates are not lost.",
        advanced=True,
    )
    fp8_base: bool = param(
        False,
        doc="Keep the frozen UNet's weights in 8 bits, half of what fp16 and bf16 take; they are cast where they are "
        "used. For SDXL on cards with little memory; needs a device with float8.",
        advanced=True,
    )
    clip_skip_2: int = param(
        0,
        doc="Layer of a second text encoder (SDXL has one), counted as clip_skip; 0 takes clip_skip.",
        minimum=0,
        maximum=32,
        step=1,
        advanced=True,
    )
    text_encoder_stop: float = param(
        0.0,
        doc="Step after which the text encoder stays as it is, which makes the rest faster; below 1 it is a share of "
        "the run's steps. 0 trains it to the end.",
        unit="steps",
        minimum=0.0,
        maximum=10_000_000.0,
        step=0.05,
        advanced=True,
    )
    unmasked_weight: float = param(
        0.0,
        doc="What the black of masks counts in the loss, 0 to 1. White counts 1, pictures without a mask count 1 "
        "everywhere.",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
        advanced=True,
    )
    normalize_masks: bool = param(
        False,
        doc="Divide each picture's loss by the mean of its mask, so that small subjects count as much as large ones.",
        advanced=True,
    )
    prior_preservation: bool = param(
        False,
        doc="Regularisation pictures keep what the base model itself answers to them, instead of being learned: one "
        "more forward pass for the batches they are in. Off: they are learned like others, as kohya's scripts do.",
        advanced=True,
    )
    recomputed: str = param(
        ALL,
        doc="With gradient_checkpointing, what is computed again: less of it is faster and takes more memory. "
        "transformers: attention and feed-forward, not the convolutions. outer levels: those with the largest "
        "pictures. inner levels: the others, where SDXL has most of its layers.",
        choices=RECOMPUTED,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Checks the rules that join several fields."""
        super().__post_init__()
        check_whole("text_encoder_stop", self.text_encoder_stop)
        if not (self.train_unet or self.train_text_encoder):
            raise InputError("train_unet and train_text_encoder are both off: switch at least one of them on.")
        if self.bucket_min_px > self.bucket_max_px:
            raise InputError(
                f"bucket_min_px is {self.bucket_min_px} and bucket_max_px is {self.bucket_max_px}: the shortest side "
                "must not be longer than the longest."
            )
        if self.bucket_step_px % 8:
            raise InputError(f"bucket_step_px is {self.bucket_step_px}: it must be a multiple of 8, such as 64.")
        if self.recomputed != ALL and not self.gradient_checkpointing:
            raise InputError(
                f"recomputed is {self.recomputed!r}, but gradient_checkpointing is off: switch it on, or leave "
                f"recomputed at {ALL!r}."
            )
        self._check_accumulation()
        self._check_trained_dtype()

    def _check_accumulation(self) -> None:
        images, steps = self.accumulation_images, self.gradient_accumulation_steps
        if images > 0 and steps > 1:
            raise InputError(
                f"accumulation_images is {images} and gradient_accumulation_steps is {steps}: count in pictures or in "
                "batches; set accumulation_images to 0 or gradient_accumulation_steps to 1."
            )
        if 0 < images < self.batch_size:
            raise InputError(
                f"accumulation_images is {images} and batch_size is {self.batch_size}: an update has at least one "
                "batch; lower batch_size, or set accumulation_images to 0."
            )

    def _check_trained_dtype(self) -> None:
        if self.trained_dtype not in ("fp32", self.precision):
            raise InputError(
                f"trained_dtype is {self.trained_dtype} and precision is {self.precision}: what is trained must be "
                f"fp32 or have the precision of the computation; set precision to {self.trained_dtype}."
            )
        if self.stochastic_rounding and self.trained_dtype != "bf16":
            raise InputError(
                f"stochastic_rounding is on and trained_dtype is {self.trained_dtype}: it is for bf16; choose "
                "trained_dtype bf16, or switch it off."
            )


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything that decides a run.

    Attributes:
        base: the model that is trained on.
        dataset: the pictures.
        params: the run's settings.
        network: which adapter, with its settings.
        optimizer: which optimizer, with its settings.
        objective: which objective, with its settings.
        blocks: which blocks are trained, such as "IN04-07,OUT03-06"; empty is all of them.
        parent: key and step of the run that is continued, "" for a run of its own.
        start: the LoRA file whose values the adapter begins with, None for fresh ones.
        stages: what comes one after the other; empty for a run that is the same from its first step to its last.
        augment: variants, caches, sizes and small batches.
        captions: how captions are read.
    """

    base: Base
    dataset: Dataset
    params: TrainParams
    network: Choice
    optimizer: Choice
    objective: Choice
    blocks: str = ""
    parent: str = ""
    start: StartLora | None = None
    stages: tuple[TrainStage, ...] = ()
    augment: AugmentParams = AugmentParams()
    captions: CaptionParams = CaptionParams()

    def config(self) -> dict[str, Any]:
        """Returns all settings as plain JSON values."""
        return {
            "train": self.params.to_json(),
            "network": self.network.to_json(),
            "optimizer": self.optimizer.to_json(),
            "objective": self.objective.to_json(),
            "blocks": self.blocks,
            "parent": self.parent,
            **({} if self.start is None else {"start": self.start.sha256}),
            **({"stages": self._stages_config()} if self.stages else {}),
            **({"augment": self.augment.to_json()} if differences(self.augment) else {}),
            **({"captions": self.captions.to_json()} if differences(self.captions) else {}),
        }

    def stage_jobs(self) -> list["Job"]:
        """Returns the run as one job for each of its stages, with the stage's pictures and settings; at least one.

        Raises:
            InputError: the stages' steps do not add up, or a stage's settings do not fit the run's.
        """
        if not self.stages:
            return [self]
        jobs, all_steps = [], stage_steps(self.stages, self.params.steps)
        for number, (stage, steps) in enumerate(zip(self.stages, all_steps, strict=True), start=1):
            given = {name: getattr(stage.params, name) or None for name in ("resolution_px", "batch_size")}
            changes = {name: value for name, value in given.items() if value is not None}
            with of_stage(number):
                params = replace(self.params, steps=steps, **changes)
            dataset = self.dataset if stage.dataset is None else stage.dataset  # an empty one is false, too
            jobs.append(replace(self, dataset=dataset, params=params, stages=()))
        return jobs

    def _stages_config(self) -> list[dict[str, Any]]:
        """The settings of the stages as they are used: 0 is said as what it stands for."""
        return [
            {
                **stage.params.to_json(),
                "steps": job.params.steps,
                "resolution_px": job.params.resolution_px,
                "batch_size": job.params.batch_size,
            }
            for stage, job in zip(self.stages, self.stage_jobs(), strict=True)
        ]

    def key(self, *, base_hash: str, data_hash: str) -> str:
        """Returns the run's key: 64 hexadecimal digits over all that decides the numbers.

        Args:
            base_hash: of the base model.
            data_hash: of the pictures, those of all stages.
        """
        config = self.config()
        config["train"] = _keyed(self.params, "train")
        for kind, choice in (("network", self.network), ("optimizer", self.optimizer), ("objective", self.objective)):
            config[kind] = {**choice.to_json(), "params": _keyed(choice.params, f"{kind} {choice.name}")}
        for stage, settings in zip(self.stages, config.get("stages", ()), strict=True):
            for name in settings.keys() - _keyed(stage.params, "stage").keys():
                del settings[name]
        if "augment" in config:
            config["augment"] = _keyed(self.augment, "augment")
        if "captions" in config:
            config["captions"] = _keyed(self.captions, "captions")
        config["blocks"] = parse_targeting(self.blocks, get_family(self.base.family).blocks).canonical()
        said = {"config": config, "base": base_hash, "data": data_hash, "numerics": NUMERICS_VERSION}
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8")).hexdigest()

    def text_options(self) -> TextOptions:
        """Returns how captions are read."""
        return TextOptions(
            clip_skip=self.params.clip_skip,
            clip_skip_2=self.params.clip_skip_2,
            max_tokens=self.captions.max_tokens,
            long_captions=self.captions.long_captions,
            weighted=self.captions.weighted_captions,
        )

    def text_encoder_stop_step(self) -> int | None:
        """Returns after how many steps the text encoder stays as it is; None for never."""
        stop = self.params.text_encoder_stop
        return None if stop == 0.0 else steps_of(stop, self.params.steps)

    def run_name(self) -> str:
        """Returns the run's name, made from what differs from the defaults when none was given."""
        return safe_name(self.params.run_name.strip() or composed_name(self), max_chars=60)

    def with_params(self, **changes: Any) -> "Job":
        """Returns the job with some of the run's settings changed."""
        return replace(self, params=replace(self.params, **changes))


@contextmanager
def of_stage(number: int) -> Iterator[None]:
    """Puts the number of a stage before what is refused inside."""
    try:
        yield
    except InputError as refusal:
        raise InputError(f"Stage {number}: {refusal}") from refusal


def _keyed(params: Params, owner: str) -> dict[str, Any]:
    """Returns the settings that are part of a run's key."""
    always, given = FIRST_SETTINGS.get(owner, ()), differences(params)
    return {
        name: value
        for name, value in params.to_json().items()
        if name not in NOT_IN_KEY and (name in always or name in given)
    }
