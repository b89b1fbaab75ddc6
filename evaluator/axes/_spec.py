"""What an axis file exports, and what a wire of type ``ATELIER_AXIS`` carries."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...core.errors import InputError, unknown_name
from ...core.params import Params
from ..cells import LoraHandle


@dataclass(frozen=True, kw_only=True)
class AxisValue:
    """One column or row.

    Attributes:
        label: Text beside it on the sheet.
        changes: What it changes in a cell: fields of `Cell`, or the operations named in `evaluator.cells`.
    """

    label: str
    changes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class AxisValues:
    """A whole axis, ready for a grid.

    Attributes:
        name: Its title, as written on the sheet.
        values: At least one value.
    """

    name: str
    values: tuple[AxisValue, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in order."""
        return tuple(value.label for value in self.values)


@dataclass(frozen=True, kw_only=True)
class Socket:
    """A handle an axis takes besides its parameters.

    Attributes:
        name: Input name.
        kind: Wire type, such as ``ATELIER_LORA``.
        doc: What it is for.
        required: Whether the axis cannot do without.
    """

    name: str
    kind: str
    doc: str
    required: bool = False


def _none(*_: Any) -> Sequence[Any]:
    return ()


def _cannot_open(*_: Any) -> LoraHandle:
    raise InputError("This axis opens LoRA files, but it was given no way to open them; use it through its node.")


@dataclass(frozen=True, kw_only=True)
class AxisContext:
    """What the surroundings give to an axis.

    Attributes:
        inputs: Handles by socket name; a socket left open is absent or None.
        lora_names: Lists the LoRA files of the loras folders.
        open_lora: Opens one of them by name.
        open_lora_file: Opens a file by path, with the name to show.
        run_checkpoints: Lists (step, LoRA file) of a run handle, oldest first.
        sampler_names: Samplers that can be used; empty means unchecked.
        scheduler_names: Schedulers that can be used; empty means unchecked.
        preset_names: Lists the block weight presets; empty means unchecked.
        vector_blocks: Names the blocks of a block-weight vector of 12, 17, 20 or 26 numbers.
    """

    inputs: Mapping[str, Any] = field(default_factory=dict)
    lora_names: Callable[[], Sequence[str]] = _none
    open_lora: Callable[[str], LoraHandle] = _cannot_open
    open_lora_file: Callable[[Path, str], LoraHandle] = _cannot_open
    run_checkpoints: Callable[[Any], Sequence[tuple[int, Path]]] = _none
    sampler_names: Sequence[str] = ()
    scheduler_names: Sequence[str] = ()
    preset_names: Callable[[], Sequence[str]] = _none
    vector_blocks: Callable[[int], Sequence[str]] = _none


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The export ``AXIS`` of a file in this folder.

    Attributes:
        name: Title on sheets and in menus.
        summary: One sentence.
        params: Its parameter dataclass.
        values: Makes the values from parameters and context.
        sockets: Handles it takes.
    """

    name: str
    summary: str
    params: type[Params]
    values: Callable[[Any, AxisContext], list[AxisValue]]
    sockets: tuple[Socket, ...] = ()

    def build(self, params: Params, context: AxisContext) -> AxisValues:
        """Return the axis for a wire.

        Raises:
            InputError: The values typed make no axis.
        """
        for socket in self.sockets:
            if socket.required and context.inputs.get(socket.name) is None:
                raise InputError(f"The axis '{self.name}' needs its input '{socket.name}' ({socket.kind}); connect it.")
        return AxisValues(name=self.name, values=tuple(self.values(params, context)))


def field_values(name: str, values: Sequence[Any], labels: Sequence[str]) -> list[AxisValue]:
    """Return values that each set one field of the cell."""
    return [AxisValue(label=label, changes={name: value}) for value, label in zip(values, labels, strict=True)]


def checked_names(kind: str, names: Sequence[str], allowed: Sequence[str]) -> list[str]:
    """Return the names as the list spells them, matched without case.

    Raises:
        UnknownNameError: A name is not in the list (the nearest are named).
    """
    if not allowed:
        return list(names)
    spelled = {name.casefold(): name for name in reversed(allowed)}
    for name in names:
        if name.casefold() not in spelled:
            raise unknown_name(kind, name, allowed)
    return [name if name in allowed else spelled[name.casefold()] for name in names]
