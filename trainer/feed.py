"""What the loop is fed with: latents, text states and weights of the batch of any step, from (seed, step) alone."""

from functools import lru_cache
from typing import Any

import torch

from ..core import seeds
from ..core.ahead import NextAhead
from ..core.transfer import to_device
from ..dataset.batches import KEEP, Batch, EpochBatches, epoch_batches, steps_per_epoch
from ..dataset.buckets import BucketAssignment
from ..dataset.caption_forms import CaptionForms
from ..dataset.table import Dataset
from ..dataset.views import View, variant_shown
from ..families._spec import Conditioning
from .conditioning import conditioning_of
from .encoder import Pair
from .latents import Entry, LatentCache
from .masks import LatentMasks
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
        forms: CaptionForms | None = None,
        small_batches: str = KEEP,
        masks: LatentMasks | None = None,
    ) -> None:
        """Binds the pictures to a run.

        Args:
            dataset: the pictures.
            buckets: of them.
            batch_size: pictures of a batch.
            seed: of the run.
            latents: of the pictures.
            texts: what captions say to the network.
            latent_scale: what the VAE's latents are multiplied by.
            prior_loss_weight: weight of regularisation pictures.
            device: of the training.
            takes_sizes: whether the network is told of the pictures' sizes.
            forms: makes captions; None makes a new form every time.
            small_batches: what becomes of a bucket's last batch.
            masks: of the pictures; None for none.
        """
        self.masks = masks
        self.dataset, self.buckets, self.batch_size, self.seed = dataset, buckets, batch_size, seed
        self.cache, self.texts, self.latent_scale, self.device = latents, texts, latent_scale, device
        self.takes_sizes, self.small_batches = takes_sizes, small_batches
        self.forms = forms or CaptionForms(dataset)
        self._ahead: NextAhead[tuple[torch.Tensor, torch.Tensor]] | None = None
        if device.type == "cuda":
            self._ahead = NextAhead(self._stacked)
        self.batches_per_epoch = steps_per_epoch(dataset, buckets, batch_size)
        weights = dataset.loss_weights(prior_loss_weight)
        self._image_weights = None if weights is None else weights.tolist()
        # Two, for what is read ahead may be of the next epoch already; and safe in threads.
        self._epoch_batches = lru_cache(maxsize=2)(self._made_epoch)

    def batch(self, index: int) -> Batch:
        """Returns the ``index``-th batch of the run."""
        epoch, number = divmod(index, self.batches_per_epoch)
        return self._epoch_batches(epoch)[number]

    def _made_epoch(self, epoch: int) -> EpochBatches:
        return epoch_batches(
            self.dataset,
            self.buckets,
            batch_size=self.batch_size,
            seed=self.seed,
            epoch=epoch,
            small=self.small_batches,
        )

    def entries(self, index: int) -> tuple[Entry, ...]:
        """Returns which latent of each picture of the batch is shown; it follows from the seed and the epoch alone."""
        batch, variants = self.batch(index), self.cache.rules.variants
        return tuple(
            Entry(picture, variant_shown(self.seed, picture, showing, variants), flipped)
            for picture, showing, flipped in zip(batch.images, batch.showings, batch.flips, strict=True)
        )

    def views(self, index: int) -> tuple[View, ...]:
        """Returns how each picture of the batch is seen: scaled, cut, mirrored."""
        return tuple(self.cache.view(entry) for entry in self.entries(index))

    def latents(self, index: int, *, seed: int, step: int, micro: int) -> torch.Tensor:
        """Returns scaled latents [b, c, h, w] fp32, freshly drawn from each picture's posterior."""
        ahead = None if self.cache.is_held else self._ahead
        mean, std = self._stacked(index) if ahead is None else ahead.get(index)
        noise = torch.randn(mean.shape, generator=seeds.generator(seed, step, f"latents {micro}"))
        if mean.device.type == "cpu":
            return to_device((mean + std * noise) * self.latent_scale, self.device)
        return (mean + std * to_device(noise, self.device)) * self.latent_scale

    def _stacked(self, index: int) -> Pair:
        pairs = [self.cache.get(entry.picture, entry.variant, flipped=entry.flipped) for entry in self.entries(index)]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])

    def free(self) -> None:
        """Lets go of what is kept in memory and of the thread that reads ahead, once no batch is asked for any more."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None
        self.cache.free()
        self._epoch_batches.cache_clear()

    def text(self, index: int, *, seed: int, step: int, micro: int) -> Any:
        """Returns the text states of the batch; shuffling and dropout follow the batch's own seeds."""
        return self.texts.states(self.captions(index, step=step))

    def captions(self, index: int, *, step: int = 0) -> list[str]:
        """Returns the captions of the batch as they are trained; ``step`` counts where the tags shown grow."""
        batch = self.batch(index)
        return [
            self.forms.text(picture, caption_seed, run_seed=self.seed, showing=showing, step=step)
            for picture, caption_seed, showing in zip(batch.images, batch.caption_seeds, batch.showings, strict=True)
        ]

    def weights(self, index: int) -> torch.Tensor | None:
        """Returns the loss weights [b], or None when all are 1."""
        if self._image_weights is None:
            return None
        weights = torch.tensor([self._image_weights[n] for n in self.batch(index).images])
        return to_device(weights, self.device)

    def mask(self, index: int) -> torch.Tensor | None:
        """Returns the weight of every element's loss [b, 1, h, w], or None where the batch has no masks."""
        return None if self.masks is None else self.masks.batch(self.batch(index).images, self.views(index))

    def regularisation(self, index: int) -> list[int]:
        """Returns which pictures of the batch are for regularisation, by their places in it."""
        images = self.batch(index).images
        return [place for place, number in enumerate(images) if self.dataset.subset_of(number).is_reg]

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
