"""Columns of the checkpoints of one training run, the first without a LoRA."""

import dataclasses
from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ..cells import ADD_LORAS
from ..values import parse_ints, split_list
from ._spec import Axis, AxisContext, AxisValue, Socket
from .lora import NO_LORA


@dataclass(frozen=True, kw_only=True)
class RunCheckpointsAxisParams(Params):
    """Which checkpoints of the run to compare."""

    steps: str = param(
        "all",
        doc="all, or steps such as 500, 1000-3000 (+500), or the words first and last; "
        "a step that was not saved means the nearest that was",
        multiline=True,
    )
    strength: float = param(1.0, doc="Strength for model and text encoder", minimum=-100.0, maximum=100.0, step=0.05)
    include_base: bool = param(True, doc="Put a column without a LoRA first, to compare with")


def pick_steps(text: str, saved_steps: list[int]) -> list[int]:
    """Return the saved steps that a text means, ascending, each once.

    Raises:
        InputError: A word is not a step, a range, first, last or all.
    """
    if text.strip().lower() in ("", "all"):
        return sorted(saved_steps)
    words = {"first": min(saved_steps), "last": max(saved_steps)}
    wanted: list[int] = []
    for item in split_list(text, what="run checkpoints"):
        if item.lower() in words:
            wanted.append(words[item.lower()])
        else:
            wanted += parse_ints(item, what="run checkpoints")
    return sorted({min(saved_steps, key=lambda saved: (abs(saved - step), saved)) for step in wanted})


def _values(params: RunCheckpointsAxisParams, context: AxisContext) -> list[AxisValue]:
    files = dict(context.run_checkpoints(context.inputs["run"]))
    if not files:
        raise InputError("The run has no saved checkpoint to compare; train with 'save every N steps' above 0.")
    values = [AxisValue(label=NO_LORA, changes={ADD_LORAS: ()})] if params.include_base else []
    for step in pick_steps(params.steps, list(files)):
        lora = context.open_lora_file(files[step], f"step {step}")
        lora = dataclasses.replace(lora, strength_model=params.strength, strength_clip=params.strength)
        values.append(AxisValue(label=f"step {step}", changes={ADD_LORAS: (lora,)}))
    return values


AXIS = Axis(
    name="Checkpoints",
    summary="Compares the checkpoints of a training run, with a column without a LoRA first.",
    params=RunCheckpointsAxisParams,
    values=_values,
    sockets=(Socket(name="run", kind="ATELIER_RUN", doc="The run whose checkpoints are compared", required=True),),
)
