"""A run as its stages: what each is trained with, where it begins, and one feed made of the feeds of all."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..core import seeds
from ..core.errors import InputError
from ..core.progress import Progress
from ..dataset.batches import BatchFacts, batch_facts, effective_repeats
from ..dataset.buckets import BucketAssignment
from ..dataset.table import Dataset
from .augmented import augment_warnings, latent_bytes, sized
from .config import Job, of_stage
from .feed import Feed
from .loop import update_shares
from .optimizers._adaptive_params import AdaptiveParams
from .optimizers._check import check_optimizer, course_of
from .optimizers._spec import Optimizer, OptimizerParams, Trained
from .schedules._spec import Course, Factor
from .stages import BEGIN_ANEW, THIS_STAGE, StageParams

PARTS = {"unet": "UNet", "text_encoder": "text encoder"}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run, checked; a run without stages is one stage.

    Attributes:
        number: from 1.
        job: the run's job with the pictures and settings of this stage; its steps are the stage's.
        first_step: steps of the run before it.
        pictures: what batches are made of: the job's pictures, several times where each is trained at several
            resolutions. Batches, buckets and latents count by this table.
        buckets: of its pictures.
        batch_facts: what the batches of an epoch are like.
        batches_per_update: micro-batches of one update; a mean where pictures are counted.
        lr_factors: by part, on the learning rate.
        begins_anew: whether the optimizer forgets what it knew when the stage begins.
        schedule_over: "whole run" or "this stage".
        course: what the schedule is made from.
    """

    number: int
    job: Job
    first_step: int
    pictures: Dataset
    buckets: BucketAssignment
    batch_facts: BatchFacts
    batches_per_update: float
    lr_factors: Mapping[str, float]
    begins_anew: bool
    schedule_over: str
    course: Course

    @property
    def steps(self) -> int:
        """Steps of the stage."""
        return self.job.params.steps

    @property
    def batches_per_epoch(self) -> int:
        """Batches of an epoch."""
        return self.batch_facts.batches

    @property
    def end_step(self) -> int:
        """Steps of the run when the stage is over."""
        return self.first_step + self.steps

    @property
    def epochs(self) -> float:
        """How often its pictures are gone through."""
        return self.steps * self.batches_per_update / self.batches_per_epoch

    @property
    def seed(self) -> int:
        """Seed of the order of its pictures; the first stage has the run's."""
        seed = self.job.params.seed
        return seed if self.number == 1 else seeds.derive(seed, "stage", self.number)

    def share(self, step: int, part: str, factor: Factor) -> float:
        """Returns the part of the base learning rate that is used in a step (of the run, from 0)."""
        start = self.first_step if self.schedule_over == THIS_STAGE else 0
        return factor(step - start, self.course) * self.lr_factors.get(part, 1.0)


def check_stages(
    job: Job, *, optimizer: Optimizer, optimizer_params: OptimizerParams, trained: Trained
) -> tuple[Stage, ...]:
    """Returns the stages of a job; of a job without stages, the one that it is.

    Raises:
        InputError: the steps do not add up, or a stage's pictures or settings do not fit; the message names the stage.
    """
    whole = course_of(optimizer_params, trained)
    stages: list[Stage] = []
    for number, own in enumerate(job.stage_jobs(), start=1):
        settings = job.stages[number - 1].params if job.stages else StageParams()
        first_step = stages[-1].end_step if stages else 0
        if not job.stages:
            stages.append(_stage(own, settings, whole, number=number, first_step=first_step))
            continue
        with of_stage(number):
            _check_settings(own, settings, optimizer_params, trained)
            course = whole
            if settings.schedule_over == THIS_STAGE:
                alone = Trained(unet=trained.unet, text_encoder=trained.text_encoder, steps=own.params.steps)
                check_optimizer(optimizer, optimizer_params, alone)
                course = course_of(optimizer_params, alone)
            stages.append(_stage(own, settings, course, number=number, first_step=first_step))
    return tuple(stages)


def _stage(job: Job, settings: StageParams, course: Course, *, number: int, first_step: int) -> Stage:
    if len(job.dataset) == 0 or bool(job.dataset.is_reg.all()):
        raise InputError("The data set holds no picture to train on; give a folder with pictures.")
    pictures, buckets = sized(job)
    facts = batch_facts(pictures, buckets, batch_size=job.params.batch_size, small=job.augment.small_batches)
    return Stage(
        number=number,
        job=job,
        first_step=first_step,
        pictures=pictures,
        buckets=buckets,
        batch_facts=facts,
        batches_per_update=_batches_per_update(job, facts),
        lr_factors={"unet": settings.unet_lr_factor, "text_encoder": settings.text_encoder_lr_factor},
        begins_anew=number > 1 and settings.optimizer_state == BEGIN_ANEW,
        schedule_over=settings.schedule_over,
        course=course,
    )


def _batches_per_update(job: Job, facts: BatchFacts) -> float:
    if job.params.accumulation_images == 0:
        return job.params.gradient_accumulation_steps
    return max(1.0, job.params.accumulation_images * facts.batches / facts.images)


def stage_warnings(stages: Sequence[Stage], *, train_text_encoder: bool) -> list[str]:
    """Returns what a person should know of pictures and batches before the run, each note once."""
    found: dict[str, None] = {}
    for stage in stages:
        shown = stage.epochs * int(effective_repeats(stage.job.dataset).max())
        _, cache_bytes = latent_bytes(stage.job.augment, stage.pictures, stage.buckets)
        notes = augment_warnings(
            stage.job,
            stage.batch_facts,
            shown=shown,
            cache_bytes=cache_bytes,
            train_text_encoder=train_text_encoder,
        )
        found.update(dict.fromkeys(notes))
    return list(found)


def _check_settings(job: Job, settings: StageParams, optimizer: OptimizerParams, trained: Trained) -> None:
    resolution, step_px = job.params.resolution_px, job.params.bucket_step_px
    if resolution % step_px:
        raise InputError(
            f"resolution_px is {resolution} and bucket_step_px is {step_px}: give a multiple of it, such as "
            f"{max(1, round(resolution / step_px)) * step_px}, or the pictures would be trained smaller."
        )
    is_trained = {"unet": trained.unet, "text_encoder": trained.text_encoder}
    factors = {"unet": settings.unet_lr_factor, "text_encoder": settings.text_encoder_lr_factor}
    for part, factor in factors.items():
        if not is_trained[part] and factor != 1.0:
            raise InputError(
                f"{part}_lr_factor is {factor:g}, but the {PARTS[part]} is not trained: leave it 1, or train that part."
            )
    used = {part: factor for part, factor in factors.items() if is_trained[part]}
    if all(factor == 0.0 for factor in used.values()):
        names = " and ".join(f"{part}_lr_factor" for part in used)
        raise InputError(f"{names} {'is' if len(used) == 1 else 'are both'} 0: nothing would be trained; raise one.")
    if isinstance(optimizer, AdaptiveParams) and len(set(used.values())) > 1:
        raise InputError(
            f"unet_lr_factor is {settings.unet_lr_factor:g} and text_encoder_lr_factor is "
            f"{settings.text_encoder_lr_factor:g}, but the optimizer finds one step size for everything: give both one "
            "value."
        )


class StagedFeed:
    """The feeds of all stages, one after the other; see ``loop.MicroBatches``.

    Only the feed of the stage that is trained is held: a feed whose stage is over lets go of what it keeps.
    """

    def __init__(self, feeds: Sequence[Feed], starts: Sequence[int]) -> None:
        """Joins feeds.

        Args:
            feeds: of the stages, at least one.
            starts: the first batch of each in the run; the first is 0.
        """
        self.feeds, self.starts = tuple(feeds), tuple(starts)
        self._place = 0

    def place(self, index: int) -> tuple[int, int]:
        """Returns (place of the stage from 0, batch of the stage) of a batch of the run."""
        place = bisect_right(self.starts, index) - 1
        return place, index - self.starts[place]

    def free(self) -> None:
        """Lets go of what the feeds keep."""
        for feed in self.feeds:
            feed.free()

    def _of(self, index: int) -> tuple[Feed, int]:
        place, own = self.place(index)
        for over in range(self._place, place):
            self.feeds[over].free()
        self._place = max(self._place, place)
        return self.feeds[place], own

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        """Returns the latents of the batch; see ``Feed``, as for all that follows."""
        feed, own = self._of(index)
        return feed.latents(own, seed=seed, step=step, micro=micro)

    def text(self, index: int, *, seed: int, step: int, micro: int) -> Any:
        """Returns the text states of the batch."""
        feed, own = self._of(index)
        return feed.text(own, seed=seed, step=step, micro=micro)

    def weights(self, index: int) -> torch.Tensor | None:
        """Returns the loss weights of the batch."""
        feed, own = self._of(index)
        return feed.weights(own)

    def mask(self, index: int) -> torch.Tensor | None:
        """Returns the mask of the batch."""
        feed, own = self._of(index)
        return feed.mask(own)

    def regularisation(self, index: int) -> list[int]:
        """Returns which pictures of the batch are for regularisation."""
        feed, own = self._of(index)
        return feed.regularisation(own)

    def conditioning(self, index: int) -> Any:
        """Returns what is told of the batch beside the text."""
        feed, own = self._of(index)
        return feed.conditioning(own)

    def num_images(self, index: int) -> int:
        """Returns the number of pictures of the batch."""
        place, own = self.place(index)
        return self.feeds[place].num_images(own)

    def epoch(self, index: int) -> int:
        """Returns the epoch of the batch; the epochs of the stages are counted on, begun ones as whole."""
        place, own = self.place(index)
        return sum(self._epochs_until(over) for over in range(place)) + self.feeds[place].epoch(own)

    def epochs_done(self, batches: int) -> int:
        """Returns how many epochs have been begun after some batches of the run."""
        return self.epoch(batches - 1) + 1 if batches > 0 else 0

    def _epochs_until(self, place: int) -> int:
        batches = self.starts[place + 1] - self.starts[place]
        return -(-batches // self.feeds[place].batches_per_epoch)


def joined(
    stages: Sequence[Stage], feeds: Sequence[Feed], *, accumulation_steps: int, accumulation_images: int
) -> StagedFeed:
    """Returns the feed of a run; for the other two see ``loop.update_shares``.

    Where an update is counted in pictures, its batches depend on their sizes, and only a count of all updates tells
    where the next stage begins.
    """
    starts = [0]
    for stage, feed in zip(stages[:-1], feeds[:-1], strict=True):
        batches = stage.steps * accumulation_steps
        if accumulation_images > 0:
            batches = 0
            for _ in range(stage.steps):
                batches += len(update_shares(feed, batches, steps=1, images=accumulation_images))
        starts.append(starts[-1] + batches)
    return StagedFeed(feeds, starts)


class StageProgress:
    """Says which stage is trained, before what the training says."""

    def __init__(self, progress: Progress, stages: Sequence[Stage]) -> None:
        """Speaks to ``progress``."""
        self._progress, self._stages = progress, stages

    def check(self) -> None:
        """Checks."""
        self._progress.check()

    def update(self, done: int, total: int, text: str = "") -> None:
        """Reports; the stage is that of the step that comes next."""
        stage = stage_at(self._stages, done)
        self._progress.update(done, total, f"stage {stage.number} of {len(self._stages)}, {text}".rstrip(", "))

    def status(self, text: str) -> None:
        """Shows a line."""
        self._progress.status(text)

    def preview(self, image: Any) -> None:
        """Shows a picture."""
        self._progress.preview(image)


def stage_at(stages: Sequence[Stage], step: int) -> Stage:
    """Returns the stage of a step of the run, counted from 0; the last one for all that come after."""
    place = bisect_right([stage.first_step for stage in stages], step) - 1
    return stages[place]
