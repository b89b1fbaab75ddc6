"""Latents of pictures on disk, as mean and standard deviation."""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.errors import AtelierError, FormatError, StorageError, TrainingError
from ..core.files import ensure_space
from ..core.progress import Progress
from ..core.store import Store
from ..core.tensors import read_tensors, write_tensors
from ..dataset.buckets import Bucket, BucketAssignment
from ..dataset.images import fit_to_bucket, load_row
from ..dataset.table import Dataset
from ..families._spec import Family

LATENTS_QUOTA_BYTES = 32 * 2**30
IN_MEMORY_BYTES = 2 * 2**30
LATENT_FACTOR = 8
LATENT_CACHE_VERSION = 1


def latent_key(
    *,
    content: str,
    vae_identity: str,
    bucket: Bucket,
    flipped: bool,
    crop: tuple[int, int, int, int] | None = None,
    focus: tuple[float, float] | None = None,
) -> str:
    """Returns the cache key of one picture's latents.

    Args:
        content: hash of the picture's file.
        vae_identity: what tells one VAE from another.
        bucket: of the picture, or of its crop.
        flipped: whether it is mirrored.
        crop: part of the picture that is used; None for all of it.
        focus: focal point of the bucket's crop; None for the centre.
    """
    said = (
        f"v{LATENT_CACHE_VERSION}", content, vae_identity, str(bucket.size), str(bucket.resized),
        str(bucket.crop_at(focus)), "flipped" if flipped else "plain", *(() if crop is None else (str(crop),)),
    )  # fmt: skip
    return hashlib.sha256("|".join(said).encode("utf-8")).hexdigest() + ".safetensors"


class LatentCache:
    """Latents of the pictures of a data set, as mean and standard deviation, unscaled.

    A picture that may be flipped has a second entry made from the flipped picture.
    """

    def __init__(
        self,
        folder: Path,
        dataset: Dataset,
        *,
        buckets: BucketAssignment,
        contents: Sequence[str],
        vae_identity: str,
        flips: Sequence[bool],
    ) -> None:
        """Knows the keys; nothing is read or made yet.

        Args:
            folder: of the cache.
            dataset: the pictures.
            buckets: bucket of every picture.
            contents: content hash of every picture.
            vae_identity: what tells one VAE from another.
            flips: whether a picture may be flipped.
        """
        self.dataset = dataset
        self.buckets = buckets
        self.entries: list[tuple[int, bool]] = [
            (number, flipped)
            for number in range(len(dataset))
            for flipped in ((False, True) if flips[number] else (False,))
        ]
        self.keys = {
            (number, flipped): latent_key(
                content=contents[number],
                vae_identity=vae_identity,
                bucket=buckets[number],
                flipped=flipped,
                crop=dataset.crop(number),
                focus=dataset.focal_point(number),
            )
            for number, flipped in self.entries
        }
        self.total_bytes = sum(
            2 * 4 * 4 * (buckets[n].width // LATENT_FACTOR) * (buckets[n].height // LATENT_FACTOR) + 256
            for n, _ in self.entries
        )
        self.store = Store(folder, max(LATENTS_QUOTA_BYTES, 2 * self.total_bytes))
        self._held: dict[tuple[int, bool], tuple[torch.Tensor, torch.Tensor]] = {}
        self._held_bytes = 0

    def missing(self) -> list[tuple[int, bool]]:
        """Returns the (picture, flipped) whose latents are not in the cache."""
        return [entry for entry in self.entries if self.store.path(self.keys[entry]) is None]

    def fill(self, family: Family, load_vae: Callable[[], Any], progress: Progress) -> int:
        """Encodes what is missing, one picture at a time, and returns how many were encoded.

        Args:
            family: encodes pictures.
            load_vae: gives the VAE (fp32) on the training device; called only if something is missing.
            progress: may cancel; what is done stays.

        Raises:
            StorageError: the cache cannot be written.
            TrainingError: the VAE gave values that are not finite.
        """
        missing = self.missing()
        if not missing:
            return 0
        ensure_space(self.store.folder, self.total_bytes * len(missing) // len(self.entries))
        vae = load_vae()
        device = next(vae.parameters()).device
        for done, (number, flipped) in enumerate(missing):
            progress.update(done, len(missing), "encoding pictures")
            mean, std = self._encode(family, vae, number, flipped=flipped, device=device)
            tensors = {"mean": mean, "std": std}
            self.store.put(self.keys[number, flipped], partial(write_tensors, tensors=tensors, metadata={}))
        progress.update(len(missing), len(missing), "encoding pictures")
        return len(missing)

    def _encode(
        self, family: Family, vae: Any, number: int, *, flipped: bool, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        path, focus = self.dataset.path(number), self.dataset.focal_point(number)
        pixels = fit_to_bucket(load_row(self.dataset, number), self.buckets[number], focus).pixels
        if flipped:
            pixels = np.ascontiguousarray(pixels[:, ::-1])
        image = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).to(device=device, dtype=torch.float32)
        with torch.no_grad():
            mean, std = family.encode_image(vae, image / 127.5 - 1.0)
        mean, std = mean[0].float().cpu().contiguous(), std[0].float().cpu().contiguous()
        if not bool(torch.isfinite(mean).all() and torch.isfinite(std).all()):
            raise TrainingError(
                f"The VAE turned the picture {path.name} into values that are not finite: the VAE of this base model "
                "is damaged, or made for another architecture."
            )
        return mean, std

    def get(self, number: int, *, flipped: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns mean and standard deviation [c, h, w] of a picture's latents, fp32 on the CPU.

        Raises:
            StorageError: the entry was removed or damaged since it was made.
        """
        entry = (number, flipped)
        if entry in self._held:
            return self._held[entry]
        path = self.store.path(self.keys[entry])
        if path is None:
            raise StorageError("A latent of the cache was deleted while the run needed it; start the run again.")
        try:
            tensors = read_tensors(path)
        except (AtelierError, OSError) as cause:
            self.store.remove(self.keys[entry])
            raise StorageError(f"A latent of the cache is damaged ({cause}); start the run again.") from cause
        if tensors.keys() != {"mean", "std"}:
            raise FormatError(f"The cache file {path.name} holds no latents; delete the cache folder.")
        pair = (tensors["mean"], tensors["std"])
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in pair)
        if self._held_bytes + size_bytes <= IN_MEMORY_BYTES:
            self._held[entry] = pair
            self._held_bytes += size_bytes
        return pair
