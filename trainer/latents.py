"""Latents of pictures on disk, as mean and standard deviation, for every variant that a picture may be seen in."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.ahead import done_ahead
from ..core.errors import AtelierError, StorageError, TrainingError
from ..core.files import ensure_space, storage_error
from ..core.progress import Progress, SilentProgress
from ..core.shards import KEY_BYTES, DamagedShard, Shards
from ..core.store import Store
from ..core.tensors import read_tensors
from ..dataset.buckets import BucketAssignment
from ..dataset.images import load_row
from ..dataset.table import Dataset
from ..dataset.views import View, ViewRules
from ..families._spec import Family
from ._lock import locked
from .encoder import AT_ONCE, Pair, PictureEncoder
from .held import Held
from .kohya_latents import KohyaLatents, check_convention

LATENTS_QUOTA_BYTES = 32 * 2**30
IN_MEMORY_BYTES = 2 * 2**30
"""Latents that are kept in the host's memory once they were read."""
LATENT_FACTOR = 8
LATENT_CHANNELS = 4
LATENT_CACHE_VERSION = 1
LATENTS_FOLDER = "latent-shards"
OLD_FOLDER = "latents"
"""Where earlier versions kept one file per picture."""
AHEAD_BYTES = 256 * 2**20
"""Decoded pictures that may wait to be encoded."""
ROW_BYTES = 64
"""A row's key and checksum, rounded up."""


class Entry(NamedTuple):
    """One latent: which picture, which of its variants, and whether it is mirrored."""

    picture: int
    variant: int
    flipped: bool


def latent_key(
    *, content: str, vae_identity: str, view: View, crop: tuple[int, int, int, int] | None = None, made_by: str = ""
) -> str:
    """Returns the cache key of one latent, 64 hexadecimal digits.

    Args:
        content: hash of the picture's file.
        vae_identity: what tells one VAE from another.
        view: how the picture is seen.
        crop: part of the picture that is used; None for all of it.
        made_by: hash of the file it was read from, where it was not made here.
    """
    said = (
        f"v{LATENT_CACHE_VERSION}", content, vae_identity, str(view.size), str(view.resized), str(view.crop),
        "flipped" if view.flipped else "plain", *(() if crop is None else (str(crop),)),
        *(() if view.tint is None else (repr(view.tint),)), *((made_by,) if made_by else ()),
    )  # fmt: skip
    return hashlib.sha256("|".join(said).encode("utf-8")).hexdigest()


def row_bytes(buckets: BucketAssignment) -> NDArray[np.int64]:
    """Returns the bytes that one latent of every picture takes, int64 [pictures]."""
    pixels = buckets.column(lambda bucket: bucket.width * bucket.height)
    return np.asarray(2 * 4 * LATENT_CHANNELS * pixels / LATENT_FACTOR**2 + ROW_BYTES, dtype=np.int64)


class LatentCache:
    """Latents of the pictures of a data set, as mean and standard deviation, unscaled.

    A picture that may be flipped has further entries made from the mirrored picture.
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
        rules: ViewRules | None = None,
        progress: Progress | None = None,
        given: KohyaLatents | None = None,
    ) -> None:
        """Knows the keys, and looks what lies there; nothing is made yet.

        Args:
            folder: of all caches.
            dataset: the pictures.
            buckets: bucket of every picture.
            contents: content hash of every picture.
            vae_identity: what tells one VAE from another.
            flips: whether a picture may be flipped.
            rules: what the variants of a picture differ in; None for one variant, the plain one.
            progress: told of damaged files.
            given: latents that lie beside the pictures; they are taken where they were made as ours are.
        """
        self.dataset, self.buckets, self.contents = dataset, buckets, contents
        self.vae_identity, self.rules = vae_identity, rules or ViewRules()
        self.folder, self._progress = Path(folder), progress or SilentProgress()
        self._flips = np.array(flips, dtype=np.bool_)
        per_picture = self.rules.variants * (1 + self._flips.astype(np.int64))
        self._first: NDArray[np.int64] = np.concatenate([[0], np.cumsum(per_picture)]).astype(np.int64)
        self._row_bytes = row_bytes(buckets)
        self.total_bytes = int((self._row_bytes * per_picture).sum())
        self._given = given or KohyaLatents()
        self.shards = self._opened()
        self._held: Held[int] = Held(IN_MEMORY_BYTES)
        self._refill: Callable[[], int] | None = None

    def __len__(self) -> int:
        return int(self._first[-1])

    def _opened(self) -> Shards:
        shards = Shards(
            self.folder / LATENTS_FOLDER,
            list(self._keys()),
            quota_bytes=max(LATENTS_QUOTA_BYTES, 2 * self.total_bytes),
            status=self._progress.status,
        )
        shards.look()
        return shards

    def entries(self) -> Iterator[Entry]:
        """Yields every latent in the order of their numbers."""
        for picture, flip in enumerate(self._flips.tolist()):
            for variant in range(self.rules.variants):
                yield Entry(picture, variant, False)
                if flip:
                    yield Entry(picture, variant, True)

    def entry(self, number: int) -> Entry:
        """Returns which latent has a number."""
        picture = int(np.searchsorted(self._first, number, side="right")) - 1
        rest = number - int(self._first[picture])
        if self._flips[picture]:
            return Entry(picture, rest // 2, rest % 2 == 1)
        return Entry(picture, rest, False)

    def number(self, picture: int, variant: int, *, flipped: bool) -> int:
        """Returns the number of a latent."""
        step = 2 if self._flips[picture] else 1
        return int(self._first[picture]) + variant * step + int(flipped)

    def view(self, entry: Entry) -> View:
        """Returns how the picture of a latent is seen."""
        return self.rules.view(
            self.buckets[entry.picture],
            self.dataset.focal_point(entry.picture),
            entry.variant,
            content=self.contents[entry.picture],
            flipped=entry.flipped,
        )

    def key(self, entry: Entry) -> str:
        """Returns the key of a latent."""
        return self._key_of(entry.picture, self.view(entry), self._made_by(entry))

    def _key_of(self, picture: int, view: View, made_by: str) -> str:
        return latent_key(
            content=self.contents[picture],
            vae_identity=self.vae_identity,
            view=view,
            crop=self.dataset.crop(picture),
            made_by=made_by,
        )

    def _keys(self) -> Iterator[bytes]:
        """Yields the keys of all entries as shards have them; much quicker than one by one."""
        for picture, flip in enumerate(self._flips.tolist()):
            for variant in range(self.rules.variants):
                view = self.view(Entry(picture, variant, False))
                for shown in (view, view.mirrored()) if flip else (view,):
                    made_by = self._made_by(Entry(picture, variant, shown.flipped))
                    yield bytes.fromhex(self._key_of(picture, shown, made_by))[:KEY_BYTES]

    def _made_by(self, entry: Entry) -> str:
        return self._given.made_by(entry.picture, flipped=entry.flipped) if entry.variant == 0 else ""

    def missing(self) -> list[Entry]:
        """Returns the latents that are not in the cache."""
        return [self.entry(number) for number in self.shards.missing()]

    # --- filling -------------------------------------------------------------------------------------------------

    def fill(self, family: Family, load_vae: Callable[[], Any], progress: Progress) -> int:
        """Encodes what is missing, and returns how many were encoded.

        Args:
            family: encodes pictures.
            load_vae: gives the VAE (fp32) on the training device; called only if something is missing.
            progress: may cancel; what is done stays.

        Raises:
            StorageError: the cache cannot be written.
            TrainingError: the VAE gave values that are not finite.
        """
        self._refill = lambda: self.fill(family, load_vae, progress)
        self.shards.look()
        missing = self.shards.missing()
        if not missing:
            return 0
        needed = self._row_bytes[np.searchsorted(self._first, missing, side="right") - 1]
        ensure_space(self.folder / LATENTS_FOLDER, int(needed.sum()))
        encoder: PictureEncoder | None = None
        if any(self._made_by(self.entry(number)) for number in missing):
            encoder = PictureEncoder(family, load_vae())
            self._take_given(family, encoder, progress)
        self._take_old(self.shards.missing(), progress)
        missing = self.shards.missing()
        if not missing:
            return 0
        encoder = encoder or PictureEncoder(family, load_vae())
        total, done = len(missing), 0
        with self._order(missing) as ordered, self.shards.writing() as put:
            for batch in self._decoded(ordered, encoder):
                progress.update(done, total, "encoding pictures")
                done += len(batch)
                batch = [(number, pixels) for number, pixels in batch if not self.shards.has(number)]
                for (number, _), pair in zip(batch, encoder.encode([pixels for _, pixels in batch]), strict=True):
                    self._check(number, pair)
                    if put(number, {"mean": pair[0], "std": pair[1]}):
                        self.shards.look()
        progress.update(total, total, "encoding pictures")
        return total

    @contextlib.contextmanager
    def _order(self, missing: list[int]) -> Iterator[list[int]]:
        """By bucket, so that batches are full; backwards where another process has begun at the front."""
        pictures = np.searchsorted(self._first, missing, side="right") - 1
        order = np.lexsort((np.array(missing), self.buckets.index[pictures]))
        ordered = np.array(missing)[order].tolist()
        folder = self.folder / LATENTS_FOLDER
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise storage_error("make the folder", folder, cause) from cause
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(locked(folder))
            except StorageError:
                ordered.reverse()
            yield ordered

    def _decoded(self, numbers: list[int], encoder: PictureEncoder) -> Iterator[list[tuple[int, NDArray[np.uint8]]]]:
        """Yields batches of pixels of one size; every picture is decoded once for all its variants."""
        groups: list[list[int]] = []
        for number in numbers:
            picture = self.entry(number).picture
            if groups and len(groups[-1]) < AT_ONCE and self.entry(groups[-1][-1]).picture == picture:
                groups[-1].append(number)
            else:
                groups.append([number])
        batch: list[tuple[int, NDArray[np.uint8]]] = []
        pixels_of = self.buckets.column(lambda bucket: bucket.width * bucket.height)
        group_bytes = 3 * int(pixels_of.max()) * min(AT_ONCE, 2 * self.rules.variants)
        most_ahead = max(1, min(2 * AT_ONCE, AHEAD_BYTES // group_bytes))
        for found in done_ahead(self._pixels, groups, most_ahead=most_ahead):
            for number, pixels in found:
                if batch and (batch[0][1].shape != pixels.shape or len(batch) >= encoder.at_once(pixels.shape)):
                    yield batch
                    batch = []
                batch.append((number, pixels))
        if batch:
            yield batch

    def _pixels(self, numbers: list[int]) -> list[tuple[int, NDArray[np.uint8]]]:
        if all(self.shards.has(number) for number in numbers):  # another process was quicker
            return []
        image = load_row(self.dataset, self.entry(numbers[0]).picture)
        return [(number, self.view(self.entry(number)).pixels(image)) for number in numbers]

    def _check(self, number: int, pair: Pair) -> None:
        if not bool(torch.isfinite(pair[0]).all() and torch.isfinite(pair[1]).all()):
            raise TrainingError(
                f"The VAE turned the picture {self.dataset.path(self.entry(number).picture).name} into values that are "
                "not finite: the VAE of this base model is damaged, or made for another architecture."
            )

    def _take_old(self, missing: Sequence[int], progress: Progress) -> None:
        """Moves what earlier versions left, one file per picture, into shards; what does not fit is passed over."""
        if not (self.folder / OLD_FOLDER).is_dir():
            return
        quota_bytes = max(0, LATENTS_QUOTA_BYTES - self.shards.store.total_bytes())
        old = Store(self.folder / OLD_FOLDER, quota_bytes)
        moved: list[str] = []
        with self.shards.writing() as put:
            for done, number in enumerate(missing):
                entry = self.entry(number)
                key = f"{self.key(entry)}.safetensors"
                path = old.path(key) if entry.variant == 0 else None
                if path is None:
                    continue
                progress.update(done, len(missing), "moving old latents")
                moved.append(key)
                try:
                    tensors = read_tensors(path)
                except AtelierError as damage:
                    progress.status(f"An old file of the cache is damaged, and what it held is made again ({damage}).")
                    continue
                if self._fits(entry, tensors):
                    put(number, tensors)
        for key in moved:
            old.remove(key)
        old.evict()

    def _take_given(self, family: Family, encoder: PictureEncoder, progress: Progress) -> None:
        """Takes the latents that lie beside the pictures, if they were made as ours are."""

        def made_here(picture: int) -> torch.Tensor:
            pixels = self.view(Entry(picture, 0, False)).pixels(load_row(self.dataset, picture))
            return encoder.encode([pixels])[0][0]

        check_convention(self._given, self.buckets, made_here, family)
        progress.status(self._given.text())
        if not self._given.paths:
            self.shards = self._opened()  # under the keys of latents that are made here
            return
        missing = self.shards.missing()
        with self.shards.writing() as put:
            for done, number in enumerate(missing):
                entry = self.entry(number)
                if self._made_by(entry):
                    progress.update(done, len(missing), "reading kohya's latents")
                    mean = torch.from_numpy(self._given.read(entry.picture, self.buckets, flipped=entry.flipped))
                    put(number, {"mean": mean, "std": torch.zeros_like(mean)})

    def _fits(self, entry: Entry, tensors: dict[str, torch.Tensor]) -> bool:
        width, height = self.buckets[entry.picture].size
        shape = (LATENT_CHANNELS, height // LATENT_FACTOR, width // LATENT_FACTOR)
        return tensors.keys() == {"mean", "std"} and all(
            tuple(tensor.shape) == shape and tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all())
            for tensor in tensors.values()
        )

    # --- reading -------------------------------------------------------------------------------------------------

    def hold_on(self, device: torch.device) -> None:
        """Chooses where latents are kept once they were read: on the device if all fit easily, else in memory."""
        self._held.choose(device, self.total_bytes)

    @property
    def is_held(self) -> bool:
        """Whether every latent is kept where it is needed, so that nothing need be read ahead."""
        return len(self._held) == len(self)

    def free(self) -> None:
        """Lets go of what is held in memory."""
        self._held.clear()

    def get(self, picture: int, variant: int = 0, *, flipped: bool) -> Pair:
        """Returns mean and standard deviation [c, h, w] of a picture's latents, fp32.

        A damaged file of the cache is told, and what it held is encoded again.

        Raises:
            StorageError: the cache cannot be read, nor made again.
        """
        number = self.number(picture, variant, flipped=flipped)
        row = self._held.get(number)
        if row is None:
            row = self._read(number)
            row = self._held.put(number, row) or row
        return row["mean"], row["std"]

    def _read(self, number: int) -> dict[str, torch.Tensor]:
        try:
            return self.shards.read(number)
        except DamagedShard as damage:
            if self._refill is None:
                raise StorageError(f"{damage}; start the run again") from damage
            self._refill()
            try:
                return self.shards.read(number)
            except DamagedShard as again:
                raise StorageError(f"{again}, twice over: the disk of the cache folder may be failing") from again
