"""Near-duplicate pictures: a 64-bit perceptual hash, and all pairs within a Hamming distance without comparing all.

The hash is the sign pattern of the lowest 8 x 8 cosine frequencies of a 32 x 32 grey picture around their median
(pHash; C. Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions", 2010, section 3.2.1). It knows
nothing of colour and little of drawings with one shape on an even ground, so the mean colours of 4 x 4 fields decide
whether two pictures with near hashes are near-duplicates.
Pairs are found by multi-index hashing (M. Norouzi, A. Punjani, D. Fleet, "Fast Exact Search in Hamming Space with
Multi-Index Hashing", 2014): of two hashes at most d bits apart, cut into four parts of 16 bits, one part differs in
at most floor(d / 4) bits, so only hashes that agree nearly in a part are compared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.errors import InputError
from ..core.progress import Progress, SilentProgress

HASH_BITS = 64
MAX_DISTANCE = 11
"""Largest distance searched: beyond it, pictures that have nothing to do with each other begin to match."""

_SIDE_PX = 32
_LUMA = np.array([0.299, 0.587, 0.114])
"""Weights of red, green and blue in brightness (ITU-R BT.601)."""
_KEPT = 8
_PARTS = 4
_PART_BITS = 16
_PART_VALUES = 1 << _PART_BITS
_FLAT = 2.0
_FAINT = 0.01
"""Frequencies weaker than the first, or than this share of the strongest, are rounding and not content."""
_FIELDS = 4
COLOUR_BYTES = 3 * _FIELDS * _FIELDS
MAX_COLOUR_DIFFERENCE = 16.0
"""Mean difference (of 255) of the fields' colours up to which two pictures can be one: light may differ, hues not."""
_MAX_VARIANTS = 64
"""Pictures of one hash and different colours that are compared with each other."""
_PAIRS_AT_ONCE = 1 << 21


@dataclass(frozen=True, kw_only=True)
class DuplicateGroup:
    """Pictures that look alike, each near at least one other of the group.

    Attributes:
        rows: Places in the data set, ascending.
        distance: Largest number of differing bits between neighbours in the group.
    """

    rows: tuple[int, ...]
    distance: int


def perceptual_hash(image: Image.Image) -> int:
    """The 64-bit hash of a picture; a picture of one colour gives 0.

    Args:
        image: Any size and mode; it is made grey and 32 x 32 px by averaging.
    """
    small = np.asarray(image.convert("RGB").resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX), dtype=np.float64)
    values = small @ _LUMA
    basis = _cosines()
    low = basis @ (values - values.mean()) @ basis.T
    strength = np.abs(low)
    low = np.where(strength < max(_FLAT, _FAINT * float(strength.max())), 0.0, low).reshape(-1)
    bits = low > np.median(low)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def field_colours(image: Image.Image) -> bytes:
    """Mean red, green and blue of 4 x 4 fields of a picture, row by row: 48 bytes."""
    return image.convert("RGB").resize((_FIELDS, _FIELDS), Image.Resampling.BOX).tobytes()


def hamming(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Number of differing bits of two arrays of hashes, uint8 of their broadcast shape."""
    return _popcount(np.bitwise_xor(left, right))


def near_pairs(
    hashes: NDArray[np.uint64], distance: int, *, progress: Progress | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint8]]:
    """All pairs of different hashes at most ``distance`` bits apart.

    Args:
        hashes: uint64 [n], no value twice.
        distance: Greatest number of differing bits, 0 to 11.
        progress: Told after every part; may cancel.

    Returns:
        (first, second, bits): places with first < second, sorted, each pair once, and its distance.

    Raises:
        InputError: The distance is out of range.
    """
    if not 0 <= distance <= MAX_DISTANCE:
        raise InputError(f"the distance of near-duplicates is {distance} bits, allowed is 0 to {MAX_DISTANCE}")
    progress = progress or SilentProgress()
    firsts, seconds = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for part in range(_PARTS):
        progress.check()
        # The generalised pigeonhole: the radii of the parts plus their number exceed the distance.
        radius = (distance - part) // _PARTS
        if radius < 0:
            continue
        for first, second in _candidates(hashes, part, radius):
            progress.check()
            near = hamming(hashes[first], hashes[second]) <= distance
            firsts.append(np.minimum(first[near], second[near]))
            seconds.append(np.maximum(first[near], second[near]))
    count = max(1, len(hashes))
    codes = np.unique(np.concatenate(firsts) * count + np.concatenate(seconds))
    first, second = codes // count, codes % count
    return first, second, hamming(hashes[first], hashes[second])


def duplicate_groups(
    hashes: NDArray[np.uint64],
    distance: int,
    *,
    colours: NDArray[np.uint8] | None = None,
    progress: Progress | None = None,
) -> list[DuplicateGroup]:
    """Groups of pictures that are near-duplicates of one another, largest first.

    Args:
        hashes: uint64 [pictures].
        distance: Greatest number of differing bits of two neighbours, 0 to 11.
        colours: uint8 [pictures, 48], from :func:`field_colours`; without them the hashes alone decide.
        progress: May cancel.

    Raises:
        InputError: The distance is out of range.
    """
    if colours is None:
        colours = np.zeros((len(hashes), COLOUR_BYTES), dtype=np.uint8)
    kinds, inverse = _kinds(hashes, colours)
    of_kind, of_colour = hashes[kinds], colours[kinds].astype(np.int16)
    unique, hash_of_kind = np.unique(of_kind, return_inverse=True)
    near = near_pairs(unique, distance, progress=progress)
    first, second = _kind_pairs(hash_of_kind.reshape(-1), len(unique), near[0], near[1])
    alike = np.zeros(len(first), dtype=bool)
    for start in range(0, len(first), _PAIRS_AT_ONCE // 32):
        part = slice(start, start + _PAIRS_AT_ONCE // 32)
        difference = np.abs(of_colour[first[part]] - of_colour[second[part]]).mean(axis=1)
        alike[part] = difference <= MAX_COLOUR_DIFFERENCE
    first, second = first[alike], second[alike]
    labels = _components(len(kinds), first, second)
    widest = np.zeros(len(kinds), dtype=np.uint8)
    np.maximum.at(widest, labels[first], hamming(of_kind[first], of_kind[second]))
    of_row = labels[inverse]
    order = np.argsort(of_row, kind="stable")
    _, starts, sizes = np.unique(of_row[order], return_index=True, return_counts=True)
    found = [
        DuplicateGroup(rows=tuple(order[start : start + size].tolist()), distance=int(widest[of_row[order[start]]]))
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True)
        if size > 1
    ]
    return sorted(found, key=lambda group: (-len(group.rows), group.rows))


def _kinds(hashes: NDArray[np.uint64], colours: NDArray[np.uint8]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """One row of each combination of hash and colours, sorted by them, and every row's place among those."""
    joined = np.concatenate([hashes.astype(">u8")[:, None].view(np.uint8).reshape(-1, 8), colours], axis=1)
    keys = np.ascontiguousarray(joined).view(np.dtype((np.void, joined.shape[1]))).reshape(-1)
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return first.astype(np.int64), inverse.reshape(-1).astype(np.int64)


def _kind_pairs(
    hash_of_kind: NDArray[np.int64], num_hashes: int, first: NDArray[np.int64], second: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of kinds whose hashes are near or equal. Kinds are sorted by hash, then colour."""
    counts = np.bincount(hash_of_kind, minlength=num_hashes).astype(np.int64)
    starts = np.cumsum(counts) - counts
    lefts, rights = [], []
    for step in range(1, min(_MAX_VARIANTS, int(counts.max(initial=1)))):  # equal hashes, other colours
        place = np.flatnonzero(hash_of_kind[step:] == hash_of_kind[:-step])
        lefts.append(place)
        rights.append(place + step)
    limited = np.minimum(counts, _MAX_VARIANTS)
    sizes = limited[first] * limited[second]
    pair = np.repeat(np.arange(len(first)), sizes)
    inside = np.arange(len(pair)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    lefts.append(starts[first[pair]] + inside // limited[second[pair]])
    rights.append(starts[second[pair]] + inside % limited[second[pair]])
    return np.concatenate(lefts).astype(np.int64), np.concatenate(rights).astype(np.int64)


def _cosines() -> NDArray[np.float64]:
    """The eight lowest rows of the orthonormal type-II cosine transform, float64 [8, 32]."""
    frequency = np.arange(_KEPT)[:, None]
    place = np.arange(_SIDE_PX)[None, :]
    rows = np.cos(math.pi * frequency * (2 * place + 1) / (2 * _SIDE_PX)) * math.sqrt(2.0 / _SIDE_PX)
    rows[0] /= math.sqrt(2.0)
    return np.asarray(rows, dtype=np.float64)


def _popcount(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.asarray(np.bitwise_count(values), dtype=np.uint8)
    table = np.array([bin(value).count("1") for value in range(256)], dtype=np.uint8)
    halves = np.ascontiguousarray(values).view(np.uint8).reshape(*values.shape, 8)
    return np.asarray(table[halves].sum(axis=-1), dtype=np.uint8)


def _candidates(
    hashes: NDArray[np.uint64], part: int, radius: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of pairs whose 16 bits number ``part`` differ in at most ``radius`` bits, each pair once."""
    keys = ((hashes >> np.uint64(part * _PART_BITS)) & np.uint64(_PART_VALUES - 1)).astype(np.int64)
    order = np.argsort(keys, kind="stable")
    in_order = keys[order]
    counts = np.bincount(keys, minlength=_PART_VALUES)
    starts = np.cumsum(counts) - counts
    place = np.arange(len(keys), dtype=np.int64)
    # Equal keys: every hash with those after it in the same run.
    after = starts[in_order] + counts[in_order] - place - 1
    yield from _expanded(order, place, place + 1, after)
    for bits in range(1, radius + 1):
        for chosen in combinations(range(_PART_BITS), bits):
            mask = sum(1 << bit for bit in chosen)
            lower = np.flatnonzero((in_order & (1 << max(chosen))) == 0)
            partner = in_order[lower] ^ mask
            yield from _expanded(order, lower, starts[partner], counts[partner])


def _expanded(
    order: NDArray[np.int64], places: NDArray[np.int64], starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of each place with a run of others, in blocks of a bounded number of pairs."""
    used = np.flatnonzero(lengths)
    places, starts, lengths = places[used], starts[used], lengths[used]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    for begin in range(0, total, _PAIRS_AT_ONCE):
        number = np.arange(begin, min(begin + _PAIRS_AT_ONCE, total), dtype=np.int64)
        run = np.searchsorted(ends, number, side="right")
        other = starts[run] + number - (ends[run] - lengths[run])
        yield order[places[run]], order[other]


def _components(count: int, first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Smallest member of each element's connected component, by hooking and pointer jumping."""
    labels = np.arange(count, dtype=np.int64)
    while True:
        left, right = labels[first], labels[second]
        apart = left != right
        if not apart.any():
            return labels
        low, high = np.minimum(left[apart], right[apart]), np.maximum(left[apart], right[apart])
        np.minimum.at(labels, high, low)
        while True:
            jumped = labels[labels]
            if np.array_equal(jumped, labels):
                break
            labels = jumped
