"""Masks in the loss: how much every place of a picture counts, at the size of its latents."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import FormatError, InputError
from ..core.progress import Progress
from ..core.transfer import to_device
from ..dataset.buckets import BucketAssignment
from ..dataset.headers import FILES_AT_ONCE
from ..dataset.images import BadPicture
from ..dataset.masks import ALPHA, load_mask
from ..dataset.table import Dataset
from ..dataset.views import View, plain_view
from ..dataset.words import counted, printable
from .caches import ContentIndex
from .latents import LATENT_FACTOR

MASK_KIND = "latent-mask:1"
SMALLEST_AREA = 0.05
"""Mean of a mask below which a picture's loss is not raised any further when areas are made equal."""
_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class MaskRules:
    """What masks do to the loss.

    Attributes:
        unmasked_weight: what black counts, 0 to 1.
        normalize: whether each picture's loss is divided by the mean of its mask, so that small subjects count as much
            as large ones.
    """

    unmasked_weight: float = 0.0
    normalize: bool = False

    def weights(self, masks: torch.Tensor) -> torch.Tensor:
        """Returns the weight of every element's loss.

        Args:
            masks: uint8 [b, 1, h, w], 255 for white.

        Returns:
            [b, 1, h, w] fp32.

        Source: OneTrainer's masked loss ("unmasked weight", "normalize masked area loss"); grey is blended here, there
        it is cut off below.
        """
        share = masks.float() / 255.0
        weights = self.unmasked_weight + (1.0 - self.unmasked_weight) * share
        if not self.normalize:
            return weights
        return weights / weights.mean(dim=(1, 2, 3), keepdim=True).clamp(min=SMALLEST_AREA)


def latent_mask(layer: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Shrinks a mask to the size of the latents by averaging areas.

    Args:
        layer: uint8 [height, width], multiples of 8 px.

    Returns:
        uint8 [height / 8, width / 8].
    """
    height, width = (side // LATENT_FACTOR for side in layer.shape)
    blocks = layer.reshape(height, LATENT_FACTOR, width, LATENT_FACTOR)
    means = blocks.mean(axis=(1, 3), dtype=np.float64)
    shrunk: NDArray[np.uint8] = np.floor(means + 0.5).astype(np.uint8)
    return shrunk


class LatentMasks:
    """The masks of a data set at the size of its latents, compressed in memory: a few hundred bytes for each."""

    def __init__(
        self,
        dataset: Dataset,
        *,
        buckets: BucketAssignment,
        contents: Sequence[str],
        rules: MaskRules,
        device: torch.device,
    ) -> None:
        """Knows the pictures; nothing is read yet.

        Args:
            dataset: with masks.
            buckets: of the pictures.
            contents: hash of what every mask holds, "" for a picture without one.
            rules: what masks do.
            device: the training device.
        """
        self.dataset, self.buckets, self.contents = dataset, buckets, contents
        self.rules, self.device = rules, device
        self._held: dict[tuple[int, View], bytes] = {}

    def fill(self, index: ContentIndex, progress: Progress) -> list[str]:
        """Reads all masks as they lie over the plain pictures; those read in an earlier run are remembered.

        Args:
            index: remembers.
            progress: shown, and may cancel.

        Returns:
            What a person should know: pictures whose mask is black all over.

        Raises:
            InputError: a mask cannot be read or does not fit its picture, or all of them are black.
        """
        masked = [row for row, content in enumerate(self.contents) if content]
        damaged: list[str] = []
        for start in range(0, len(masked), FILES_AT_ONCE):
            rows = masked[start : start + FILES_AT_ONCE]
            views = [self.plain(row) for row in rows]
            keys = [self._key(row, view) for row, view in zip(rows, views, strict=True)]
            fresh: list[tuple[bytes, bytes]] = []
            for row, view, key, known in zip(rows, views, keys, index.known(MASK_KIND, keys, progress), strict=True):
                packed = known
                if packed is None:
                    progress.update(start + len(fresh), len(masked), "reading masks")
                    try:
                        packed = self._read(row, view)
                    except (BadPicture, FormatError) as refusal:
                        reason = refusal.reason if isinstance(refusal, BadPicture) else str(refusal)
                        damaged.append(f"{printable(self.dataset.shown(row))}: {reason}")
                        continue
                    fresh.append((key, packed))
                self._held[row, view] = packed
            index.remember(MASK_KIND, fresh, progress)
        if damaged:
            raise InputError(
                f"{counted(len(damaged), 'mask')} cannot be used ({_some(damaged)}); repair them and set the masks "
                "again, or take them away with 'Set Masks'."
            )
        return self._black(masked)

    def _black(self, masked: Sequence[int]) -> list[str]:
        if self.rules.unmasked_weight > 0.0:
            return []
        black = [row for row in masked if not self._array(row, self.plain(row)).any()]
        if not black:
            return []
        names = _some([printable(self.dataset.shown(row)) for row in black])
        is_reg = self.dataset.is_reg
        training = {row for row in range(len(self.dataset)) if not is_reg[row]}
        if training <= set(black):
            raise InputError(
                f"The masks of all {len(training)} training pictures are black all over ({names}), so nothing would be "
                "learned: white is what counts; invert them, or raise unmasked_weight."
            )
        return [
            f"{counted(len(black), 'mask')} black all over ({names}): those pictures teach nothing; white is what "
            "counts."
        ]

    def plain(self, row: int) -> View:
        """Returns how a picture is seen without chance."""
        return plain_view(self.buckets[row], self.dataset.focal_point(row))

    def batch(self, images: Sequence[int], views: Sequence[View]) -> torch.Tensor | None:
        """Returns the weight of every element's loss of a batch, [b, 1, h, w] fp32; None where no picture has a mask.

        Args:
            images: places in the data set.
            views: how each is seen.
        """
        if not any(self.contents[number] for number in images):
            return None
        arrays = [self._seen(number, view) for number, view in zip(images, views, strict=True)]
        masks = torch.from_numpy(np.stack(arrays)).unsqueeze(1)
        return self.rules.weights(to_device(masks, self.device))

    def _seen(self, number: int, view: View) -> NDArray[np.uint8]:
        """The mask under a view; white where there is none."""
        if not self.contents[number]:
            width, height = view.size
            return np.full((height // LATENT_FACTOR, width // LATENT_FACTOR), 255, dtype=np.uint8)
        straight = replace(view, flipped=False, tint=None, is_random=False)
        if (number, straight) not in self._held:
            try:
                self._held[number, straight] = self._read(number, straight)
            except BadPicture as damage:
                raise InputError(f"The mask of {printable(self.dataset.shown(number))} is gone: {damage}") from damage
        mask = self._array(number, straight)
        return np.ascontiguousarray(mask[:, ::-1]) if view.flipped else mask

    def _array(self, number: int, view: View) -> NDArray[np.uint8]:
        width, height = view.size
        values = np.frombuffer(zlib.decompress(self._held[number, view]), dtype=np.uint8)
        return values.reshape(height // LATENT_FACTOR, width // LATENT_FACTOR)

    def _read(self, number: int, view: View) -> bytes:
        layer = load_mask(self.dataset, number)
        if layer is None:
            raise FormatError("it has no mask any longer")
        return zlib.compress(latent_mask(np.asarray(view.layer(layer), dtype=np.uint8)).tobytes(), level=6)

    def _key(self, number: int, view: View) -> bytes:
        said = (self.contents[number], view.resized, view.crop, view.size, self.dataset.crop(number))
        return hashlib.blake2b(repr(said).encode("utf-8"), digest_size=16).digest()


def mask_contents(dataset: Dataset, contents: Sequence[str], index: ContentIndex, progress: Progress) -> list[str]:
    """Returns the hash of what every mask holds, "" for a picture without one.

    Args:
        dataset: the pictures.
        contents: hash of every picture's file, which holds its own alpha.
        index: remembers.
        progress: shown, and may cancel.

    Raises:
        InputError: a mask's file is gone or cannot be read.
    """
    if dataset.masks is None:
        return []
    found = [""] * len(dataset)
    for rows in _blocks(len(dataset)):
        masks = {row: dataset.mask(row) for row in rows}
        files = [(row, mask) for row, mask in masks.items() if isinstance(mask, Path)]
        for (row, _), value in zip(files, index.file_hashes([path for _, path in files], progress), strict=True):
            found[row] = value
        for row, mask in masks.items():
            if mask == ALPHA:
                found[row] = f"{ALPHA} {contents[row]}"
    return found


def _blocks(count: int) -> Iterator[range]:
    for start in range(0, count, FILES_AT_ONCE):
        yield range(start, min(start + FILES_AT_ONCE, count))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return "; ".join(names[:_SHOWN]) + more
