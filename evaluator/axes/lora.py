"""Columns of different LoRA files, the first without any."""

import dataclasses
import fnmatch
from dataclasses import dataclass
from pathlib import PurePosixPath

from ...core.errors import InputError
from ...core.params import Params, param
from ..cells import ADD_LORAS
from ..values import split_list
from ._spec import Axis, AxisContext, AxisValue, Socket

NO_LORA = "no LoRA"


@dataclass(frozen=True, kw_only=True)
class LoraAxisParams(Params):
    """Which LoRA files to compare."""

    files: str = param(
        "",
        doc="LoRA files, one per line or separated by commas, as the LoRA list names them; * and ? stand for any text "
        "(mychar-*.safetensors). The connected LoRAs come first.",
        multiline=True,
    )
    strength: float = param(
        1.0,
        doc="Strength of the files named here, for model and text encoder",
        minimum=-100.0,
        maximum=100.0,
        step=0.05,
    )
    include_base: bool = param(True, doc="Put a column without a LoRA first, to compare with")


def matching_names(patterns: list[str], names: list[str]) -> list[str]:
    """Return the names that the patterns mean, each once, in the order of the patterns.

    Raises:
        InputError: A pattern with * or ? matches nothing.
    """
    found: list[str] = []
    for pattern in patterns:
        wanted = pattern.replace("\\", "/")
        if not any(sign in wanted for sign in "*?"):
            found.append(pattern)
            continue
        hits = [name for name in names if fnmatch.fnmatchcase(name.replace("\\", "/").casefold(), wanted.casefold())]
        if not hits:
            raise InputError(
                f"'{pattern}' matches none of the {len(names)} files of the loras folders; check the name."
            )
        found += hits
    return list(dict.fromkeys(found))


def label_of(name: str) -> str:
    """Return a file name as a label: without folder and ending."""
    stem = PurePosixPath(name.replace("\\", "/")).name
    return stem.removesuffix(".safetensors")


def _values(params: LoraAxisParams, context: AxisContext) -> list[AxisValue]:
    handles = [lora for lora in (context.inputs.get(f"lora_{index}") for index in (1, 2, 3)) if lora is not None]
    if params.files.strip():
        patterns = split_list(params.files, what="LoRA")
        for name in matching_names(patterns, list(context.lora_names())):
            lora = context.open_lora(name)
            handles.append(dataclasses.replace(lora, strength_model=params.strength, strength_clip=params.strength))
    if not handles:
        raise InputError("The LoRA axis has no LoRA; name files in 'files' or connect a LoRA.")
    labels = [label_of(lora.name) for lora in handles]
    if len(set(labels)) < len(labels):
        labels = [lora.name.removesuffix(".safetensors") for lora in handles]
    values = [AxisValue(label=label, changes={ADD_LORAS: (lora,)}) for label, lora in zip(labels, handles, strict=True)]
    if params.include_base:
        values.insert(0, AxisValue(label=NO_LORA, changes={ADD_LORAS: ()}))
    return values


AXIS = Axis(
    name="LoRA",
    summary="Compares LoRA files, with a column without a LoRA first.",
    params=LoraAxisParams,
    values=_values,
    sockets=tuple(
        Socket(name=f"lora_{index}", kind="ATELIER_LORA", doc="A LoRA to compare, with its own strengths")
        for index in (1, 2, 3)
    ),
)
