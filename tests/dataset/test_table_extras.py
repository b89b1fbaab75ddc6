"""Crops, masks, focal points and weights of a data set."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from atelier_tests.helpers.pictures import make_folder, save_picture
from lora_atelier.core.errors import InputError
from lora_atelier.dataset.buckets import BucketRule, assign_buckets
from lora_atelier.dataset.columns import TextColumn
from lora_atelier.dataset.identity import content_fingerprint
from lora_atelier.dataset.images import BadPicture, fit_to_bucket, load_row
from lora_atelier.dataset.scan import DatasetParams, open_folder


@pytest.fixture
def dataset(tmp_path):
    make_folder(tmp_path, {"1.png": "a, b", "2.png": "c", "3.png": "d"})
    save_picture(tmp_path / "4.png", (300, 200))
    return open_folder(tmp_path, DatasetParams())


def test_a_crop_changes_size_bucket_and_pixels(dataset):
    crops = np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [10, 20, 110, 180]])
    cropped = dataset.with_crops(crops, note="cropped")
    assert (cropped.width_px[3], cropped.height_px[3]) == (100, 160)
    assert cropped.crop(3) == (10, 20, 110, 180)
    assert cropped.crop(0) is None
    assert load_row(cropped, 3).size == (100, 160)
    assert load_row(cropped, 0).size == (dataset.width_px[0], dataset.height_px[0])
    assert cropped.fingerprint() != dataset.fingerprint()
    assert content_fingerprint(cropped) != content_fingerprint(dataset)
    back = cropped.with_crops(np.zeros((4, 4)), note="whole again")
    assert back.fingerprint() == dataset.fingerprint()
    assert cropped.history[-1] == "cropped"


@pytest.mark.parametrize("crop", [(0, 0, 301, 100), (5, 5, 5, 50), (-1, 0, 20, 20)])
def test_a_crop_outside_is_refused(dataset, crop):
    with pytest.raises(InputError, match=r"does not lie in 4.png, which is 300 x 200 px"):
        dataset.with_crops(np.array([(0, 0, 0, 0)] * 3 + [crop]), note="wrong")


def test_a_picture_that_shrank_under_its_crop_is_refused(dataset):
    cropped = dataset.with_crops(np.array([(0, 0, 0, 0)] * 3 + [(200, 100, 300, 200)]), note="c")
    save_picture(dataset.path(3), (100, 100))
    with pytest.raises(BadPicture, match=r"its crop \(200, 100, 300, 200\) lies outside its 100 x 100 px"):
        load_row(cropped, 3)


def test_a_focal_point_moves_the_bucket_crop_as_far_as_the_picture_goes(dataset):
    buckets = assign_buckets(dataset, BucketRule(resolution_px=64, step_px=64, min_px=64, max_px=64))
    bucket = buckets[3]
    assert bucket.crop_at(None) == bucket.crop == (16, 0, 80, 64)
    assert bucket.crop_at((0.0, 0.5)) == (0, 0, 64, 64)
    assert bucket.crop_at((1.0, 0.5))[2] == bucket.resized[0]
    assert bucket.crop_at((0.5, 0.5)) == bucket.crop
    left = Image.new("RGB", (300, 200), "black")
    left.paste("white", (0, 0, 100, 200))
    assert fit_to_bucket(left, bucket, (0.0, 0.5)).pixels[:, 0].mean() == 255
    assert fit_to_bucket(left, bucket, (1.0, 0.5)).pixels.max() == 0


def test_columns_travel_through_take_and_join(dataset):
    full = replace(
        dataset,
        masks=TextColumn.from_strings(["", "alpha", "masks/3.png", ""]),
        focus=np.array([[np.nan, np.nan], [0.1, 0.2], [0.5, 0.5], [1, 1]], dtype=np.float32),
        weights=np.array([1, 2, 3, 4], dtype=np.float32),
    )
    some = full.take([2, 1], note="some")
    assert some.mask(0) == some.subset_of(0).folder / "masks/3.png"
    assert some.mask(1) == "alpha"
    assert some.weights.tolist() == [3, 2]
    assert some.focal_point(0) == (0.5, 0.5)
    both = dataset.joined(full, note="both")
    assert both.weights.tolist() == [1, 1, 1, 1, 1, 2, 3, 4]
    assert both.mask(0) == ""
    assert both.mask(5) == "alpha"
    assert both.focal_point(0) is both.focal_point(4) is None
    assert full.fingerprint() != dataset.fingerprint()


def test_prior_weight_is_part_of_the_fingerprint(dataset):
    changed = dataset.with_subsets([replace(dataset.subsets[0], prior_weight=0.5)], note="less")
    assert changed.fingerprint() != dataset.fingerprint()


def test_tags_of_another_table_are_refused(dataset):
    with pytest.raises(InputError, match="tags of 2 pictures were given for a data set of 4"):
        dataset.with_tag_column(dataset.tags.take(np.array([0, 1])), note="wrong")
    assert dataset.with_tag_column(dataset.tags, note="same").history[-1] == "same"
