"""Near-duplicates: every pair that comparing all would find, quickly, and hashes that survive saving and scaling."""

import io
import time

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.progress import CancelAfter
from atelier_tests.helpers.sick_folder import sketch
from lora_atelier.core.errors import InputError
from lora_atelier.core.progress import Cancelled
from lora_atelier.dataset import duplicates
from lora_atelier.dataset.duplicates import duplicate_groups, field_colours, hamming, near_pairs, perceptual_hash


def related_hashes(count: int = 1200) -> np.ndarray:
    random = np.random.default_rng(3)
    hashes = random.integers(0, 2**64, count, dtype=np.uint64)
    for place in range(count // 2, count):
        flipped = random.choice(64, int(random.integers(0, 13)), replace=False)
        hashes[place] = hashes[place - count // 2] ^ np.uint64(sum(1 << int(bit) for bit in flipped))
    return np.unique(hashes)


@pytest.mark.parametrize("distance", range(12))
def test_all_pairs_that_comparing_all_would_find(distance: int) -> None:
    hashes = related_hashes()
    bits = hamming(hashes[:, None], hashes[None, :])
    expected = np.argwhere(np.triu(bits <= distance, 1))
    first, second, found = near_pairs(hashes, distance)
    assert np.array_equal(np.stack([first, second], axis=1), expected)
    assert np.array_equal(found, bits[first, second])


def test_bits_are_counted_alike_without_numpy_2(monkeypatch: pytest.MonkeyPatch) -> None:
    hashes = related_hashes(100)
    expected = hamming(hashes[:, None], hashes[None, :])
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert np.array_equal(hamming(hashes[:, None], hashes[None, :]), expected)
    assert duplicates._popcount(np.array([0, 2**64 - 1, 5], dtype=np.uint64)).tolist() == [0, 64, 2]


def test_groups_are_chains_of_neighbours() -> None:
    hashes = np.array([0, 2**63, 0b11, 0b1111, 0, 2**40 - 1], dtype=np.uint64)
    (group,) = duplicate_groups(hashes, 2)
    assert group.rows == (0, 1, 2, 3, 4)
    assert group.distance == 2
    assert [group.rows for group in duplicate_groups(hashes, 0)] == [(0, 4)]
    assert duplicate_groups(np.zeros(0, dtype=np.uint64), 6) == []


def test_many_equal_pictures_are_one_group() -> None:
    start = time.process_time()
    (group,) = duplicate_groups(np.zeros(200_000, dtype=np.uint64), 6)
    assert len(group.rows) == 200_000
    assert time.process_time() - start < 5.0


def test_two_hundred_thousand_hashes_in_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 200_000, dtype=np.uint64)
    hashes[-1] = hashes[0] ^ np.uint64(0b1011)
    start = time.process_time()
    (group,) = duplicate_groups(hashes, 6)
    assert group.rows == (0, 199_999)
    assert time.process_time() - start < 15.0


def test_the_hash_survives_scaling_saving_and_light() -> None:
    pictures = [sketch(seed) for seed in range(30)]
    hashes = np.array([perceptual_hash(picture) for picture in pictures], dtype=np.uint64)
    for picture, own in zip(pictures, hashes, strict=True):
        buffer = io.BytesIO()
        picture.resize((333, 333), Image.Resampling.LANCZOS).save(buffer, "JPEG", quality=60)
        for changed in (Image.open(buffer), picture.point(lambda value: round(value * 0.85 + 12))):
            assert hamming(np.uint64(perceptual_hash(changed)), own) <= 6
    apart = hamming(hashes[:, None], hashes[None, :])[np.triu_indices(30, 1)]
    assert apart.min() > 11
    assert perceptual_hash(Image.new("RGB", (64, 64), (10, 20, 30))) == 0


def test_colours_tell_drawings_of_one_shape_apart() -> None:
    hashes, colours = [], []
    for ground, shape in (
        ((120, 70, 50), (250, 130, 20)),
        ((130, 230, 240), (40, 60, 220)),
        ((120, 70, 50), (250, 134, 22)),
    ):
        picture = Image.new("RGB", (96, 96), ground)
        picture.paste(shape, (20, 30, 70, 66))
        hashes.append(perceptual_hash(picture))
        colours.append(list(field_colours(picture)))
    found = duplicate_groups(np.array(hashes, dtype=np.uint64), 11, colours=np.array(colours, dtype=np.uint8))
    assert [group.rows for group in found] == [(0, 2)]


def test_equal_hashes_of_many_colours() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (3000, 48)).astype(np.uint8)
    colours[2999] = colours[7] ^ 1
    found = duplicate_groups(np.zeros(3000, dtype=np.uint64), 6, colours=colours)
    assert [group.rows for group in found] == [(7, 2999)]


def test_distance_is_checked_and_cancel_is_heard() -> None:
    hashes = related_hashes(100)
    with pytest.raises(InputError, match="distance of near-duplicates is 12 bits, allowed is 0 to 11"):
        near_pairs(hashes, 12)
    with pytest.raises(Cancelled):
        near_pairs(hashes, 6, progress=CancelAfter(3))
