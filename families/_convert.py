"""The one door for old files: pickled `.ckpt` and `.pt` checkpoints become safetensors."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import FormatError, InputError, MissingLibraryError, StorageError
from ..core.files import ensure_space, sha256_file
from ..core.progress import Progress
from ..core.tensors import read_header, write_tensors

MINIMUM_TORCH = (2, 10)
SOURCE_KEY = "atelier.source_sha256"
"""Metadata of a converted file: the hash of the file it was made from."""

# Classes that trainers left beside the weights. They are never imported: an empty stand-in takes their place.
_LEFTOVERS = (
    "pytorch_lightning.",
    "lightning.",
    "lightning_fabric.",
    "omegaconf.",
    "ldm.",
    "numpy.",
    "_codecs.",
    "argparse.",
)


def convert_checkpoint(source: Path, target: Path, progress: Progress | None = None) -> Path:
    """Writes the tensors of a pickled checkpoint as safetensors; nothing in it is executed.

    Args:
        source: `.ckpt`, `.pt`, `.pth` or `.bin`.
        target: `.safetensors`; one that was made of this very source is returned as it is, no other is replaced.
        progress: told what is being done.

    Returns:
        The target.

    Raises:
        MissingLibraryError: torch is older than 2.10, whose restricted unpickler can be broken (CVE-2026-24747).
        InputError: the target has another suffix, is the source, or is there already and was made of something else.
        FormatError: not a checkpoint, damaged, or it names code.
        StorageError: unreadable, or the target cannot be written.
    """
    _refuse_old_torch()
    source, target = Path(source), Path(target)
    if target.suffix.lower() != ".safetensors" or target == source:
        raise InputError(f"the target is {target.name}, it must end in .safetensors and differ from the source")
    if not source.is_file():
        raise StorageError(f"{source} is not a file; choose a .ckpt or .pt file")
    source_hash = sha256_file(source, progress)
    if target.exists():
        return _same_or_refused(target, source, source_hash)
    ensure_space(target, source.stat().st_size)
    if progress is not None:
        progress.status(f"Reading {source.name}")
    tensors = dict(_tensors_of(_unpickle(source), source))
    if not tensors:
        raise FormatError(f"{source.name} holds no tensors; it is no checkpoint")
    if progress is not None:
        progress.check()
        progress.status(f"Writing {target.name}")
    write_tensors(target, _unshared(tensors), {"format": "pt", SOURCE_KEY: source_hash})
    return target


def _same_or_refused(target: Path, source: Path, source_hash: str) -> Path:
    """The target that is there, if it is this source's; a person's other file is never replaced."""
    try:
        is_same = read_header(target).metadata.get(SOURCE_KEY) == source_hash
    except FormatError:
        is_same = False
    if not is_same:
        raise InputError(
            f"{target.name} is there already and was not made of this {source.name}; rename or move one of them"
        )
    return target


def _refuse_old_torch() -> None:
    version = tuple(int("".join(filter(str.isdigit, piece)) or 0) for piece in torch.__version__.split(".")[:2])
    if version < MINIMUM_TORCH:
        raise MissingLibraryError(
            f"old checkpoints are converted with torch 2.10 or newer only, here is {torch.__version__}: its restricted "
            "unpickler can be made to run code (CVE-2026-24747); update torch, or convert the file elsewhere"
        )


def _unpickle(source: Path) -> Any:
    zipped = zipfile.is_zipfile(source)
    if not zipped:
        _refuse_other_kinds(source)
    try:
        stand_ins = _stand_ins(source) if zipped else []
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=True if zipped else None)
    except pickle.UnpicklingError as cause:
        raise FormatError(
            f"{source.name} cannot be converted safely: it names code or objects besides tensors "
            f"({str(cause).splitlines()[0][:120]}); convert it where it was made"
        ) from cause
    except (RuntimeError, EOFError, KeyError, ValueError, TypeError, AttributeError, UnicodeDecodeError) as cause:
        raise FormatError(f"{source.name} is not a PyTorch checkpoint, or is damaged; download it again") from cause
    except OSError as cause:
        raise StorageError(f"{source} cannot be read ({cause.strerror or cause}); check its permissions") from cause


def _refuse_other_kinds(source: Path) -> None:
    """A picture or a web page under a checkpoint's name is said to be none, not taken for one that holds code."""
    try:
        with source.open("rb") as file:
            begin = file.read(1)
    except OSError as cause:
        raise StorageError(f"{source} cannot be read ({cause.strerror or cause}); check its permissions") from cause
    if begin != pickle.PROTO:
        raise FormatError(f"{source.name} is not a PyTorch checkpoint, or is damaged; download it again")


def _stand_ins(source: Path) -> list[Any]:
    """Empty classes for the known leftovers of trainers; anything else stays refused."""
    names = torch.serialization.get_unsafe_globals_in_checkpoint(str(source))
    return [(_stand_in(name), name) for name in names if name.startswith(_LEFTOVERS)]


def _stand_in(name: str) -> type:
    def accept(self: object, *args: object, **kwargs: object) -> None:
        """Takes whatever was stored and keeps nothing."""

    return type(name.rpartition(".")[2], (), {"__init__": accept, "__setstate__": accept})


def _tensors_of(data: Any, source: Path) -> Iterator[tuple[str, Tensor]]:
    if not isinstance(data, Mapping):
        raise FormatError(f"{source.name} holds {type(data).__name__}, not a table of tensors; it is no checkpoint")
    state = data.get("state_dict", data)
    if not isinstance(state, Mapping):
        raise FormatError(f"{source.name} has a state_dict that is no table of tensors; it is no checkpoint")
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield str(key), value
        elif isinstance(value, Mapping):
            yield from ((f"{key}.{inner}", tensor) for inner, tensor in value.items() if isinstance(tensor, Tensor))


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: value.detach().to_dense().contiguous() if value.is_sparse else value for key, value in tensors.items()}
