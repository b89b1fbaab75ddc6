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
        doc="Preset names, rows of numbers, or blocks that are switched off (IN05-OUT05, NOT MID, IN04=0.5; 17ALL for "
        "each block in turn), one per line; names alone may be separated by commas",
        multiline=True,
    )


_BLOCK_WORD = (
    r"(?:NOT|UNET|TE[12]?|BASE|M00|MID|(?:IN|OUT)(?:\d+(?:-(?:MID|(?:IN|OUT)?\d+))?|-(?:MID|OUT\d+))?|MID-OUT\d+)"
)
_BLOCK_WORDS = re.compile(rf"{_BLOCK_WORD}(?:\s+{_BLOCK_WORD})*", re.IGNORECASE)
_EVERY_BLOCK = re.compile(r"(12|17|20|26)ALL(?:=(\S+))?", re.IGNORECASE)
_ITEM = re.compile(r"[=:%]")
OFF = "0"
"""What blocks named without a number are set to."""


def _folded(names: Sequence[str]) -> set[str]:
    return {name.casefold() for name in names}


def _is_number(text: str) -> bool:
    return text.lstrip("+-").replace(".", "", 1).isdigit()


def _texts(lines: Sequence[str], context: AxisContext) -> list[tuple[str, str]]:
    """Label and block weights of every column: a line as it is, or blocks by name, which are set on top of ALL."""
    allowed = _folded(context.preset_names())
    found = []
    for line in lines:
        every = _EVERY_BLOCK.fullmatch(line)
        if every:
            value = every[2] or OFF
            rows = context.vector_blocks(int(every[1]))
            found += [(f"{row}={value}", f"ALL {row}={value}") for row in rows]
        elif _ITEM.search(line) or line.casefold() in allowed or not _BLOCK_WORDS.fullmatch(line):
            found.append((line, line))
        elif line.upper().startswith("NOT"):
            found.append((f"{line}={OFF}", f"ALL {line}={OFF}"))
        else:
            found.append((f"{line}={OFF}", "ALL " + " ".join(f"{word}={OFF}" for word in line.split())))
    return found


def _values(params: BlocksAxisParams, context: AxisContext) -> list[AxisValue]:
    lora = context.inputs.get("lora")
    lines = split_lines(params.presets, what="block weights")
    one_line = len(lines) == 1 and not _ITEM.search(lines[0])
    if one_line and not any(_is_number(item) for item in split_list(lines[0], what="block weights")):
        lines = split_list(lines[0], what="block weights")
    values = []
    allowed = context.preset_names()
    for label, text in _texts(lines, context):
        # What holds items is checked against the LoRA's file before the first cell is drawn.
        plain = not _ITEM.search(text) and not _is_number(text.split(",")[0].split()[0])
        if allowed and plain and text.casefold() not in _folded(allowed):
            raise unknown_name("block weight preset", text, allowed)
        changes = {LORA_BLOCK_WEIGHTS: text} if lora is None else {LORA_BLOCK_WEIGHTS: text, ADD_LORAS: (lora,)}
        values.append(AxisValue(label=label, changes=changes))
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
