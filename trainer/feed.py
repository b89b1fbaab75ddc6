"""What the loop is fed with: latents, text states and weights of the batch of any step, from (seed, step) alone."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from ..core import seeds
from ..core.progress import Progress
from ..dataset.batches import Batch, EpochBatches, epoch_batches, steps_per_epoch
from ..dataset.buckets import BucketAssignment
from ..dataset.captions import caption_for
from ..dataset.table import Dataset
from ..families._spec import Components, Conditioning, Family, TextState
from .caches import LatentCache
from .conditioning import conditioning_of

TEXT_BYTES = 2 * 2**30


class Texts(Protocol):
    """Turns captions into what the network is told."""

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns the states of a batch of captions."""
        ...


class LiveTexts:
    """Encodes at every step: the text encoder is trained, or the captions are never the same."""

    def __init__(self, family: Family, components: Components, *, clip_skip: int, with_gradients: bool) -> None:
        """Keeps the text encoder; ``with_gradients`` says whether it is trained."""
        self.family, self.components, self.clip_skip = family, components, clip_skip
        self.with_gradients = with_gradients

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns the states of the batch, with gradients where the text encoder is trained."""
        with torch.set_grad_enabled(self.with_gradients):
            return self.family.encode_text(self.components, captions, clip_skip=self.clip_skip)


class KeptTexts:
    """Encodes every caption once, alone, so that a text's states do not depend on the batch it came in."""

    def __init__(self, family: Family, components: Components, *, clip_skip: int) -> None:
        """Keeps the text encoder until ``free``."""
        self.family, self.clip_skip = family, clip_skip
        self.components: Components | None = components
        self._kept: dict[str, TextState] = {}
        self._kept_bytes = 0

    def fill(self, captions: Sequence[str], progress: Progress) -> bool:
        """Encodes all captions and returns whether all could be kept within 2 GiB."""
        distinct = sorted(set(captions))
        for done, caption in enumerate(distinct):
            progress.update(done, len(distinct), "encoding captions")
            self._state(caption)
            if caption not in self._kept:
                return False
        return True

    def free(self) -> None:
        """Lets go of the text encoder; only kept captions can be asked for afterwards."""
        self.components = None

    def states(self, captions: Sequence[str]) -> TextState:
        """Returns states without gradients."""
        states = [self._state(caption) for caption in captions]
        pooled = [state.pooled for state in states if state.pooled is not None]
        return TextState(
            hidden=torch.cat([state.hidden for state in states]), pooled=torch.cat(pooled) if pooled else None
        )

    def _state(self, caption: str) -> TextState:
        if caption in self._kept:
            return self._kept[caption]
        if self.components is None:
            raise RuntimeError(f"the text encoder was freed before the caption {caption!r} was encoded")
        with torch.no_grad():
            state = self.family.encode_text(self.components, [caption], clip_skip=self.clip_skip)
        kept = [tensor for tensor in (state.hidden, state.pooled) if tensor is not None]
        size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in kept)
        if self._kept_bytes + size_bytes <= TEXT_BYTES:
            self._kept[caption] = state
            self._kept_bytes += size_bytes
        return state


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
        batch = self.batch(index)
        return conditioning_of([self.buckets[n] for n in batch.images], batch.flips, self.device)

    def num_images(self, index: int) -> int:
        """Returns the number of pictures of the batch."""
        return len(self.batch(index))

    def epoch(self, index: int) -> int:
        """Returns the epoch of the batch, counted from 0."""
        return index // self.batches_per_epoch
