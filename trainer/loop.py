"""The training loop."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from ..core import seeds
from ..core.errors import TrainingError
from ..core.progress import Progress
from .objectives._spec import Objective
from .precision import Precision, clip_gradients, masked_step
from .schedules._spec import Factor

log = logging.getLogger("lora_atelier")

READ_EVERY_STEPS = 8
"""Steps between two readings of losses and of the finite flag from the device."""

AUTOSAVE_EVERY_S = 90.0
"""Seconds of training after which the state is saved, so that a power cut costs no more than this."""


class MicroBatches(Protocol):
    """Where the pictures come from."""

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        """Returns scaled latents [b, c, h, w] fp32 of the ``index``-th batch of the run, on the training device."""
        ...

    def text(self, index: int, *, seed: int, step: int, micro: int) -> Any:
        """Returns the text states of the same batch; gradients reach the text encoder if it is trained."""
        ...

    def weights(self, index: int) -> torch.Tensor | None:
        """Returns the weight of every picture's loss, [b] fp32 on the training device, or None if all are 1."""
        ...

    def num_images(self, index: int) -> int:
        """Returns how many pictures the batch has."""
        ...

    def epoch(self, index: int) -> int:
        """Returns the epoch the batch belongs to, counted from 0."""
        ...


@dataclass(frozen=True, kw_only=True)
class Learner:
    """What is trained and with what.

    Attributes:
        predict: (noisy latents, time steps, text states) -> prediction.
        batches: the pictures.
        objective: question and loss.
        objective_params: its settings.
        alphas_cumprod: [T], on the training device.
        optimizer: over the adapter's parameters; its groups have a "name".
        factor: the learning rate schedule.
        precision: number format.
        device: the training device.
    """

    predict: Callable[[torch.Tensor, torch.Tensor, Any], torch.Tensor]
    batches: MicroBatches
    objective: Objective
    objective_params: Any
    alphas_cumprod: torch.Tensor
    optimizer: torch.optim.Optimizer
    factor: Factor
    precision: Precision
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class Route:
    """From where to where, and what happens on the way; plain numbers.

    Attributes:
        first_step: steps already done.
        total_steps: steps done at the end.
        seed: of the run.
        accumulation_steps: micro-batches of one update.
        max_grad_norm: 0 is off.
        warmup_steps: of the schedule.
        cycles: of the schedule.
        saves_at: whether a checkpoint is kept after so many steps.
        images_seen: pictures shown before ``first_step``.
        seconds: time spent before ``first_step``.
    """

    first_step: int
    total_steps: int
    seed: int
    accumulation_steps: int
    max_grad_norm: float
    warmup_steps: int
    cycles: int
    saves_at: Callable[[int], bool]
    images_seen: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one step. ``step`` counts from 1."""

    step: int
    epoch: int
    loss: float
    lr: Mapping[str, float]
    grad_norm: float
    images_seen: int
    seconds: float


class Recorder(Protocol):
    """Where a run is written down."""

    def rows(self, rows: Sequence[Row]) -> None:
        """Takes the rows of the last steps."""
        ...

    def save(self, step: int, *, seconds: float, images_seen: int, kept: bool) -> None:
        """Saves the state after ``step`` steps; ``kept`` ones are for the user, the others only to go on from."""
        ...

    def cancel(self, step: int, *, seconds: float, images_seen: int) -> None:
        """Saves the state after ``step`` steps, because the person asked to stop."""
        ...


@dataclass
class _Pending:
    """Steps whose numbers have not been read from the device yet."""

    known: list[dict[str, Any]] = field(default_factory=list)
    unread: list[torch.Tensor] = field(default_factory=list)

    def add(self, *, loss: torch.Tensor, norm: torch.Tensor, broken: torch.Tensor, **known: Any) -> None:
        self.known.append(known)
        self.unread.append(torch.stack((loss, norm, broken.to(loss.dtype))))

    def read(self) -> list[Row]:
        """Waits for the device and returns the rows; raises TrainingError at the first broken step."""
        if not self.unread:
            return []
        numbers = torch.stack(self.unread).tolist()
        known, self.known, self.unread = self.known, [], []
        rows: list[Row] = []
        for facts, (loss, norm, broken) in zip(known, numbers, strict=True):
            row = Row(loss=loss, grad_norm=norm, **facts)
            if broken:
                raise BrokenStep(row, rows)
            rows.append(row)
        return rows


class BrokenStep(TrainingError):
    """A loss or gradient was not finite.

    Attributes:
        good_rows: the steps before it that had not been read yet.
    """

    def __init__(self, row: Row, good_rows: list[Row]) -> None:
        """Says at which step, and what to change."""
        rates = ", ".join(f"lr_{name} {value:g}" for name, value in row.lr.items())
        super().__init__(
            f"Step {row.step} has a loss of {row.loss:g} and a gradient of length {row.grad_norm:g} ({rates}): "
            "training was stopped and the weights were left as they were before that step; use a lower learning rate, "
            "a longer warm-up, or the precision bf16 or fp32."
        )
        self.good_rows = good_rows


def train(learner: Learner, route: Route, recorder: Recorder, progress: Progress) -> int:
    """Trains from ``route.first_step`` to ``route.total_steps`` and returns the steps done.

    All random numbers of a step come from (seed, step), so a run that is stopped and continued is the same run.
    When ``progress`` raises to cancel, the state is saved and the very exception raised again.

    Raises:
        BrokenStep: a loss or gradient was not finite; no weight was changed by it.
    """
    optimizer, precision = learner.optimizer, learner.precision
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    base_rates = [float(group["lr"]) for group in optimizer.param_groups]
    broken = torch.zeros((), dtype=torch.bool, device=learner.device)
    pending, images_seen, shown_loss = _Pending(), route.images_seen, ""
    started = last_save = time.perf_counter()
    step = route.first_step

    def seconds() -> float:
        return route.seconds + time.perf_counter() - started

    def read() -> str:
        try:
            rows = pending.read()
        except BrokenStep as stop:
            recorder.rows(stop.good_rows)
            raise
        recorder.rows(rows)
        return f"loss {sum(row.loss for row in rows) / len(rows):.4f}" if rows else shown_loss

    def save(*, kept: bool) -> None:
        read()
        recorder.save(step, seconds=seconds(), images_seen=images_seen, kept=kept)

    def check(call: Callable[..., None], *given: Any) -> None:
        try:
            call(*given)
        except BaseException as cancel:
            try:
                read()
                recorder.cancel(step, seconds=seconds(), images_seen=images_seen)
            except BaseException as failure:
                log.warning("the state could not be saved when training was stopped: %s", failure)
                raise cancel from failure
            raise

    while step < route.total_steps:
        # the learning rates of this step
        share = learner.factor(
            step, total_steps=route.total_steps, warmup_steps=route.warmup_steps, cycles=route.cycles
        )
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * share

        # gradients: the mean over the micro-batches
        step_loss, step_images = torch.zeros((), device=learner.device), 0
        for micro in range(route.accumulation_steps):
            check(progress.check)
            index = step * route.accumulation_steps + micro
            torch.manual_seed(seeds.derive(route.seed, step, "dropout", micro))
            latents = learner.batches.latents(index, seed=route.seed, step=step, micro=micro)
            question = learner.objective.ask(
                latents,
                alphas_cumprod=learner.alphas_cumprod,
                params=learner.objective_params,
                generator=seeds.generator(route.seed, step, f"noise {micro}"),
            )
            with precision.autocast():
                text = learner.batches.text(index, seed=route.seed, step=step, micro=micro)
                prediction = learner.predict(question.noisy_latents, question.timesteps, text)
            losses = learner.objective.loss(
                prediction, question, alphas_cumprod=learner.alphas_cumprod, params=learner.objective_params
            )
            weights = learner.batches.weights(index)
            loss = (losses if weights is None else losses * weights).mean() / route.accumulation_steps
            precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            step_loss += loss.detach()
            step_images += learner.batches.num_images(index)
            del latents, question, text, prediction, losses, loss

        # clip, and update the weights unless something is not finite
        norm = clip_gradients(parameters, max_norm=route.max_grad_norm, scale=precision.scale)
        finite = torch.isfinite(step_loss) & torch.isfinite(norm)
        broken = broken | precision.broken(step_loss, finite)
        masked_step(optimizer, finite & broken.logical_not())
        precision.after_step(finite)
        optimizer.zero_grad(set_to_none=True)
        step, images_seen = step + 1, images_seen + step_images

        # write down, every few steps; the only place where the host waits for the device
        pending.add(
            loss=step_loss,
            norm=norm,
            broken=broken,
            step=step,
            epoch=learner.batches.epoch(index),
            lr={str(group["name"]): float(group["lr"]) for group in optimizer.param_groups},
            images_seen=images_seen,
            seconds=seconds(),
        )
        if step % READ_EVERY_STEPS == 0 or step == route.total_steps:
            shown_loss = read()

        # save
        if step == route.total_steps or route.saves_at(step):
            save(kept=True)
            last_save = time.perf_counter()
        elif time.perf_counter() - last_save > AUTOSAVE_EVERY_S:
            save(kept=False)
            last_save = time.perf_counter()

        # show; a cancel at the very end is left for the caller's next check
        if step < route.total_steps:
            check(progress.update, step, route.total_steps, shown_loss)

    return step
