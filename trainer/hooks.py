"""What happens before a step of the loop: an optimizer that begins anew, a text encoder that stops."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ..networks._attach import AdapterSet
from .config import Job
from .staged import Stage
from .weights import AdapterWeights


def text_encoder_stop(job: Job, adapter: AdapterSet) -> Callable[[int], None] | None:
    """Returns what freezes the text encoder's adapter at its last step; None if it is trained to the end.

    What needs no gradient gets none, so its backward pass is left out and the optimizer leaves it alone.
    """
    stop = job.text_encoder_stop_step()
    if stop is None:
        return None
    trained = [parameter for parameter in adapter.parameters_by_part()["text_encoder"] if parameter.requires_grad]

    def before_step(step: int) -> None:
        while step >= stop and trained:
            trained.pop().requires_grad_(False)

    return before_step


def one_after_the_other(hooks: Sequence[Callable[[int], None] | None]) -> Callable[[int], None] | None:
    """Returns all hooks as one; None where there is none."""
    there = [hook for hook in hooks if hook is not None]
    if not there:
        return None

    def before_step(step: int) -> None:
        for hook in there:
            hook(step)

    return before_step


def new_beginnings(
    stages: Sequence[Stage], optimizer: torch.optim.Optimizer, weights: AdapterWeights
) -> Callable[[int], None] | None:
    """Returns what lets the optimizer forget all it knows where a stage wants that; None if no stage does.

    All of an optimizer's state goes through its ``state_dict``, so the one it has before its first step brings it back
    there. One that averages the weights itself goes on from its average.
    """
    steps = {stage.first_step for stage in stages if stage.begins_anew}
    if not steps:
        return None
    first_state = copy.deepcopy(optimizer.state_dict())

    def before_step(step: int) -> None:
        if step not in steps:
            return
        averager: Any = optimizer
        averages = hasattr(averager, "train") and hasattr(averager, "eval")
        if averages:
            averager.eval()
            weights.show()
        optimizer.load_state_dict(copy.deepcopy(first_state))
        if averages:
            averager.train()

    return before_step
