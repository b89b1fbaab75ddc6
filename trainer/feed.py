"""What the loop is fed with: latents, text states and weights of the batch of any step, from (seed, step) alone."""

from typing import Any

import torch

from ..core import seeds
from ..dataset.batches import Batch, EpochBatches, epoch_batches, steps_per_epoch
from ..dataset.buckets import BucketAssignment
from ..dataset.captions import caption_for
from ..dataset.table import Dataset
from ..dataset.views import View, plain_view
from ..families._spec import Conditioning
from .conditioning import conditioning_of
from .latents import LatentCache
from .texts import Texts


class Feed:
    """The batches of a run; any batch can be made at any time, in any order."""

    def __init__(
        self,
        *,
        dataset: Dataset,
        buckets: BucketAssignment,
        batch_size: int,
        seed: int,
        latents: LatentCache,
        texts: Texts,
        latent_scale: float,
        prior_loss_weight: float,
        device: torch.device,
        takes_sizes: bool = False,
    ) -> None:
        """Binds the pictures to a run; ``takes_sizes`` says whether the network is told of their sizes."""
        self.dataset, self.buckets, self.batch_size, self.seed = dataset, buckets, batch_size, seed
        self.cache, self.texts, self.latent_scale, self.device = latents, texts, latent_scale, device
        self.takes_sizes = takes_sizes
        self.batches_per_epoch = steps_per_epoch(dataset, buckets, batch_size)
        weights = dataset.loss_weights(prior_loss_weight)
        self._image_weights = None if weights is None else weights.tolist()
        self._epoch: tuple[int, EpochBatches] | None = None

    def batch(self, index: int) -> Batch:
        """Returns the ``index``-th batch of the run."""
        epoch, number = divmod(index, self.batches_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            batches = epoch_batches(self.dataset, self.buckets, batch_size=self.batch_size, seed=self.seed, epoch=epoch)
            self._epoch = (epoch, batches)
        return self._epoch[1][number]

    def views(self, index: int) -> tuple[View, ...]:
        """Returns how each picture of the batch is seen: scaled, cut, mirrored."""
        batch = self.batch(index)
        return tuple(
            plain_view(self.buckets[n], self.dataset.focal_point(n), flipped=flip)
            for n, flip in zip(batch.images, batch.flips, strict=True)
        )

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        """Returns scaled latents [b, c, h, w] fp32, freshly drawn from each picture's posterior."""
        batch = self.batch(index)
        pairs = [self.cache.get(n, flipped=flip) for n, flip in zip(batch.images, batch.flips, strict=True)]
        mean = torch.stack([pair[0] for pair in pairs])
        std = torch.stack([pair[1] for pair in pairs])
        noise = torch.randn(mean.shape, generator=seeds.generator(seed, step, f"latents {micro}"))
        return ((mean + std * noise) * self.latent_scale).to(self.device, non_blocking=True)

    def text(self, index: int, *, seed: int, step: int, micro: int) -> Any:
        """Returns the text states of the batch; shuffling and dropout follow the batch's own seeds."""
        return self.texts.states(self.captions(index))

    def captions(self, index: int) -> list[str]:
        """Returns the captions of the batch as they are trained."""
        batch = self.batch(index)
        return [caption_for(self.dataset, n, s) for n, s in zip(batch.images, batch.caption_seeds, strict=True)]

    def weights(self, index: int) -> torch.Tensor | None:
        """Returns the loss weights [b], or None when all are 1."""
        if self._image_weights is None:
            return None
        weights = torch.tensor([self._image_weights[n] for n in self.batch(index).images])
        return weights.to(self.device, non_blocking=True)

    def mask(self, index: int) -> torch.Tensor | None:
        """Returns None: every element of a picture counts the same."""
        return None

    def conditioning(self, index: int) -> Conditioning | None:
        """Returns the sizes and crops of the batch's pictures, or None where the family takes none."""
        if not self.takes_sizes:
            return None
        return conditioning_of(self.views(index), self.device)

    def num_images(self, index: int) -> int:
        """Returns the number of pictures of the batch."""
        return len(self.batch(index))

    def epoch(self, index: int) -> int:
        """Returns the epoch of the batch, counted from 0."""
        return index // self.batches_per_epoch

    def free(self) -> None:
        """Lets go of what is kept in memory, once no batch is asked for any longer."""
        self.cache.free()
        self._epoch = None
