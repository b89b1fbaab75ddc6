"""The VAE, as the cache of latents uses it: several pictures at once where memory allows."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from ..families._spec import Family
from .held import free_device_bytes
from .precision import OutOfMemory

AT_ONCE = 16
"""Most pictures that are encoded at once."""
BYTES_PER_PIXEL = 4096
"""Device memory that encoding takes for a pixel, measured high: a dozen maps of 128 channels in fp32."""
MEMORY_SHARE = 0.25
"""Share of the device's free memory that encoding may take."""

Pair: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Mean and standard deviation [c, h, w] of a picture's latents."""


class PictureEncoder:
    """The VAE, and how many pictures it takes at once.

    On a CPU pictures are encoded one by one: it is as quick, and the same to the bit whatever else is missing.
    """

    def __init__(self, family: Family, vae: Any) -> None:
        """Uses a loaded VAE, on the device where it lies."""
        self.family, self.vae = family, vae
        self.device: torch.device = next(vae.parameters()).device
        self._fitting: dict[tuple[int, ...], int] = {}
        self.most = 1 if self.device.type == "cpu" else AT_ONCE

    def at_once(self, shape: tuple[int, ...]) -> int:
        """Returns how many pictures [height, width, 3] fit into the device's memory at once."""
        if self.device.type != "cuda":
            return self.most
        if shape not in self._fitting:
            fitting = MEMORY_SHARE * free_device_bytes(self.device) / (BYTES_PER_PIXEL * shape[0] * shape[1])
            self._fitting[shape] = max(1, int(fitting))
        return min(self.most, self._fitting[shape])

    def encode(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Pair]:
        """Returns mean and standard deviation of pictures of one size, fp32 on the CPU."""
        if not pictures:
            return []
        try:
            return self._encoded(pictures)
        except OutOfMemory:
            if len(pictures) == 1:
                raise
        # Outside of the handler, which keeps the memory of the attempt alive.
        self.most = half = len(pictures) // 2
        return self.encode(pictures[:half]) + self.encode(pictures[half:])

    def _encoded(self, pictures: Sequence[NDArray[np.uint8]]) -> list[Pair]:
        pixels = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)
        images = pixels.to(device=self.device, dtype=torch.float32)
        with torch.no_grad():
            means, stds = self.family.encode_image(self.vae, images / 127.5 - 1.0)
        means, stds = means.float().cpu(), stds.float().cpu()
        return [(mean.clone(), std.clone()) for mean, std in zip(means, stds, strict=True)]
