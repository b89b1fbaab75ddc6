"""Caches on disk: content hashes of pictures, and latents as mean and standard deviation."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..core.errors import AtelierError, FormatError, StorageError, TrainingError
from ..core.files import ensure_space, storage_error
from ..core.index import Index
from ..core.progress import Progress
from ..core.store import Store
from ..core.tensors import read_tensors, write_tensors
from ..dataset.buckets import Bucket, BucketAssignment
from ..dataset.headers import CONTENT_KIND, FILES_AT_ONCE, PictureFile, file_key
from ..dataset.images import BadPicture, content_hash, fit_to_bucket, load_image, load_row
from ..dataset.table import Dataset
from ..families._base import Base, base_hash
from ..families._spec import Family

LATENTS_QUOTA_BYTES = 32 * 2**30
IN_MEMORY_BYTES = 2 * 2**30
LATENT_FACTOR = 8
LATENT_CACHE_VERSION = 1
REMEMBER_EVERY_FILES = 64
WHOLE_KIND = "whole:1"
"""Content of pictures that were decoded to their end."""
BASE_KIND = "sha256:1"

_Answer = TypeVar("_Answer")


class Contents(NamedTuple):
    """What the files of a data set hold.

    Attributes:
        hashes: content hash of every picture, "" for a damaged one.
        damaged: why a picture cannot be decoded, by its number.
    """

    hashes: list[str]
    damaged: dict[int, str]


class ContentIndex:
    """Remembers hashes of whole files by path, size and modification time, over runs and for several processes.

    Where the index cannot be used (on some network shares), the hashes are made without it.
    """

    def __init__(self, index: Index | None) -> None:
        """Remembers in ``index``; None remembers nothing."""
        self._index = index

    def contents(self, dataset: Dataset, progress: Progress) -> Contents:
        """Returns the content hash of every picture, and which ones cannot be decoded.

        Only what is not known to be whole is read: new and changed files, and damaged ones, which may be readable
        tomorrow with another library.
        """
        found = Contents(hashes=[], damaged={})
        for start in range(0, len(dataset), FILES_AT_ONCE):
            rows = range(start, min(start + FILES_AT_ONCE, len(dataset)))
            self._read(dataset, rows, found, progress)
        return found

    def _read(self, dataset: Dataset, rows: range, found: Contents, progress: Progress) -> None:
        files = [
            PictureFile(str(dataset.path(row)), int(dataset.size_bytes[row]), int(dataset.mtime_ns[row]))
            for row in rows
        ]
        keys = [file_key(file) for file in files]
        known = self._known(CONTENT_KIND, keys, progress)
        whole = self._known(WHOLE_KIND, [digest or b"" for digest in known], progress)
        fresh: list[tuple[bytes, bytes]] = []
        try:
            for row, key, digest, is_whole in zip(rows, keys, known, whole, strict=True):
                value = digest.hex() if digest is not None and is_whole is not None else None
                if value is None:
                    progress.update(row, len(dataset), "reading pictures")
                    try:
                        value = content_hash(dataset.path(row))
                        load_image(dataset.path(row))
                        fresh.append((key, bytes.fromhex(value)))
                    except BadPicture as damage:
                        value = ""
                        found.damaged[row] = damage.reason
                found.hashes.append(value)
                if len(fresh) >= REMEMBER_EVERY_FILES:
                    self._remember(fresh, progress)
                    fresh = []
        finally:
            self._remember(fresh, progress)

    def base_hash(self, base: Base, progress: Progress) -> str:
        """Returns the SHA-256 of a base model's file; only a new or changed file is read.

        Raises:
            StorageError: the file cannot be read.
        """
        try:
            status = base.path.stat()
        except OSError as cause:
            raise storage_error("read", base.path, cause) from cause
        key = file_key(PictureFile(str(base.path), status.st_size, status.st_mtime_ns))
        (known,) = self._known(BASE_KIND, [key], progress)
        if known is not None:
            return known.hex()
        value = base_hash(base, progress)
        self._asked(lambda index: index.put_many(BASE_KIND, [(key, bytes.fromhex(value))]), progress)
        return value

    def _known(self, kind: str, keys: Sequence[bytes], progress: Progress) -> Sequence[bytes | None]:
        return self._asked(lambda index: index.get_many(kind, keys), progress) or [None] * len(keys)

    def _remember(self, entries: Sequence[tuple[bytes, bytes]], progress: Progress) -> None:
        self._asked(lambda index: index.put_many(CONTENT_KIND, entries), progress)
        self._asked(lambda index: index.put_many(WHOLE_KIND, [(digest, b"1") for _, digest in entries]), progress)

    def _asked(self, ask: Callable[[Index], _Answer], progress: Progress) -> _Answer | None:
        """Asks the index; None once it has failed, which is told."""
        if self._index is None:
            return None
        try:
            return ask(self._index)
        except StorageError as cause:
            self._index = None
            progress.status(f"Hashes are not remembered: {cause}")
            return None


@contextlib.contextmanager
def own_index(cache_dir: Path, progress: Progress) -> Iterator[Index | None]:
    """An index in the cache folder, for a training that is given none; None where it cannot be used, which is told."""
    try:
        index = Index(cache_dir / "index.sqlite", status=progress.status)
    except StorageError as cause:
        progress.status(f"Hashes are not remembered: {cause}")
        yield None
        return
    with index:
        yield index


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
