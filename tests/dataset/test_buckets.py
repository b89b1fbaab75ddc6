import math

import numpy as np
import pytest

from lora_atelier.core.errors import InputError
from lora_atelier.dataset.buckets import (
    BucketAssignment,
    BucketRule,
    assign,
    assign_no_upscale,
    bucket_sizes,
)

# Worked out by hand from the rule: height = min(max, floor(area / width / step) * step), and the transposes.
SIZES_512 = {
    (512, 512),
    *[(576, 448), (640, 384), (704, 320), (768, 320), (832, 256), (896, 256), (960, 256), (1024, 256)],
    *[(448, 576), (384, 640), (320, 704), (320, 768), (256, 832), (256, 896), (256, 960), (256, 1024)],
}
LANDSCAPE_1024 = [
    *[(1088, 960), (1152, 896), (1216, 832), (1280, 768), (1344, 768), (1408, 704), (1472, 704), (1536, 640)],
    *[(1600, 640), (1664, 576), (1728, 576), (1792, 576), (1856, 512), (1920, 512), (1984, 512), (2048, 512)],
    *[(2048, 448), (2048, 384), (2048, 320), (2048, 256)],
]


def test_the_table_for_512_is_the_one_by_hand():
    sizes = bucket_sizes(512, step_px=64, min_px=256, max_px=1024)
    assert set(sizes) == SIZES_512
    assert sizes == sorted(sizes)
    assert len(sizes) == 17


def test_the_table_for_1024_is_the_one_by_hand():
    sizes = bucket_sizes(1024, step_px=64, min_px=256, max_px=2048)
    expected = {(1024, 1024), *LANDSCAPE_1024, *[(height, width) for width, height in LANDSCAPE_1024]}
    assert set(sizes) == expected
    assert len(sizes) == 41


def test_the_default_longest_side_of_1024_cuts_the_table_for_1024():
    sizes = bucket_sizes(1024, step_px=64, min_px=256, max_px=1024)
    sides = range(256, 1025, 64)
    assert set(sizes) == {(side, 1024) for side in sides} | {(1024, side) for side in sides}


def test_the_table_for_pico_has_steps_of_8_from_32():
    sizes = bucket_sizes(128, step_px=8, min_px=32, max_px=256)
    assert (128, 128) in sizes
    assert (160, 96) in sizes  # 16384 / 160 = 102.4 -> 96
    assert (32, 256) in sizes  # 16384 / 32 = 512, at most 256
    assert all(width % 8 == 0 and height % 8 == 0 and width * height <= 128 * 128 for width, height in sizes)


def test_a_resolution_may_be_a_rectangle():
    sizes = bucket_sizes((768, 1024), step_px=64, min_px=256, max_px=1024)
    assert (768, 1024) in sizes
    assert (832, 832) in sizes  # floor(sqrt(786432) / 64) * 64 = floor(886.8 / 64) * 64


@pytest.mark.parametrize(
    ("picture", "size", "resized", "crop"),
    [
        ((512, 512), (512, 512), (512, 512), (0, 0, 512, 512)),
        ((1024, 1024), (512, 512), (512, 512), (0, 0, 512, 512)),
        ((100, 100), (512, 512), (512, 512), (0, 0, 512, 512)),
        # 3:2: |640/384 - 1.5| = 0.167 beats |576/448 - 1.5| = 0.214; width decides, 640 / 1500 * 1000 = 426.7
        ((1500, 1000), (640, 384), (640, 427), (0, 21, 640, 405)),
        ((1000, 1500), (384, 576 + 64), (427, 640), (21, 0, 405, 640)),
        # 16:9: height decides, 384 / 1080 * 1920 = 682.7
        ((1920, 1080), (640, 384), (683, 384), (21, 0, 661, 384)),
        ((896, 256), (896, 256), (896, 256), (0, 0, 896, 256)),
    ],
)
def test_pictures_go_to_the_nearest_ratio_and_cover_it(picture, size, resized, crop):
    bucket = BucketRule(resolution_px=512).assign(*picture)
    assert (bucket.size, bucket.resized, bucket.crop) == (size, resized, crop)
    assert bucket.source == picture


@pytest.mark.parametrize(
    ("picture", "size", "resized"),
    [
        ((300, 500), (256, 448), (300, 500)),  # small enough: kept, cropped to steps
        ((512, 512), (512, 512), (512, 512)),
        ((1500, 1000), (576, 384), (576, 384)),  # sqrt(262144 * 1.5) = 627 -> 576, 576 / 1.5 = 384: both ways exact
        ((1920, 1080), (640, 384), (683, 384)),  # by width 640 x 320 errs by 0.22, by height 640 x 384 by 0.11
        ((40, 200), (64, 320), (64, 320)),  # below one step: the only case that is enlarged
    ],
)
def test_without_upscaling_pictures_keep_their_size_or_shrink_to_the_area(picture, size, resized):
    bucket = assign_no_upscale(*picture, max_area_px=512 * 512, step_px=64)
    assert (bucket.size, bucket.resized) == (size, resized)
    assert bucket == BucketRule(resolution_px=512, upscale=False).assign(*picture)


def test_every_picture_is_covered_by_its_bucket():
    random = np.random.default_rng(7)
    rules = [
        BucketRule(resolution_px=512),
        BucketRule(resolution_px=128, step_px=8, min_px=32, max_px=256),
        BucketRule(resolution_px=512, upscale=False),
        BucketRule(resolution_px=(768, 1024), upscale=False, max_px=1024),
    ]
    for width, height in random.integers(8, 6000, size=(300, 2)).tolist():
        if max(width, height) > 16 * min(width, height):
            continue
        for rule in rules:
            bucket = rule.assign(width, height)
            left, top, right, bottom = bucket.crop
            assert bucket.size == (right - left, bottom - top)
            assert left >= 0
            assert top >= 0
            assert right <= bucket.resized[0]
            assert bottom <= bucket.resized[1]
            assert bucket.width % rule.step_px == 0
            assert bucket.height % rule.step_px == 0
            assert math.isclose(bucket.resized[0] / width, bucket.scale, abs_tol=1.0 / width)


def test_the_first_of_equally_near_sizes_is_taken():
    assert assign(100, 100, [(64, 128), (128, 64), (192, 64)]).size == (64, 128)


def test_an_assignment_keeps_columns_and_reports_them():
    widths = np.array([512, 1500, 512, 300], dtype=np.int32)
    heights = np.array([512, 1000, 512, 500], dtype=np.int32)
    table = BucketAssignment(BucketRule(resolution_px=512), widths, heights)
    assert len(table) == 4
    assert table.sizes == ((384, 640), (512, 512), (640, 384))
    assert table.index.tolist() == [1, 2, 1, 0]
    assert table[1].size == (640, 384)
    info = table.info(np.array([1, 10, 1, 1]))
    assert info["buckets"]["2"] == {"resolution": [640, 384], "count": 10}
    expected = (10 * abs(640 / 384 - 1.5) + abs(384 / 640 - 0.6)) / 13
    assert math.isclose(info["mean_img_ar_error"], expected)
    assert table.text() == "384 x 640 px: 1\n512 x 512 px: 2\n640 x 384 px: 1"


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"resolution_px": 512, "step_px": 7}, "step 7 px is not allowed"),
        ({"resolution_px": 512, "step_px": 0}, "step 0 px is not allowed"),
        ({"resolution_px": 512, "min_px": 100}, "shortest bucket side 100 px"),
        ({"resolution_px": 128}, "resolution 128 x 128 px does not fit"),
        ({"resolution_px": 2048}, "resolution 2048 x 2048 px does not fit"),
        ({"resolution_px": 512, "max_px": 1000}, "longest side be a multiple"),
    ],
)
def test_numbers_that_do_not_fit_together_are_refused(numbers, message):
    with pytest.raises(InputError, match=message):
        BucketRule(**numbers)


def test_a_picture_without_pixels_is_refused():
    with pytest.raises(InputError, match="0 x 5 px has no pixels"):
        BucketRule(resolution_px=512).assign(0, 5)
