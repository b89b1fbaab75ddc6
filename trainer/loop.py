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
from .average import MovingAverage
from .objectives._spec import Objective, Question
from .optimizers._effective import found_step_size
from .precision import Precision, clip_gradients, masked_step
from .weights import AdapterWeights

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

    def mask(self, index: int) -> torch.Tensor | None:
        """Returns the weight of every element's loss, [b, 1, h, w] fp32 on the training device, or None."""
        ...

    def conditioning(self, index: int) -> Any:
        """Returns what the family's UNet is told of the batch beside the text (sizes and crops), or None."""
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
        predict: (noisy latents, time steps, text states, conditioning) -> prediction.
        batches: the pictures.
        objective: question and loss.
        objective_params: its settings.
        alphas_cumprod: [T], on the training device, as the objective wants it.
        optimizer: over the weights; its groups have a "name".
        weights: the adapter's parameters as the optimizer sees them.
        share: (step from 0, group name) -> the part of the group's base learning rate that is used in that update.
        precision: number format.
        device: the training device.
        average: a moving average of the adapter, or None.
        before_step: called with every step (from 0) before it begins, such as for an optimizer that begins anew.
        after_update: called after every update, such as for a limit on the weights' size.
        preserve: (question, text states, conditioning, index, seed, step, micro) -> the question with other targets for
            some pictures, or None.
    """

    predict: Callable[[torch.Tensor, torch.Tensor, Any, Any], torch.Tensor]
    batches: MicroBatches
    objective: Objective
    objective_params: Any
    alphas_cumprod: torch.Tensor
    optimizer: torch.optim.Optimizer
    weights: AdapterWeights
    share: Callable[[int, str], float]
    precision: Precision
    device: torch.device
    average: MovingAverage | None = None
    before_step: Callable[[int], None] | None = None
    after_update: Callable[[], None] | None = None
    preserve: Callable[..., Question] | None = None


@dataclass(frozen=True, kw_only=True)
class Route:
    """From where to where, and what happens on the way; plain numbers.

    Attributes:
        first_step: steps already done.
        total_steps: steps done at the end.
        seed: of the run.
        accumulation_steps: micro-batches of one update.
        accumulation_images: pictures of one update; 0 counts micro-batches instead.
        max_grad_norm: 0 is off.
        saves_at: (steps, batches before the last of them, batches done) -> whether a checkpoint is kept.
        batches_done: micro-batches shown before ``first_step``.
        images_seen: pictures shown before ``first_step``.
        seconds: time spent before ``first_step``.
    """

    first_step: int
    total_steps: int
    seed: int
    accumulation_steps: int
    max_grad_norm: float
    saves_at: Callable[[int, int, int], bool]
    accumulation_images: int = 0
    batches_done: int = 0
    images_seen: int = 0
    seconds: float = 0.0

    def shares(self, batches: MicroBatches, first: int) -> list[tuple[int, float]]:
        """Returns the micro-batches of the update that begins at ``first``; see ``update_shares``."""
        return update_shares(batches, first, steps=self.accumulation_steps, images=self.accumulation_images)


def update_shares(batches: MicroBatches, first: int, *, steps: int, images: int) -> list[tuple[int, float]]:
    """Returns the micro-batches of the update that begins at ``first``: (index, what its mean loss is divided by).

    Counted in pictures, an update takes batches until it has at least as many, and its gradient is the mean over the
    pictures, not over the batches.

    Args:
        batches: the pictures.
        first: index of the first batch.
        steps: batches of an update.
        images: pictures of an update; 0 counts batches instead.
    """
    if images <= 0:
        return [(first + number, steps) for number in range(steps)]
    sizes: list[int] = []
    while sum(sizes) < images:
        sizes.append(batches.num_images(first + len(sizes)))
    return [(first + number, sum(sizes) / size) for number, size in enumerate(sizes)]


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far a run is: steps, micro-batches and pictures done, and the time that took."""

    step: int
    batches_done: int
    images_seen: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """What is known of one step. ``step`` counts from 1.

    Attributes:
        effective_lr: d x lr of an optimizer that finds its step size itself, else the first group's learning rate.
    """

    step: int
    epoch: int
    loss: float
    lr: Mapping[str, float]
    grad_norm: float
    images_seen: int
    seconds: float
    effective_lr: float


class Recorder(Protocol):
    """Where a run is written down."""

    def rows(self, rows: Sequence[Row]) -> None:
        """Takes the rows of the last steps."""
        ...

    def save(self, standing: Standing, *, kept: bool) -> None:
        """Saves the state; ``kept`` ones are for the user, the others only to go on from."""
        ...

    def cancel(self, standing: Standing) -> None:
        """Saves the state, because the person asked to stop."""
        ...


@dataclass
class _Pending:
    """Steps whose numbers have not been read from the device yet."""

    known: list[dict[str, Any]] = field(default_factory=list)
    unread: list[torch.Tensor] = field(default_factory=list)

    def add(
        self,
        *,
        loss: torch.Tensor,
        norm: torch.Tensor,
        broken: torch.Tensor,
        found: torch.Tensor | float | None,
        **known: Any,
    ) -> None:
        self.known.append(known)
        rate = found if isinstance(found, torch.Tensor) else torch.zeros((), device=loss.device)
        self.unread.append(torch.stack((loss, norm, broken.to(loss.dtype), rate.to(loss.dtype).reshape(()))))
        if not isinstance(found, torch.Tensor):
            known["effective_lr"] = next(iter(known["lr"].values())) if found is None else found

    def read(self) -> list[Row]:
        """Waits for the device and returns the rows; raises TrainingError at the first broken step."""
        if not self.unread:
            return []
        numbers = torch.stack(self.unread).tolist()
        known, self.known, self.unread = self.known, [], []
        rows: list[Row] = []
        for facts, (loss, norm, broken, rate) in zip(known, numbers, strict=True):
            row = Row(**{"effective_lr": rate, **facts}, loss=loss, grad_norm=norm)
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
    pending, shown_loss = _Pending(), ""
    started = last_save = time.perf_counter()
    step, batches_done, images_seen = route.first_step, route.batches_done, route.images_seen

    def seconds() -> float:
        return route.seconds + time.perf_counter() - started

    def standing() -> Standing:
        return Standing(step=step, batches_done=batches_done, images_seen=images_seen, seconds=seconds())

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
        recorder.save(standing(), kept=kept)

    def check(call: Callable[..., None], *given: Any) -> None:
        try:
            call(*given)
        except BaseException as cancel:
            try:
                read()
                recorder.cancel(standing())
            except BaseException as failure:
                log.warning("the state could not be saved when training was stopped: %s", failure)
                raise cancel from failure
            raise

    while step < route.total_steps:
        # the learning rates of this step
        if learner.before_step is not None:
            learner.before_step(step)
        for group, rate in zip(optimizer.param_groups, base_rates, strict=True):
            group["lr"] = rate * learner.share(step, str(group["name"]))

        # gradients: the mean over the micro-batches, or over their pictures
        step_loss, step_images = torch.zeros((), device=learner.device), 0
        shares = route.shares(learner.batches, batches_done)
        for micro, (index, divisor) in enumerate(shares):
            check(progress.check)
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
                told = learner.batches.conditioning(index)
                if learner.preserve is not None:
                    question = learner.preserve(question, text, told, index, seed=route.seed, step=step, micro=micro)
                prediction = learner.predict(question.noisy_latents, question.timesteps, text, told)
            losses = learner.objective.loss(
                prediction,
                question,
                alphas_cumprod=learner.alphas_cumprod,
                params=learner.objective_params,
                mask=learner.batches.mask(index),
            )
            weights = learner.batches.weights(index)
            loss = (losses if weights is None else losses * weights).mean() / divisor
            precision.scaled(loss).backward()  # type: ignore[no-untyped-call]
            step_loss += loss.detach()
            step_images += learner.batches.num_images(index)
            del latents, question, text, prediction, losses, loss

        # clip, and update the weights unless something is not finite
        learner.weights.take_gradients()
        norm = clip_gradients(parameters, max_norm=route.max_grad_norm, scale=precision.scale)
        finite = torch.isfinite(step_loss) & torch.isfinite(norm)
        broken = broken | precision.broken(step_loss, finite)
        masked_step(optimizer, finite & broken.logical_not(), scaled=precision.scale is not None)
        learner.weights.give_back(seed=route.seed, step=step)
        if learner.after_update is not None:
            learner.after_update()
        precision.after_step(finite)
        optimizer.zero_grad(set_to_none=True)
        step, batches_before, images_seen = step + 1, batches_done, images_seen + step_images
        batches_done += len(shares)
        if learner.average is not None:
            learner.average.update(step)

        # write down, every few steps; the only place where the host waits for the device
        pending.add(
            loss=step_loss,
            norm=norm,
            broken=broken,
            found=found_step_size(optimizer),
            step=step,
            epoch=learner.batches.epoch(index),
            lr={str(group["name"]): float(group["lr"]) for group in optimizer.param_groups},
            images_seen=images_seen,
            seconds=seconds(),
        )
        if step % READ_EVERY_STEPS == 0 or step == route.total_steps:
            shown_loss = read()

        # save
        if step == route.total_steps or route.saves_at(step, batches_before, batches_done):
            save(kept=True)
            last_save = time.perf_counter()
        elif time.perf_counter() - last_save > AUTOSAVE_EVERY_S:
            save(kept=False)
            last_save = time.perf_counter()

        # show; a cancel at the very end is left for the caller's next check
        if step < route.total_steps:
            check(progress.update, step, route.total_steps, shown_loss)

    return step
