"""Filling a module built on the meta device with the tensors of a single file, one at a time and strictly."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import FormatError
from ..core.progress import Progress
from ..core.tensors import TensorSource

_SHOWN_KEYS = 4


@dataclass(frozen=True, kw_only=True)
class FilePart:
    """Where a parameter lies in a file.

    Attributes:
        key: without the part's prefix.
        rows: (first, end) where several parameters are kept in one tensor; None for the whole of it.
        transposed: whether rows and columns are exchanged.
    """

    key: str
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, value: Tensor) -> Tensor:
        """The parameter's values in the tensor of the file."""
        value = value if self.rows is None else value[self.rows[0] : self.rows[1]].clone()
        return value.T.contiguous() if self.transposed and value.ndim == 2 else value


def fill_module(
    module: nn.Module,
    file: TensorSource,
    *,
    what: str,
    prefix: str,
    file_key: Callable[[str], FilePart | None],
    ignored: Callable[[str], bool],
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress | None = None,
) -> None:
    """Gives every parameter of `module` its tensor of the file, converted, and freezes it.

    Args:
        module: built on the meta device.
        file: the open checkpoint.
        what: the part's name for errors, e.g. "UNet".
        prefix: of the part's keys in the file.
        file_key: module key -> place in the file; None where the file's layout knows no such key.
        ignored: whether a key of the file (without prefix) that no parameter asks for may be there.
        dtype: of the parameters.
        device: of the parameters.
        progress: checked for cancel between tensors.

    Raises:
        FormatError: keys are missing, left over, or of another shape; the first of them are named.
    """
    if progress is not None:
        progress.status(f"Loading the {what} of {file.path.name}")
    places = {key: file_key(key) for key, _ in module.named_parameters()}
    wanted = {key: None if place is None else place.key for key, place in places.items()}
    present = {key[len(prefix) :] for key in file.keys() if key.startswith(prefix)}  # noqa: SIM118
    _refuse_strangers(wanted, present, file.path, what=what, prefix=prefix, ignored=ignored)
    for key, parameter in list(module.named_parameters()):
        if progress is not None:
            progress.check()
        place = places[key]
        if place is not None:  # all are, or strangers were refused above
            name = f"{prefix}{place.key}"
            value = _fitted(place.of(file.tensor(name, dtype=dtype)), parameter, name, file)
            _assign(module, key, nn.Parameter(value.to(device), requires_grad=False))
    _fill_buffers(module, what, device)


def _refuse_strangers(
    wanted: dict[str, str | None],
    present: Collection[str],
    path: Path,
    *,
    what: str,
    prefix: str,
    ignored: Callable[[str], bool],
) -> None:
    missing = sorted({key for key in wanted.values() if key is not None and key not in present})
    missing += sorted(key for key, name in wanted.items() if name is None)
    unexpected = sorted(key for key in set(present) - set(wanted.values()) if not ignored(key))
    if missing or unexpected:
        found = [f"{len(keys)} keys are {how} ({_named(keys, prefix)})" for keys, how in
                 ((missing, "missing"), (unexpected, "not known")) if keys]  # fmt: skip
        raise FormatError(
            f"the {what} of {path.name} does not have the layout of its family: {' and '.join(found)}; "
            "use an unmodified checkpoint"
        )


def _named(keys: list[str], prefix: str) -> str:
    more = ", ..." if len(keys) > _SHOWN_KEYS else ""
    return ", ".join(f"{prefix}{key}" for key in keys[:_SHOWN_KEYS]) + more


def _fitted(value: Tensor, parameter: Tensor, key: str, file: TensorSource) -> Tensor:
    """Drops or adds trailing sizes of 1: a 1x1 convolution and a linear layer hold the same numbers."""
    if value.shape == parameter.shape:
        return value
    bare = [size for size in value.shape[2:] if size != 1]
    if value.shape[:2] == parameter.shape[:2] and not bare and math.prod(parameter.shape[2:]) == 1:
        return value.reshape(parameter.shape)
    raise FormatError(
        f"{file.path.name}: {key} has the shape {list(value.shape)}, its family needs {list(parameter.shape)}; "
        "use an unmodified checkpoint"
    )


def _assign(module: nn.Module, key: str, value: nn.Parameter) -> None:
    path, _, name = key.rpartition(".")
    module.get_submodule(path)._parameters[name] = value


def _fill_buffers(module: nn.Module, what: str, device: torch.device | str) -> None:
    """Position ids are counted anew: many files hold them as rounded floats, or not at all."""
    for key, buffer in list(module.named_buffers()):
        path, _, name = key.rpartition(".")
        if name == "position_ids":
            value = torch.arange(buffer.shape[-1], device=device).expand(buffer.shape).contiguous()
        elif buffer.is_meta:
            raise FormatError(f"the {what} of the installed library has an unknown buffer {key}; update the pack")
        else:
            value = buffer.to(device)
        module.get_submodule(path)._buffers[name] = value


def build_on_meta(make: Callable[[], nn.Module], what: str) -> Any:
    """Builds a module without memory or initial values.

    Args:
        make: calls the library's class.
        what: the part's name for errors, e.g. "UNet".

    Raises:
        FormatError: the sizes given in the file's metadata make no such module.
    """
    try:
        with torch.device("meta"):
            return make().eval()
    except (ValueError, TypeError, ZeroDivisionError, RuntimeError) as cause:
        raise FormatError(f"the sizes in the base model's metadata make no {what} ({cause}); make it again") from cause
