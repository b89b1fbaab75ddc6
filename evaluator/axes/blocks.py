"""Columns of different block weights of a LoRA."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ...core.errors import unknown_name
from ...core.params import Params, param
from ..cells import ADD_LORAS, LORA_BLOCK_WEIGHTS
from ..values import split_lines, split_list
from ._spec import Axis, AxisContext, AxisValue, Socket


@dataclass(frozen=True, kw_only=True)
class BlocksAxisParams(Params):
    """Which block weights to compare."""

    presets: str = param(
        "ALL\nINALL\nMIDD\nOUTALL\nNONE",
        doc="Preset names, or rows of 17 or 26 numbers, one per line; names alone may be separated by commas",
        multiline=True,
    )


_ASSIGNMENT = re.compile(r"\w+\s*=\s*[^\s,]+")


def _folded(names: Sequence[str]) -> set[str]:
    return {name.casefold() for name in names}


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).isdigit()


def _values(params: BlocksAxisParams, context: AxisContext) -> list[AxisValue]:
    lora = context.inputs.get("lora")
    texts = split_lines(params.presets, what="block weights")
    if len(texts) == 1 and not any(_is_number(item) for item in split_list(texts[0], what="block weights")):
        texts = split_list(texts[0], what="block weights")
    values = []
    allowed = context.preset_names()
    for text in texts:
        name = _ASSIGNMENT.sub("", text).strip()
        if allowed and not _is_number(text.split(",")[0].split()[0]) and name.casefold() not in _folded(allowed):
            raise unknown_name("block weight preset", name, allowed)
        changes = {LORA_BLOCK_WEIGHTS: text} if lora is None else {LORA_BLOCK_WEIGHTS: text, ADD_LORAS: (lora,)}
        values.append(AxisValue(label=text, changes=changes))
    return values


AXIS = Axis(
    name="Block weights",
    summary="Compares block weight presets of the connected LoRA, or of the LoRAs on the other axis.",
    params=BlocksAxisParams,
    values=_values,
    sockets=(
        Socket(name="lora", kind="ATELIER_LORA", doc="The LoRA to vary; leave open with a LoRA axis on the other side"),
    ),
)
