"""Where a stretch of training begins: at the run's last state, at its parent's, or at the start."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from .checkpoints import State, latest_readable
from .loop import Standing
from .optimizers._spec import OptimizerParams, ParamGroup
from .recorder import RunRecorder, standing_of
from .run import RunFolder, open_run


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a continued run begins: the state of its parent.

    Attributes:
        step: steps the parent had done.
        state: its adapter and optimizer.
        images_seen: pictures it had been shown.
        batches_done: batches it had been shown.
        optimizer_params: the parent's, where the optimizer is the same one and its state is taken over; else None, and
            only the adapter is.
    """

    step: int
    state: State
    images_seen: int
    batches_done: int
    optimizer_params: OptimizerParams | None


def take_up(run: RunFolder, recorder: RunRecorder, start: Start | None, *, accumulation_steps: int) -> Standing:
    """Loads the last state of the run, or its parent's; returns how far that is."""
    found = latest_readable(run.folder, recorder.progress.status)
    begun = Standing(step=0, batches_done=0, images_seen=0, seconds=0.0)
    if found is not None:
        begun = standing_of(found[0], accumulation_steps=accumulation_steps)
        _load(recorder, found[1])
        _load_optimizer(recorder.optimizer, found[1])
    elif start is not None:
        begun = Standing(step=start.step, batches_done=start.batches_done, images_seen=start.images_seen, seconds=0.0)
        _load(recorder, start.state)
        if start.optimizer_params is not None:
            build = recorder.plan.checked.optimizer.build
            _load_optimizer(
                recorder.optimizer, start.state, before=lambda groups: build(groups, start.optimizer_params)
            )
    run.cut_metrics(begun.step)
    recorder.losses.extend(row["loss"] for row in open_run(run.folder).rows)
    recorder.publish_missing()
    if begun.step > 0:
        recorder.progress.status(f"going on after step {begun.step}")
    return begun


def _load(recorder: RunRecorder, state: State) -> None:
    recorder.adapter.load_state(state.adapter)
    recorder.precision.load_state(state.precision)
    if recorder.average is not None:
        recorder.average.load_state(state.average)


def _load_optimizer(
    optimizer: torch.optim.Optimizer,
    state: State,
    *,
    before: Callable[[Sequence[ParamGroup]], torch.optim.Optimizer] | None = None,
) -> None:
    """Loads an optimizer's state; the learning rates stay as this run has them.

    Args:
        optimizer: of this run.
        state: to load.
        before: builds the optimizer as the saved one was at its start, where the settings of this run may be others.
            What the saved groups hold as it was then is a setting and stays as this run has it; what has changed since
            is part of the state.
    """
    own = [dict(group) for group in optimizer.param_groups]
    optimizer.load_state_dict(dict(state.optimizer))
    for group, settings in zip(optimizer.param_groups, own, strict=True):
        group["lr"] = settings["lr"]
    if before is None:
        return
    stand_in = torch.nn.Parameter(torch.zeros(2, 2))
    fresh = before(
        [ParamGroup(name=group["name"], lr=1.0, parameters=[torch.nn.Parameter(stand_in.clone())]) for group in own]
    )
    for group, settings, start in zip(optimizer.param_groups, own, fresh.param_groups, strict=True):
        for name in settings.keys() - {"params", "lr"}:
            if name in start and not isinstance(group[name], torch.Tensor) and group[name] == start[name]:
                group[name] = settings[name]
