"""What SDXL is told of a training picture, against kohya's numbers worked out by hand."""

import pytest
import torch

from lora_atelier.dataset.buckets import BucketRule
from lora_atelier.dataset.views import plain_view
from lora_atelier.trainer.conditioning import conditioning_of, crop_top_left

RULE = BucketRule(resolution_px=1024, step_px=64, min_px=256, max_px=2048)


@pytest.mark.parametrize(
    ("source", "bucket", "plain", "flipped"),
    [
        # 832 / 1216 = 0.684 is wider than 2 / 3: fitted 810.67 x 1216, margins 10 at the left, 11.33 at the right
        ((1000, 1500), (832, 1216), (0, 10), (0, 11)),
        # 1152 / 896 = 1.286 is narrower than 4 / 3: fitted 1152 x 864, margin 16 at the top
        ((1600, 1200), (1152, 896), (16, 0), (16, 0)),
        ((1024, 1024), (1024, 1024), (0, 0), (0, 0)),
    ],
)
def test_crops(
    source: tuple[int, int], bucket: tuple[int, int], plain: tuple[int, int], flipped: tuple[int, int]
) -> None:
    found = RULE.assign(*source)
    assert found.size == bucket
    assert crop_top_left(found, flipped=False) == plain
    assert crop_top_left(found, flipped=True) == flipped


def test_a_batch_is_told_source_crop_and_bucket_each_height_first() -> None:
    buckets = [RULE.assign(1000, 1500), RULE.assign(2000, 3000)]
    views = [plain_view(buckets[0]), plain_view(buckets[1], flipped=True)]
    told = conditioning_of(views, torch.device("cpu"))
    assert told.flat().tolist() == [[1500, 1000, 0, 10, 1216, 832], [3000, 2000, 0, 11, 1216, 832]]
    assert told.flat().dtype == torch.int64
