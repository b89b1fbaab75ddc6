"""The stages of a run as they are asked for: what comes one after the other in one training, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.errors import InputError
from ..core.params import Params, param

if TYPE_CHECKING:
    from ..dataset.table import Dataset

CARRY_ON, BEGIN_ANEW = "carry on", "begin anew"
WHOLE_RUN, THIS_STAGE = "whole run", "this stage"


@dataclass(frozen=True, kw_only=True)
class StageParams(Params):
    """The settings of one stage; what is 0 is as the run has it."""

    steps: int = param(
        0,
        doc="Updates of the weights in this stage; 0 takes what the other stages leave of the run's steps.",
        unit="steps",
        minimum=0,
        maximum=10_000_000,
        step=1,
    )
    resolution_px: int = param(
        0,
        doc="Side of the square whose area a training picture has at most; 0 is the run's. A multiple of "
        "bucket_step_px.",
        unit="px",
        minimum=0,
        maximum=4096,
        step=64,
    )
    batch_size: int = param(
        0, doc="Pictures shown to the network at once; 0 is the run's.", unit="images", minimum=0, maximum=1024, step=1
    )
    unet_lr_factor: float = param(
        1.0,
        doc="Factor on the UNet's learning rate in this stage; 0 lets the UNet rest.",
        minimum=0.0,
        maximum=1000.0,
        step=0.05,
    )
    text_encoder_lr_factor: float = param(
        1.0,
        doc="Factor on the text encoder's learning rate in this stage; 0 lets it rest.",
        minimum=0.0,
        maximum=1000.0,
        step=0.05,
    )
    optimizer_state: str = param(
        CARRY_ON,
        doc="What the optimizer knows when the stage begins. carry on: its means and step size of the stage before. "
        "begin anew: nothing, as in a run of its own.",
        choices=(CARRY_ON, BEGIN_ANEW),
    )
    schedule_over: str = param(
        WHOLE_RUN,
        doc="What the learning rate's schedule and warm-up stretch over: the whole run, or this stage alone.",
        choices=(WHOLE_RUN, THIS_STAGE),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class TrainStage:
    """One stage on a wire.

    Attributes:
        params: its settings.
        dataset: its pictures; None for those of the run.
    """

    params: StageParams
    dataset: Dataset | None = None


def stage_steps(stages: Sequence[TrainStage], total_steps: int) -> tuple[int, ...]:
    """Returns the steps of every stage; the one that asks for 0 gets what is left of the run's.

    Raises:
        InputError: they do not add up to the run's steps.
    """
    asked = [stage.params.steps for stage in stages]
    open_places = [number for number, steps in enumerate(asked) if steps == 0]
    left = total_steps - sum(asked)
    shown = " + ".join(str(steps) for steps in asked if steps)
    if len(open_places) > 1:
        names = " and ".join(str(place + 1) for place in open_places[:2])
        raise InputError(
            f"The stages {names} both have steps 0: only one stage can take what the others leave of the run's "
            f"{total_steps} steps; give the others a number."
        )
    if open_places and left < 1:
        raise InputError(
            f"The other stages take {shown} of the run's {total_steps} steps and leave none for stage "
            f"{open_places[0] + 1}, whose steps is 0: raise the run's steps, or shorten a stage."
        )
    if not open_places and left != 0:
        raise InputError(
            f"The stages have {shown} = {sum(asked)} steps and the run has {total_steps}: set the run's steps to "
            f"{sum(asked)}, or the steps of one stage to 0, which takes what is left."
        )
    return tuple(steps or left for steps in asked)
