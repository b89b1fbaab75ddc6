"""What was read from a cache and stays in memory: on the device where all of it fits easily, else beside it."""

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import torch

DEVICE_SHARE = 0.05
"""Share of the device's free memory that one cache may take for good."""


def free_device_bytes(device: torch.device) -> int:
    """Returns how much memory of a CUDA device can be had, what torch keeps for later use included."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0]) + kept


_Key = TypeVar("_Key", bound=Hashable)
Row = Mapping[str, torch.Tensor]


class Held(Generic[_Key]):
    """Rows of tensors by key, up to a number of bytes."""

    def __init__(self, most_bytes: int) -> None:
        """Holds at most ``most_bytes`` in the memory of the host, until :meth:`choose` says otherwise."""
        self.most_bytes = most_bytes
        self.device = torch.device("cpu")
        self._pins = False
        self._rows: dict[_Key, dict[str, torch.Tensor]] = {}
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._rows)

    def choose(self, device: torch.device, total_bytes: int) -> None:
        """Chooses where rows are held that are needed on ``device``.

        Args:
            device: of the training. A CPU has nothing to choose.
            total_bytes: of all rows.
        """
        if device.type != "cuda":
            return
        self.clear()
        if total_bytes <= DEVICE_SHARE * free_device_bytes(device):
            self.device, self.most_bytes = device, total_bytes + total_bytes // 8
        else:
            self._pins = True  # a copy from pinned memory does not make the host wait

    def get(self, key: _Key) -> dict[str, torch.Tensor] | None:
        """Returns a row that is held, or None."""
        return self._rows.get(key)

    def put(self, key: _Key, row: Row) -> dict[str, torch.Tensor] | None:
        """Holds a row if it fits, and returns it as it is held; None if it does not fit."""
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in row.values())
        if self._bytes + size_bytes > self.most_bytes:
            return None
        held = {name: self._placed(tensor) for name, tensor in row.items()}
        self._rows[key] = held
        self._bytes += size_bytes
        return held

    def clear(self) -> None:
        """Lets go of everything."""
        self._rows.clear()
        self._bytes = 0

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._pins and tensor.device.type == "cpu":
            return tensor.pin_memory()
        return tensor if self.device.type == "cpu" else tensor.to(self.device)
