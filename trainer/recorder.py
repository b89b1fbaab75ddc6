"""Writes a run down while it is trained: metrics, checkpoints, published LoRAs, what is no longer kept."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.errors import StorageError, TrainingError
from ..core.files import storage_error
from ..core.progress import Progress
from ..networks._attach import AdapterSet
from .average import MovingAverage, shown_weights
from .checkpoints import Checkpoint, State, list_checkpoints, remove_checkpoint, save_checkpoint
from .export import LoraFileReport, check_finite, save_lora, untaught_part
from .loop import Row, Standing
from .metadata import step_metadata
from .plan import Plan
from .precision import Precision
from .run import RunFolder
from .staged import stage_at
from .weights import AdapterWeights


@dataclass(kw_only=True)
class RunRecorder:
    """The recorder of one stretch of training; see ``loop.Recorder``.

    Attributes:
        run: the run's folder.
        plan: of the run.
        adapter: what is trained.
        optimizer: its state is saved with the adapter.
        precision: its state, too.
        metadata: what all LoRA files of the run say.
        accepted_stems: the module names that ComfyUI's loader knows.
        loras_dir: where LoRAs are published.
        progress: is told of what was saved.
        weights: the adapter's parameters as the optimizer sees them.
        epochs_done: batches of the run -> epochs begun.
        average: a moving average of the adapter, saved with it and shown instead of it; or None.
        losses: of all steps so far.
        report: of the last LoRA file.
        published_path: of the last LoRA file.
    """

    run: RunFolder
    plan: Plan
    adapter: AdapterSet
    optimizer: torch.optim.Optimizer
    precision: Precision
    metadata: Mapping[str, str]
    accepted_stems: Collection[str]
    loras_dir: Path
    progress: Progress
    weights: AdapterWeights
    epochs_done: Callable[[int], int]
    average: MovingAverage | None = None
    losses: list[float] = field(default_factory=list)
    report: LoraFileReport | None = None
    published_path: Path | None = None
    cancelled: bool = False

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return self.plan.checked.job.params.steps

    def rows(self, rows: Sequence[Row]) -> None:
        """Adds rows to ``metrics.csv``."""
        stages = self.plan.checked.stages
        self.run.append_metrics([(row, stage_at(stages, row.step - 1).number) for row in rows])
        self.losses.extend(row.loss for row in rows)

    def save(self, standing: Standing, *, kept: bool) -> None:
        """Saves a checkpoint; one that is kept gets a LoRA, which is published.

        Raises:
            TrainingError: the adapter is not finite or learned nothing.
            StorageError: the disk is full or cannot be written; older checkpoints are as they were.
        """
        step, old = standing.step, list_checkpoints(self.run.folder)
        if any(point.step == step and (point.lora_path is not None or not kept) for point in old):
            return
        with_lora = kept and not self._nothing_yet(step)
        self.run.sync_metrics()
        facts = {
            "seconds": standing.seconds,
            "images_seen": standing.images_seen,
            "batches_done": standing.batches_done,
            "key": self.run.manifest["key"],
        }
        state = State(
            adapter=self.adapter.state(),
            optimizer=self.optimizer.state_dict(),
            precision=self.precision.state(),
            average=self.average.state() if self.average is not None else {},
        )
        try:
            checkpoint = save_checkpoint(
                self.run.folder,
                step=step,
                kept=kept,
                facts=facts,
                state=state,
                write_lora=self._lora_writer(standing) if with_lora else None,
            )
        except OSError as cause:
            raise storage_error("write a checkpoint of", self.run.folder, cause) from cause
        except StorageError as cause:
            last = max((point.step for point in old), default=0)
            raise StorageError(f"{cause}. The last good checkpoint of the run is step {last}.") from cause
        self._publish(checkpoint)
        self._drop([point for point in old if not point.kept and point.step != step])
        if kept and step < self.total_steps:
            self._drop_beyond_limit()
        self.run.write_status("running", step=step, total_steps=self.total_steps, seconds=standing.seconds)

    def cancel(self, standing: Standing) -> None:
        """Saves the state and notes that the person asked to stop."""
        if standing.step > 0:
            self.save(standing, kept=False)
        self.run.write_status("cancelled", step=standing.step, total_steps=self.total_steps, seconds=standing.seconds)
        self.cancelled = True

    def file_name(self, step: int) -> str:
        """Returns the published name, ``<run>`` for the last step and ``<run>-step00000500`` before."""
        name = str(self.run.manifest["run_name"])
        return name if step >= self.total_steps else f"{name}-step{step:08d}"

    def publish_missing(self) -> None:
        """Publishes what a killed process had saved but not published yet."""
        known = self.run.published()
        for checkpoint in list_checkpoints(self.run.folder):
            if checkpoint.kept and str(checkpoint.step) not in known:
                self._publish(checkpoint)

    def _nothing_yet(self, step: int) -> bool:
        """Whether there is no LoRA to write yet, because the adapter is as it began.

        So it is while the learning rate is 0, and while fp16 still looks for its loss scale. At the last step a
        learning rate that was above 0 must have taught something, which ``save_lora`` checks.
        """
        if step >= self.total_steps:
            return not self._moved(step)
        check_finite(self.adapter)
        return untaught_part(self.adapter) is not None

    def _moved(self, step: int) -> bool:
        groups = [str(group["name"]) for group in self.optimizer.param_groups]
        return any(self.plan.checked.share(past, group) > 0.0 for past in range(step) for group in groups)

    def _lora_writer(self, standing: Standing) -> Callable[[Path], None]:
        step = standing.step

        def write(path: Path) -> None:
            epoch = self.epochs_done(standing.batches_done)
            named = step_metadata(
                self.plan, step=step, epoch=epoch, finished_at=time.time(), output_name=self.file_name(step)
            )
            with shown_weights(self.adapter, self.optimizer, self.weights, self.average):
                self.report = save_lora(
                    path,
                    self.adapter,
                    metadata={**self.metadata, **named},
                    dtype=self.plan.checked.job.params.save_dtype,
                    accepted_stems=self.accepted_stems,
                )

        return write

    def _publish(self, checkpoint: Checkpoint) -> None:
        if not checkpoint.kept:
            return
        path = self.run.publish(checkpoint, self.loras_dir, file_name=self.file_name(checkpoint.step))
        if path is not None:
            self.published_path = path

    def _drop_beyond_limit(self) -> None:
        limit = self.plan.checked.job.params.keep_last
        kept = [point for point in list_checkpoints(self.run.folder) if point.kept and point.step < self.total_steps]
        self._drop(kept[:-limit] if limit > 0 else [])

    def _drop(self, checkpoints: Sequence[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            try:
                if checkpoint.kept:
                    self.run.withdraw(checkpoint.step, self.loras_dir)
                remove_checkpoint(checkpoint)
            except OSError as cause:
                # Windows: ComfyUI has the file mapped. The run goes on; a file too many harms nobody.
                self.progress.status(f"{checkpoint.folder.name} could not be removed: {cause}")


def standing_of(checkpoint: Checkpoint, *, accumulation_steps: int) -> Standing:
    """Returns how far a run was at a checkpoint.

    Args:
        checkpoint: of the run.
        accumulation_steps: of the run; checkpoints of older versions do not say how many batches were done.

    Raises:
        TrainingError: the checkpoint lacks its figures.
    """
    facts: Mapping[str, Any] = checkpoint.facts
    if "seconds" not in facts or "images_seen" not in facts:
        raise TrainingError(
            f"The checkpoint {checkpoint.folder.name} lacks its figures; start the run anew with restart."
        )
    return Standing(
        step=checkpoint.step,
        batches_done=int(facts.get("batches_done", checkpoint.step * accumulation_steps)),
        images_seen=int(facts["images_seen"]),
        seconds=float(facts["seconds"]),
    )
