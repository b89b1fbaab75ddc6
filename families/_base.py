"""The handle of a base model: what it is and where it lies; nothing is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from ..core.errors import unknown_name
from ..core.files import known_sha256
from ..core.progress import Progress
from ._identify import identify
from ._spec import Family, get_family

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model on disk.

    Attributes:
        family: key of its family, e.g. `sd15`.
        path: the checkpoint.
        name: as the person chose it in a list.
        dtype: "fp32", "fp16" or "bf16": how a host that does not choose by itself holds its weights for drawing;
            training goes by its own precision.
    """

    family: str
    path: Path
    name: str
    dtype: str = "fp32"

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return DTYPES[self.dtype]

    def open_family(self) -> Family:
        """The family that loads this file."""
        return get_family(self.family)


def open_base(path: Path, *, name: str, dtype: str = "fp32") -> Base:
    """Looks at the header of a checkpoint and makes its handle.

    Raises:
        FormatError: the file is something else; it is named.
        UnknownNameError: the dtype is none of fp32, fp16, bf16.
        StorageError: the file cannot be read.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype of the base model", dtype, DTYPES)
    return Base(family=identify(Path(path)).family, path=Path(path), name=name, dtype=dtype)


def base_hash(base: Base, progress: Progress | None = None) -> str:
    """SHA-256 of the file, read once per process as long as its size and time stay the same."""
    return known_sha256(base.path, progress)
