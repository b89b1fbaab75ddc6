"""Bringing tensors from the host to the device without making the host wait."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def to_device(tensor: "torch.Tensor", device: "torch.device | str") -> "torch.Tensor":
    """Returns the tensor on a device; the host goes on while a copy to a GPU is on its way.

    A copy from ordinary memory makes the host wait, whatever ``non_blocking`` says, for the system may move that
    memory; from pinned memory it does not. Torch keeps pinned memory for later use, so pinning costs a copy within the
    host's memory.

    Args:
        tensor: anywhere; on the device already, it is returned as it is.
        device: where it is wanted.
    """
    import torch

    device = torch.device(device)
    if device.type == "cuda" and tensor.device.type == "cpu" and not tensor.is_pinned():
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
