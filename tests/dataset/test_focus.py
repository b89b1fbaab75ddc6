"""Focal points: faces, corners and detail; centre and random."""

import random

import numpy as np
import pytest
from PIL import Image, ImageDraw

from lora_atelier.core.errors import InputError
from lora_atelier.core.index import Index
from lora_atelier.dataset.buckets import BucketRule
from lora_atelier.dataset.detect import Found
from lora_atelier.dataset.detect_rows import Boxes
from lora_atelier.dataset.focus import FocusParams, saliency, weighted_points, with_focus
from lora_atelier.dataset.images import fit_to_bucket, load_row
from lora_atelier.dataset.scan import DatasetParams, open_folder

SIZE = (600, 300)


def picture(place, size=SIZE):
    """A flat ground with a star of sharp corners at a place (shares), and fine noise in it."""
    image = Image.new("RGB", size, (120, 130, 140))
    pen = ImageDraw.Draw(image)
    x, y = place[0] * size[0], place[1] * size[1]
    pen.polygon(
        [(x - 40, y - 40), (x, y - 8), (x + 40, y - 40), (x + 8, y), (x + 40, y + 40), (x - 40, y + 40)], fill="red"
    )
    rng = random.Random(1)
    for _ in range(300):
        image.putpixel((int(x + rng.uniform(-30, 30)), int(y + rng.uniform(-30, 30))), (rng.randint(0, 255),) * 3)
    return image


PLACES = ((0.2, 0.5), (0.8, 0.4), (0.5, 0.5))


@pytest.fixture
def dataset(tmp_path):
    (tmp_path / "set").mkdir()
    for number, place in enumerate(PLACES):
        picture(place).save(tmp_path / "set" / f"{number}.png")
    Image.new("RGB", SIZE, (9, 9, 9)).save(tmp_path / "set" / "3.png")
    return open_folder(tmp_path / "set", DatasetParams())


@pytest.mark.parametrize("place", [*PLACES, (0.1, 0.2), (0.9, 0.85)])
def test_corners_and_detail_are_found(place):
    corners, detail = saliency(picture(place))
    assert corners == pytest.approx(place, abs=0.06)
    assert detail == pytest.approx(place, abs=0.06)


def test_a_flat_picture_has_no_point():
    assert np.isnan(saliency(Image.new("RGB", (64, 64), (5, 6, 7)))).all()


def test_points_are_set_and_the_crop_follows(dataset, tmp_path):
    with Index(tmp_path / "index.sqlite") as index:
        result = with_focus(dataset, FocusParams(), index=index)
        again = with_focus(dataset, FocusParams(), index=index)
    assert np.array_equal(result.dataset.focus, again.dataset.focus, equal_nan=True)
    for row, place in enumerate(PLACES):
        assert result.dataset.focal_point(row) == pytest.approx(place, abs=0.06)
    assert result.dataset.focal_point(3) is None
    assert "Focal points for 3 of 4 pictures; 1 have none" in result.report
    assert result.dataset.history[-1] == "crop around a focal point: 3 pictures"
    bucket = BucketRule(resolution_px=256).assign(*SIZE)
    square = BucketRule(resolution_px=256, max_px=256).assign(*SIZE)
    assert square.size == (256, 256), bucket.size
    fitted = fit_to_bucket(load_row(dataset, 0), square, result.dataset.focal_point(0))
    centred = fit_to_bucket(load_row(dataset, 0), square)
    assert fitted.crop[0] == 0
    assert centred.crop[0] > 100
    red = (fitted.pixels[..., 0] > 200) & (fitted.pixels[..., 1] < 60)
    assert red.sum() > 1.3 * ((centred.pixels[..., 0] > 200) & (centred.pixels[..., 1] < 60)).sum()


def test_faces_draw_the_crop(dataset):
    faces = Boxes(
        rows={0: [Found(name="Face", score=0.9, box=(540.0, 0.0, 600.0, 60.0))],
              1: [Found(name="car", score=0.9, box=(0.0, 0.0, 10.0, 10.0))]},
        origin="a test",
    )  # fmt: skip
    only = with_focus(dataset, FocusParams(corner_weight=0, entropy_weight=0), boxes=faces)
    assert only.dataset.focal_point(0) == pytest.approx((0.95, 0.1))
    assert only.dataset.focal_point(1) is None
    both = with_focus(dataset, FocusParams(), boxes=faces)
    assert 0.5 < both.dataset.focal_point(0)[0] < 0.8
    assert "A face on 1 picture; boxes from a test." in both.report


def test_the_mean_leaves_out_what_is_missing():
    nan = np.nan
    centres = np.array([[[0.0, 0.0], [1.0, 1.0]], [[nan, nan], [1.0, 0.5]], [[nan, nan], [nan, nan]]])
    points = weighted_points(centres, np.array([3.0, 1.0]))
    assert points[:2].tolist() == [[0.25, 0.25], [1.0, 0.5]]
    assert np.isnan(points[2]).all()


def test_centre_and_random(dataset):
    random_points = with_focus(dataset, FocusParams(mode="random", seed=3)).dataset
    assert np.array_equal(random_points.focus, with_focus(dataset, FocusParams(mode="random", seed=3)).dataset.focus)
    assert not np.array_equal(
        random_points.focus, with_focus(dataset, FocusParams(mode="random", seed=4)).dataset.focus
    )
    assert ((random_points.focus >= 0) & (random_points.focus <= 1)).all()
    assert with_focus(random_points, FocusParams(mode="centre")).dataset.focus is None


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"face_weight": 0.0, "corner_weight": 0.0, "entropy_weight": 0.0}, "are all 0; give one of them"),
        ({"corner_weight": 0.0, "entropy_weight": 0.0}, "only faces have a weight but no boxes are given"),
    ],
)
def test_weights_that_find_nothing_are_refused(dataset, params, message):
    with pytest.raises(InputError, match=message):
        with_focus(dataset, FocusParams(**params))
