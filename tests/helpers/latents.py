"""Latent caches without a VAE."""

from pathlib import Path
from typing import Any

import torch

from lora_atelier.core.index import Index
from lora_atelier.core.progress import SilentProgress
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.table import Dataset
from lora_atelier.dataset.views import ViewRules
from lora_atelier.trainer.caches import ContentIndex
from lora_atelier.trainer.latents import LatentCache

RULE = BucketRule(resolution_px=64, step_px=8, min_px=32, max_px=128)


class FakeFamily:
    """Encodes a picture as its mean colour in every latent pixel; counts."""

    name = "fake"
    value: float | None = None

    def __init__(self) -> None:
        self.num_encoded = 0
        self.batches: list[int] = []

    def encode_image(self, vae: Any, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.num_encoded += len(pixels)
        self.batches.append(len(pixels))
        assert pixels.min() >= -1.0
        assert pixels.max() <= 1.0
        _, _, height, width = pixels.shape
        rows = torch.nn.functional.adaptive_avg_pool2d(pixels, (height // 8, width // 8))
        mean = torch.cat([rows, rows[:, :1]], dim=1)
        if self.value is not None:
            mean = torch.full_like(mean, self.value)
        return mean, mean.abs() + 0.1


def contents_of(dataset: Dataset, folder: Path) -> list[str]:
    return ContentIndex(Index(folder / "index.sqlite")).contents(dataset, SilentProgress()).hashes


def cache_of(
    folder: Path,
    dataset: Dataset,
    *,
    vae: str = "vae",
    contents: list[str] | None = None,
    rules: ViewRules | None = None,
    progress: Any = None,
) -> LatentCache:
    return LatentCache(
        folder,
        dataset,
        buckets=assign_buckets(dataset, RULE),
        contents=contents or contents_of(dataset, folder),
        vae_identity=vae,
        flips=[dataset.subset_of(number).flip for number in range(len(dataset))],
        rules=rules,
        progress=progress,
    )


def fill(cache: LatentCache, family: FakeFamily | None = None, progress: Any = None) -> int:
    return cache.fill(
        family or FakeFamily(),  # type: ignore[arg-type]
        lambda: torch.nn.Linear(1, 1),
        progress or SilentProgress(),
    )
