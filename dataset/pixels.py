"""What only decoding tells: damage inside a file, transparency, and the perceptual hash; each picture is decoded once.

Everything is remembered by content in the index, so a pass that was cancelled goes on where it stopped, and a copy or
a renamed file is not decoded again.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..core.index import Index
from ..core.progress import Progress, SilentProgress
from .duplicates import COLOUR_BYTES, field_colours, perceptual_hash
from .headers import CONTENT_KIND, PictureFile, file_key
from .images import BadPicture, content_hash
from .thumbs import WORKERS, Crop, Shrunk, load_small

if TYPE_CHECKING:
    from .table import Dataset

PHASH_KIND = "phash:1"
PIXELS_KIND = "pixels:1"
_HASH_SIDE_PX = 128
_BLOCK = 128
"""Pictures between two transactions; what a cancel can lose."""
_FACTS = struct.Struct(f"<Bf{COLOUR_BYTES}s")


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelFacts:
    """What decoding told about every picture of a data set.

    Attributes:
        hashes: uint64 [pictures], the perceptual hash; 0 where the picture is damaged.
        colours: uint8 [pictures, 48], mean colours of 4 x 4 fields, see ``duplicates.field_colours``.
        transparent: float32 [pictures], share of the picture that is transparent; nan without an alpha channel.
        damaged: Reason by place, for pictures that cannot be decoded.
        decoded: How many were decoded now; the others were known.
    """

    hashes: NDArray[np.uint64]
    colours: NDArray[np.uint8]
    transparent: NDArray[np.float32]
    damaged: dict[int, str]
    decoded: int


@dataclass(frozen=True, kw_only=True)
class _Facts:
    phash: int
    transparent: float
    colours: bytes = bytes(COLOUR_BYTES)
    damage: str = ""


def examine_pixels(dataset: "Dataset", *, index: Index | None = None, progress: Progress | None = None) -> PixelFacts:
    """Decodes the pictures that are not in the index yet, several at once.

    Args:
        dataset: The table.
        index: Where the facts are remembered; without one they are not.
        progress: Told after every picture; may cancel, and what was found out until then is kept.
    """
    progress = progress or SilentProgress()
    hashes = np.zeros(len(dataset), dtype=np.uint64)
    colours = np.zeros((len(dataset), COLOUR_BYTES), dtype=np.uint8)
    transparent = np.full(len(dataset), np.nan, dtype=np.float32)
    damaged: dict[int, str] = {}
    decoded = 0
    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        for start in range(0, len(dataset), _BLOCK):
            rows = range(start, min(start + _BLOCK, len(dataset)))
            for row, facts, fresh in _block(dataset, rows, index, pool, progress):
                hashes[row], transparent[row] = facts.phash, facts.transparent
                colours[row] = np.frombuffer(facts.colours, dtype=np.uint8)
                decoded += fresh
                if facts.damage:
                    damaged[row] = facts.damage
    progress.update(len(dataset), max(1, len(dataset)), "Looking at pixels")
    return PixelFacts(hashes=hashes, colours=colours, transparent=transparent, damaged=damaged, decoded=decoded)


def _block(
    dataset: "Dataset", rows: Sequence[int], index: Index | None, pool: ThreadPoolExecutor, progress: Progress
) -> Iterator[tuple[int, _Facts, bool]]:
    """Facts of some rows, remembered or found now; found ones are written even when the pass is cancelled."""
    keys = _known_keys(dataset, rows, index)
    known = _remembered(keys, index)
    jobs: dict[int, Future[tuple[bytes, _Facts]]] = {}
    fresh: dict[int, tuple[bytes, _Facts]] = {}
    try:
        for row in rows:
            if row not in known:
                jobs[row] = pool.submit(_examine, dataset.path(row), keys.get(row, b""), dataset.crop(row))
        for row in rows:
            progress.update(row, len(dataset), "Looking at pixels")
            if row in jobs:
                fresh[row] = jobs[row].result()
    finally:
        for job in jobs.values():
            job.cancel()
        _remember(dataset, fresh, index)
    for row in rows:
        yield row, known[row] if row in known else fresh[row][1], row not in known


def _examine(path: Path, key: bytes, crop: Crop | None) -> tuple[bytes, _Facts]:
    """The key by content (empty when the file cannot be read) and the facts of one picture."""
    try:
        key = key or _content_key(bytes.fromhex(content_hash(path)), crop)
        small = load_small(path, _HASH_SIDE_PX, crop=crop)
    except BadPicture as refusal:
        return key, _Facts(phash=0, transparent=float("nan"), damage=refusal.reason)
    return key, _facts_of(small)


def _facts_of(small: Shrunk) -> _Facts:
    transparent = float("nan") if small.transparent is None else small.transparent
    return _Facts(phash=perceptual_hash(small.image), transparent=transparent, colours=field_colours(small.image))


def _content_key(digest: bytes, crop: Crop | None) -> bytes:
    return digest if crop is None else digest + struct.pack("<4i", *crop)


def picture_file(dataset: "Dataset", row: int) -> PictureFile:
    """A picture's file as it was when the table was made."""
    return PictureFile(str(dataset.path(row)), int(dataset.size_bytes[row]), int(dataset.mtime_ns[row]))


def _known_keys(dataset: "Dataset", rows: Iterable[int], index: Index | None) -> dict[int, bytes]:
    """Content keys of the rows whose content was hashed before."""
    if index is None:
        return {}
    wanted = list(rows)
    digests = index.get_many(CONTENT_KIND, [file_key(picture_file(dataset, row)) for row in wanted])
    return {
        row: _content_key(digest, dataset.crop(row))
        for row, digest in zip(wanted, digests, strict=True)
        if digest is not None
    }


def _remembered(keys: dict[int, bytes], index: Index | None) -> dict[int, _Facts]:
    if index is None or not keys:
        return {}
    wanted = list(keys.values())
    hashes, facts = index.get_many(PHASH_KIND, wanted), index.get_many(PIXELS_KIND, wanted)
    known: dict[int, _Facts] = {}
    for row, phash, packed in zip(keys, hashes, facts, strict=True):
        if phash is None or packed is None or len(phash) != 8 or len(packed) < _FACTS.size:
            continue
        state, transparent, colours = _FACTS.unpack_from(packed)
        damage = packed[_FACTS.size :].decode("utf-8", "replace") if state else ""
        known[row] = _Facts(phash=int.from_bytes(phash, "big"), transparent=transparent, colours=colours, damage=damage)
    return known


def _remember(dataset: "Dataset", fresh: dict[int, tuple[bytes, _Facts]], index: Index | None) -> None:
    if index is None:
        return
    found = {row: entry for row, entry in fresh.items() if entry[0]}
    index.put_many(CONTENT_KIND, [(file_key(picture_file(dataset, row)), key[:16]) for row, (key, _) in found.items()])
    index.put_many(PHASH_KIND, [(key, facts.phash.to_bytes(8, "big")) for key, facts in found.values()])
    index.put_many(
        PIXELS_KIND,
        [
            (
                key,
                _FACTS.pack(bool(facts.damage), facts.transparent, facts.colours) + facts.damage.encode("utf-8"),
            )
            for key, facts in found.values()
        ],
    )
