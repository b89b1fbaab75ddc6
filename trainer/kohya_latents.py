"""Latents that kohya's scripts left beside the pictures, read where they fit.

Files are ``NAME_WWWWxHHHH_sd.npz`` (or ``_sdxl.npz``; older ones ``NAME.npz``) with one draw of the unscaled latents in
fp32 as ``latents`` (or ``latents_HHxWW``, numbered by latent size), ``original_size`` (width, height), and
``latents_flipped`` where mirroring was on. Source: ``library/strategy_sd.py`` of kohya-ss/sd-scripts.
"""

import hashlib
import io
import lzma
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..core.errors import StorageError
from ..core.progress import Progress
from ..dataset.buckets import Bucket
from ..dataset.table import Dataset
from ..families._spec import Family

SUFFIXES = {"sdxl": "_sdxl.npz"}
"""Ending of a family's files; all others share ``_sd.npz``."""
MAX_FILE_BYTES = 64 * 2**20
SPARE_BYTES = 4096
"""What an array's header may take."""
PROBES = 3
"""Pictures that are encoded here as well, to see whether the files come from the same kind of VAE."""
SAME_WITHIN, LIKE_ABOVE = 0.25, 0.8
UNREADABLE = (
    OSError,
    EOFError,
    KeyError,
    NotImplementedError,
    RuntimeError,
    MemoryError,  # the array's own header claims more than there is
    SyntaxError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
"""What unpacking a damaged file raises beside ValueError."""


class Buckets(Protocol):
    """The bucket of every picture."""

    def __getitem__(self, picture: int) -> Bucket:
        """The bucket of a picture."""
        ...


class UnfitFile(Exception):
    """A file's latents cannot be used; the text says why."""


@dataclass(frozen=True)
class Found:
    """A file that fits.

    Attributes:
        sha256: of the file.
        latents: fp32 [4, h, w], unscaled.
        flipped: of the mirrored picture, None where the file has none.
    """

    sha256: str
    latents: NDArray[np.float32]
    flipped: NDArray[np.float32] | None


@dataclass
class KohyaLatents:
    """The usable files of a data set.

    Attributes:
        paths: by picture, with the file's hash.
        mirrored: pictures whose file has the mirrored latents too.
        refused: how many files were not used, by reason.
    """

    paths: dict[int, tuple[Path, str]] = field(default_factory=dict)
    mirrored: set[int] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)

    def made_by(self, picture: int, *, flipped: bool) -> str:
        """Returns the hash of the file that a plain latent is taken from, "" for none."""
        has = picture in self.paths and (not flipped or picture in self.mirrored)
        return self.paths[picture][1] if has else ""

    def read(self, picture: int, buckets: Buckets, *, flipped: bool) -> NDArray[np.float32]:
        """Reads the latents of a picture, fp32 [4, h, w].

        Raises:
            StorageError: the file changed since it was looked at.
        """
        path, sha256 = self.paths[picture]
        try:
            found = read_file(path, buckets[picture])
        except UnfitFile as refusal:
            raise StorageError(
                f"{path.name} changed while the run began ({refusal}); start the run again."
            ) from refusal
        latents = found.flipped if flipped else found.latents
        if found.sha256 != sha256 or latents is None:
            raise StorageError(f"{path.name} changed while the run began; start the run again.")
        return latents

    def digest(self) -> str:
        """Returns a hash over which picture has which file, for a run's key."""
        said = ";".join(f"{picture}:{sha256}" for picture, (_, sha256) in sorted(self.paths.items()))
        return hashlib.sha256(said.encode("ascii")).hexdigest()

    def text(self) -> str:
        """Returns what was found in one sentence."""
        refused = "".join(f"; {count} not used: {reason}" for reason, count in self.refused.most_common())
        return f"Latents of kohya's scripts: {len(self.paths)} taken{refused}."


def find_files(
    dataset: Dataset, buckets: Buckets, contents: Sequence[str], family: Family, progress: Progress
) -> KohyaLatents:
    """Looks for the file of every picture, and whether it fits; nothing is encoded.

    Args:
        dataset: the pictures.
        buckets: of each.
        contents: unused hashes "" mark pictures that are left out.
        family: whose files are wanted.
        progress: may cancel.
    """
    found = KohyaLatents()
    for picture in range(len(dataset)):
        if picture % 64 == 0:
            progress.update(picture, len(dataset), "looking for kohya's latents")
        path = _file_of(dataset, picture, family)
        if path is None or not contents[picture]:
            continue
        try:
            if dataset.crop(picture) is not None or dataset.focal_point(picture) is not None:
                raise UnfitFile("the data set cuts these pictures elsewhere")
            fits = read_file(path, buckets[picture])
        except UnfitFile as refusal:
            found.refused[str(refusal)] += 1
            continue
        found.paths[picture] = (path, fits.sha256)
        if fits.flipped is not None:
            found.mirrored.add(picture)
    return found


def read_file(path: Path, bucket: Bucket) -> Found:
    """Reads a file.

    Raises:
        UnfitFile: it is damaged, holds something else, or latents of another size.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UnfitFile("the file is far too large for one picture's latents")
        raw = path.read_bytes()
        if raw.startswith(b"\x80"):
            raise UnfitFile("it holds pickled objects, which are never read")
        opened = np.load(io.BytesIO(raw), allow_pickle=False)
        if not isinstance(opened, np.lib.npyio.NpzFile):
            raise UnfitFile("it is a single array, not a file of kohya's scripts")
        with opened as arrays:
            shape = (4, bucket.height // 8, bucket.width // 8)
            latents = _array(arrays, "latents", shape)
            if latents is None:
                raise UnfitFile("it has no latents of the size of the picture's bucket")
            size = _array(arrays, "original_size", (2,), numbered=False)
            if size is not None and tuple(int(side) for side in size) != bucket.source:
                raise UnfitFile("they were made of a picture of another size")
            return Found(hashlib.sha256(raw).hexdigest(), latents, _array(arrays, "latents_flipped", shape))
    except UnfitFile:
        raise
    except ValueError as cause:
        is_object = "Object arrays" in str(cause)
        why = "it holds pickled objects, which are never read" if is_object else "the file is damaged"
        raise UnfitFile(why) from cause
    except UNREADABLE as cause:
        raise UnfitFile("the file is damaged") from cause


def _array(
    arrays: "np.lib.npyio.NpzFile", name: str, shape: tuple[int, ...], *, numbered: bool = True
) -> NDArray[np.float32] | None:
    """One array, or None where there is none of that size."""
    names = [f"{name}_{shape[-2]}x{shape[-1]}", name] if numbered else [name]
    for key in names:
        if key not in arrays.files:
            continue
        # Looked at before it is unpacked: a small file may claim to hold anything.
        claimed_bytes = 0 if arrays.zip is None else arrays.zip.getinfo(f"{key}.npy").file_size
        if claimed_bytes > 8 * int(np.prod(shape)) + SPARE_BYTES:
            raise UnfitFile("it has no latents of the size of the picture's bucket")
        value = arrays[key]
        if not isinstance(value, np.ndarray):
            raise UnfitFile("the file is damaged")
        if value.dtype.kind not in "fiu":
            raise UnfitFile("its numbers are of a wrong kind")
        if value.shape == (1, *shape):
            value = value[0]
        if value.shape != shape:
            raise UnfitFile("it has no latents of the size of the picture's bucket")
        if not np.isfinite(value).all():
            raise UnfitFile("it holds values that are not finite")
        return np.ascontiguousarray(value, dtype=np.float32)
    return None


def _file_of(dataset: Dataset, picture: int, family: Family) -> Path | None:
    """The file beside a picture: of the family and size, else the older name."""
    path = dataset.path(picture)
    width, height = dataset.full_size(picture)
    ending = SUFFIXES.get(family.name, "_sd.npz")
    for name in (f"{path.stem}_{width:04d}x{height:04d}{ending}", f"{path.stem}.npz"):
        candidate = path.with_name(name)
        if candidate.is_file():
            return candidate
    return None


def same_convention(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]], family: Family) -> str:
    """Compares latents of files with those made here; returns why they cannot be used, "" if they can.

    Args:
        pairs: of the same pictures, from the file and made here.
        family: whose scale the files must not have been multiplied by.
    """
    theirs = torch.cat([pair[0].flatten() for pair in pairs]).double()
    ours = torch.cat([pair[1].flatten() for pair in pairs]).double()
    product, square = float(theirs @ ours), float(ours @ ours)
    length = float(theirs @ theirs)
    if square <= 0.0 or length <= 0.0 or product / (length * square) ** 0.5 < LIKE_ABOVE:
        return "they were made with another VAE"
    factor = product / square
    if abs(factor - 1.0) <= SAME_WITHIN:
        return ""
    if abs(factor / family.latent_scale - 1.0) <= SAME_WITHIN:
        return "they are multiplied by the VAE's scale, which kohya's scripts do not do"
    return "they were made with another VAE"


def check_convention(
    found: KohyaLatents,
    buckets: Buckets,
    made_here: Callable[[int], torch.Tensor],
    family: Family,
) -> None:
    """Encodes a few of the pictures here as well, and refuses all files where they differ too much.

    Args:
        found: changed in place.
        buckets: of every picture.
        made_here: gives a picture's mean latents.
        family: of the base.
    """
    pictures = sorted(found.paths)
    probes = pictures[:: max(1, len(pictures) // PROBES)][:PROBES]
    if not probes:
        return
    pairs = [(torch.from_numpy(found.read(picture, buckets, flipped=False)), made_here(picture)) for picture in probes]
    why = same_convention(pairs, family)
    if why:
        found.refused[why] += len(found.paths)
        found.paths.clear()
        found.mirrored.clear()
