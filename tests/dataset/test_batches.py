from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.dataset.batches import effective_repeats, epoch_batches, steps_per_epoch
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.columns import TagColumn, TextColumn
from lora_atelier.dataset.table import Dataset, Subset

RULE = BucketRule(resolution_px=128, step_px=8, min_px=32, max_px=256)


def table(*parts: tuple[int, list[tuple[int, int]], dict[str, object]]) -> Dataset:
    """A table from (repeats, picture sizes, options) per subset; nothing lies on disk."""
    sizes = [size for _, part, _ in parts for size in part]
    index = [number for number, (_, part, _) in enumerate(parts) for _ in part]
    rows = len(sizes)
    return Dataset(
        root=Path("data"),
        subsets=tuple(Subset(folder=Path(f"data/{n}"), repeats=r, **o) for n, (r, _, o) in enumerate(parts)),
        names=TextColumn.from_strings(f"{row}.png" for row in range(rows)),
        width_px=np.array([width for width, _ in sizes], dtype=np.int32),
        height_px=np.array([height for _, height in sizes], dtype=np.int32),
        size_bytes=np.zeros(rows, dtype=np.int64),
        mtime_ns=np.zeros(rows, dtype=np.int64),
        subset_index=np.array(index, dtype=np.int32),
        caption_source=np.ones(rows, dtype=np.uint8),
        tags=TagColumn.from_rows([f"tag {row}"] for row in range(rows)),
        layout="made by hand",
    )


def reference_repeats(repeats: list[int], reg_repeats: list[int]) -> list[int]:
    """Kohya's rule, written plainly: registers reg pictures one by one, then adds one each around and around."""
    wanted, counts, total, first = sum(repeats), [0] * len(reg_repeats), 0, True
    while total < wanted:
        for place, own in enumerate(reg_repeats):
            added = own if first else 1
            counts[place] += added
            total += added
            if total >= wanted:
                break
        first = False
    return counts


SQUARE, WIDE, TALL = (128, 128), (192, 96), (96, 192)


def test_every_picture_comes_as_often_as_its_repeats():
    dataset = table((3, [SQUARE, WIDE, SQUARE], {}), (1, [TALL, WIDE], {}))
    buckets = assign_buckets(dataset, RULE)
    batches = epoch_batches(dataset, buckets, batch_size=2, seed=1, epoch=0)
    seen = Counter(image for batch in batches for image in batch.images)
    assert seen == {0: 3, 1: 3, 2: 3, 3: 1, 4: 1}
    # square: 6 pictures -> 3 batches; wide: 3 + 1 = 4 -> 2; tall: 1 -> a partial one
    assert len(batches) == steps_per_epoch(dataset, buckets, 2) == 6
    assert sorted(len(batch) for batch in batches) == [1, 2, 2, 2, 2, 2]


def test_a_batch_has_one_bucket():
    sizes = np.random.default_rng(0).integers(64, 300, size=(200, 2)).tolist()
    dataset = table((2, [tuple(size) for size in sizes], {}))
    buckets = assign_buckets(dataset, RULE)
    batches = epoch_batches(dataset, buckets, batch_size=3, seed=9, epoch=4)
    for batch in batches:
        assert {buckets[image].size for image in batch.images} == {batch.size}
        assert 1 <= len(batch) <= 3
        assert len(batch.flips) == len(batch.caption_seeds) == len(batch)
    partial = Counter(batch.size for batch in batches if len(batch) < 3)
    assert all(count == 1 for count in partial.values())


def test_an_epoch_follows_from_seed_and_epoch_alone():
    dataset = table((5, [SQUARE, WIDE, TALL, SQUARE, WIDE], {"flip": True}))
    buckets = assign_buckets(dataset, RULE)

    def epoch(seed: int, number: int) -> list[object]:
        return list(epoch_batches(dataset, buckets, batch_size=2, seed=seed, epoch=number))

    later_first = (epoch(3, 7), epoch(3, 0))
    assert epoch(3, 0) == later_first[1]
    assert epoch(3, 7) == later_first[0]
    assert epoch(3, 0) != epoch(3, 1)
    assert epoch(3, 0) != epoch(4, 0)


def test_the_order_never_changes_between_versions():
    """A run that is resumed with another numpy or Python must go on with the same pictures."""
    dataset = table((2, [SQUARE, WIDE, SQUARE, SQUARE], {"flip": True}))
    batches = epoch_batches(dataset, assign_buckets(dataset, RULE), batch_size=3, seed=42, epoch=1)
    assert [batch.images for batch in batches] == GOLDEN_IMAGES
    assert batches[1].flips == GOLDEN_FLIPS
    assert batches[1].caption_seeds[0] == GOLDEN_SEED


GOLDEN_IMAGES = [(1, 1), (2, 3, 0), (0, 3, 2)]
GOLDEN_FLIPS = (False, False, True)
GOLDEN_SEED = 6770600042543056228


def test_batches_are_a_sequence():
    dataset = table((4, [SQUARE] * 5, {}))
    batches = epoch_batches(dataset, assign_buckets(dataset, RULE), batch_size=2, seed=0, epoch=0)
    assert batches[-1] == list(batches)[-1]
    assert batches[2:5] == list(batches)[2:5]
    with pytest.raises(IndexError):
        batches[len(batches)]


def test_flips_come_half_the_time_where_asked():
    dataset = table((1000, [SQUARE], {"flip": True}), (1000, [SQUARE], {}))
    batches = epoch_batches(dataset, assign_buckets(dataset, RULE), batch_size=8, seed=0, epoch=0)
    flips = Counter((image, flip) for batch in batches for image, flip in zip(batch.images, batch.flips, strict=True))
    assert 430 < flips[0, True] < 570
    assert flips[1, True] == 0


def test_caption_seeds_differ_and_fit_every_generator():
    dataset = table((2000, [SQUARE], {}))
    batches = epoch_batches(dataset, assign_buckets(dataset, RULE), batch_size=8, seed=0, epoch=0)
    seeds = [seed for batch in batches for seed in batch.caption_seeds]
    assert len(set(seeds)) == 2000
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("train", "reg"),
    [
        ([10, 10, 10], [1, 1]),
        ([10], [1, 1, 1]),
        ([2, 2], [1, 1, 1, 1, 1, 1]),
        ([7], [3, 3, 3, 3]),
        ([5, 1], [1]),
        ([4], [1, 1, 1, 1]),
        ([1], [5]),
        ([100], [2, 2, 3]),
    ],
)
def test_regularisation_follows_kohyas_rule(train, reg):
    parts = [(repeats, [SQUARE], {}) for repeats in train] + [(repeats, [SQUARE], {"is_reg": True}) for repeats in reg]
    dataset = table(*parts)
    assert effective_repeats(dataset).tolist() == [*train, *reference_repeats(train, reg)]


def test_regularisation_pictures_are_as_many_as_training_pictures_after_repeats():
    dataset = table((10, [SQUARE, WIDE, TALL], {}), (1, [SQUARE] * 4, {"is_reg": True}))
    counts = effective_repeats(dataset)
    assert counts[3:].sum() == counts[:3].sum() == 30
    assert counts[3:].tolist() == [8, 8, 7, 7]
    more = table((2, [SQUARE], {}), (1, [SQUARE] * 5, {"is_reg": True}))
    assert effective_repeats(more).tolist() == [2, 1, 1, 0, 0, 0]
    assert "Never used: 3 regularisation pictures" in more.summary()


def test_wrong_input_is_refused():
    dataset = table((1, [SQUARE, SQUARE], {}))
    buckets = assign_buckets(dataset, RULE)
    with pytest.raises(InputError, match="batch size is 0"):
        epoch_batches(dataset, buckets, batch_size=0, seed=0, epoch=0)
    with pytest.raises(InputError, match="buckets were made for 2 pictures, the data set has 1"):
        steps_per_epoch(dataset.take([0], note=""), buckets, 1)
    endless = table((100_000_001, [SQUARE], {}))
    with pytest.raises(InputError, match="lower the repeats"):
        epoch_batches(endless, assign_buckets(endless, RULE), batch_size=1, seed=0, epoch=0)
