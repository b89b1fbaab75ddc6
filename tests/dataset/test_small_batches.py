"""Small batches: kept, filled up or merged away; resolutions; wildcards and forms of captions."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from atelier_tests.helpers.pictures import save_picture
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.batches import (
    KEEP,
    MERGE,
    REPEAT,
    batch_facts,
    batch_sizes,
    effective_repeats,
    epoch_batches,
    steps_per_epoch,
)
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.resolutions import TieredRule, assign_tiers, parse_resolutions, spread
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset

RULE = BucketRule(resolution_px=64, step_px=8, min_px=32, max_px=128)


@pytest.mark.parametrize(
    ("count", "size", "small", "expected"),
    [
        (9, 4, KEEP, [4, 4, 1]),
        (9, 4, REPEAT, [4, 4, 4]),
        (9, 4, MERGE, [3, 3, 3]),
        (5, 4, MERGE, [3, 2]),
        (3, 2, MERGE, [2, 2]),
        (1, 4, MERGE, [1]),
        (1, 4, REPEAT, [4]),
        (8, 4, MERGE, [4, 4]),
        (3, 1, MERGE, [1, 1, 1]),
        (0, 4, REPEAT, []),
        (0, 4, MERGE, []),
    ],
)
def test_sizes_of_batches(count: int, size: int, small: str, expected: list[int]) -> None:
    assert batch_sizes(count, size, small).tolist() == expected


@pytest.fixture
def shapes(tmp_path: Path) -> Dataset:
    """Nine squares, one nearly square, two wide ones, a tall one."""
    folder = tmp_path / "pictures" / "1_x"
    sizes = [*[(64, 64)] * 9, (72, 56), *[(96, 40)] * 2, (40, 96)]
    for number, size in enumerate(sizes):
        save_picture(folder / f"{number:02d}.png", size, shade=number)
    return open_folder(folder.parent, DatasetParams())


def test_filled_up_from_the_own_bucket(shapes: Dataset) -> None:
    buckets = assign_buckets(shapes, RULE)
    batches = list(epoch_batches(shapes, buckets, batch_size=4, seed=1, epoch=2, small=REPEAT))
    assert all(len(batch) == 4 for batch in batches)
    assert len(batches) == steps_per_epoch(shapes, buckets, 4)
    for batch in batches:
        assert {buckets[image].size for image in batch.images} == {batch.size}
    seen = Counter(image for batch in batches for image in batch.images)
    assert set(seen) == set(range(13)), "every picture is shown"
    assert max(seen[image] for image in range(9)) <= 2
    assert seen[12] == 4
    pairs = [pair for batch in batches for pair in zip(batch.images, batch.showings, strict=True)]
    assert len(pairs) == len(set(pairs)), "what is shown again is the next showing, so another variant"
    facts = batch_facts(shapes, buckets, batch_size=4, small=REPEAT)
    assert (facts.partial, facts.alone, facts.images) == (0, 0, 4 * len(batches))
    assert facts.repeated == facts.images - 13


def test_merged_into_the_nearest(shapes: Dataset) -> None:
    buckets = assign_buckets(shapes, RULE)
    merged = buckets.merged(effective_repeats(shapes), 4)
    assert len(merged.sizes) < len(buckets.sizes)
    assert merged[9].size == (64, 64), "the nearly square one goes to the squares"
    assert all(merged[picture].source == buckets[picture].source for picture in range(13))
    counts = dict(zip(merged.sizes, merged.counts(), strict=True))
    assert min(counts.values()) >= 4
    batches = list(epoch_batches(shapes, merged, batch_size=4, seed=1, epoch=0, small=MERGE))
    assert min(len(batch) for batch in batches) >= 2
    assert batch_facts(shapes, merged, batch_size=4, small=MERGE).alone == 0
    assert buckets.merged(effective_repeats(shapes), 1).sizes == buckets.sizes
    alone = buckets.merged(effective_repeats(shapes), 10**6)
    assert alone.sizes == ((64, 64),), "one bucket always stays"


def test_kept_as_it_always_was(shapes: Dataset) -> None:
    buckets = assign_buckets(shapes, RULE)
    facts = batch_facts(shapes, buckets, batch_size=4)
    assert facts.images == 13
    assert facts.repeated == 0
    assert facts.alone >= 2
    assert batch_facts(shapes, buckets, batch_size=1).alone == 0


def test_each_resolution_has_its_own_buckets(shapes: Dataset) -> None:
    rules = [BucketRule(resolution_px=side, step_px=8, min_px=16, max_px=128) for side in (32, 64)]
    twice = spread(shapes, 2)
    buckets = assign_tiers(twice, rules)
    assert len(buckets) == 26
    for picture in range(13):
        small, large = buckets[picture], buckets[picture + 13]
        assert small.width * small.height <= 32 * 32
        assert 32 * 32 < large.width * large.height <= 64 * 64
        assert twice.path(picture) == twice.path(picture + 13)
    assert spread(shapes, 1) is shapes


def test_the_largest_resolution_that_is_filled() -> None:
    rules = tuple(BucketRule(resolution_px=side, step_px=8, min_px=16, max_px=256) for side in (32, 64, 128))
    tiered = TieredRule(rules)
    for size, area in (((20, 20), 32), ((40, 40), 32), ((64, 64), 64), ((100, 100), 64), ((300, 200), 128)):
        bucket = tiered.assign(*size)
        assert bucket.width * bucket.height <= area * area
        assert bucket.width * bucket.height > area * area * 0.7
    kept = TieredRule(tuple(BucketRule(resolution_px=side, step_px=8, upscale=False) for side in (256, 512)))
    assert kept.assign(100, 100).size == (96, 96), "without enlarging, a small picture keeps its size"


@pytest.mark.parametrize("text", ["", "  ", "768", "768, 1024", "768px;1024PX", "768\n1024"])
def test_resolutions_are_read(text: str) -> None:
    assert parse_resolutions(text) == tuple(int(n) for n in ("768", "1024") if n in text)


@pytest.mark.parametrize("text", ["768.5", "-768", "7e2", "²56", "768,768", "100", "16", "9999", "1 2 3"])
def test_resolutions_that_are_none(text: str) -> None:
    with pytest.raises(InputError, match="resolutions_px"):
        parse_resolutions(text)


def test_merging_keeps_pictures_inside_their_buckets(shapes: Dataset) -> None:
    merged = assign_buckets(shapes, RULE).merged(effective_repeats(shapes), 4)
    for picture in range(13):
        bucket = merged[picture]
        assert bucket.resized[0] >= bucket.width
        assert bucket.resized[1] >= bucket.height
        assert np.isclose(bucket.scale * bucket.source[0], bucket.resized[0], atol=1)
