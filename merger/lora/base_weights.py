"""The weights of a checkpoint that a LoRA's modules change."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...core.errors import FormatError, InputError
from ...core.stream import TensorReader
from ...families._spec import Family
from .modules import LoraModule


class BaseWeights:
    """An open checkpoint, asked for single weights from any thread."""

    def __init__(self, path: Path, family: Family) -> None:
        """Opens the file.

        Raises:
            InputError: it is of another family.
            FormatError: it is damaged.
            StorageError: it cannot be read.
        """
        self.path, self.family = path, family
        self._file = TensorReader(path)
        if not family.detect(self._file.header):
            raise InputError(
                f"{path.name} is no {family.title} checkpoint, which the LoRA was made for; choose another."
            )

    def __enter__(self) -> BaseWeights:
        """Gives itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Closes the file."""
        self._file.close()

    def __call__(self, module: LoraModule) -> Tensor:
        """The weight that a module changes, fp32.

        Raises:
            FormatError: the checkpoint lacks it.
        """
        part = self.family.place_in_file(module.place, self._file.header)
        if part is None:
            raise FormatError(f"{self.path.name} has no layer {module.name}; the LoRA was made for another model.")
        return part.of(self._file.tensor(part.key)).to(torch.float32)
