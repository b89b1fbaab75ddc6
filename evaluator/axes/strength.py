"""Columns of different LoRA strengths."""

from dataclasses import dataclass

from ...core.errors import InputError
from ...core.params import Params, param
from ..cells import ADD_LORAS, LORA_STRENGTH
from ..values import parse_floats, show_number
from ._spec import Axis, AxisContext, AxisValue, Socket

MAX_STRENGTH = 100.0


@dataclass(frozen=True, kw_only=True)
class StrengthAxisParams(Params):
    """Which strengths to compare."""

    strengths: str = param(
        "0, 0.5, 0.75, 1", doc="Strengths for model and text encoder: a list, 0-1 (+0.25) or 0-1 [5]", multiline=True
    )


def _values(params: StrengthAxisParams, context: AxisContext) -> list[AxisValue]:
    lora = context.inputs.get("lora")
    values = []
    for strength in parse_floats(params.strengths, what="LoRA strength"):
        if abs(strength) > MAX_STRENGTH:
            raise InputError(f"A LoRA strength of {strength:g} was asked for; -100 to 100 are allowed.")
        changes = {LORA_STRENGTH: strength} if lora is None else {LORA_STRENGTH: strength, ADD_LORAS: (lora,)}
        values.append(AxisValue(label=show_number(strength), changes=changes))
    return values


AXIS = Axis(
    name="LoRA strength",
    summary="Compares strengths of the connected LoRA, or of the LoRAs on the other axis.",
    params=StrengthAxisParams,
    values=_values,
    sockets=(
        Socket(name="lora", kind="ATELIER_LORA", doc="The LoRA to vary; leave open with a LoRA axis on the other side"),
    ),
)
