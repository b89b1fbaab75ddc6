"""Views of pictures: crops within the scaled picture, layers in the same place, colours, which variant when."""

import colorsys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from lora_atelier.core.errors import FormatError
from lora_atelier.dataset.buckets import Bucket, BucketRule
from lora_atelier.dataset.images import fit_to_bucket
from lora_atelier.dataset.tints import Tint, TintRanges, tinted
from lora_atelier.dataset.views import ViewRules, plain_view, variant_shown

RULE = BucketRule(resolution_px=64, step_px=8, min_px=32, max_px=128)
CROPS = ViewRules(variants=64, random_crop=True, max_zoom=1.5)


def picture(size: tuple[int, int]) -> Image.Image:
    draw = np.random.default_rng(3)
    return Image.fromarray(draw.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def bucket_of(size: tuple[int, int]) -> Bucket:
    return RULE.assign(*size)


@pytest.mark.parametrize("size", [(64, 64), (200, 130), (40, 90)])
def test_the_plain_view_is_what_was_always_trained(size: tuple[int, int]) -> None:
    image, bucket = picture(size), bucket_of(size)
    for focus in (None, (0.1, 0.9)):
        assert np.array_equal(plain_view(bucket, focus).pixels(image), fit_to_bucket(image, bucket, focus).pixels)
    mirrored = plain_view(bucket, flipped=True).pixels(image)
    assert np.array_equal(mirrored[:, ::-1], plain_view(bucket).pixels(image))


@pytest.mark.parametrize("size", [(64, 64), (200, 130), (40, 90), (128, 32)])
@pytest.mark.parametrize("focus", [None, (0.0, 0.0), (1.0, 1.0), (0.3, 0.7)])
def test_random_crops_lie_in_the_picture_and_hold_the_focal_point(
    size: tuple[int, int], focus: tuple[float, float] | None
) -> None:
    bucket = bucket_of(size)
    views = [CROPS.view(bucket, focus, variant, content="abc") for variant in range(64)]
    assert len({view.crop for view in views}) > 8 or focus == (0.0, 0.0)
    for view in views[1:]:
        left, top, right, bottom = view.crop
        assert (right - left, bottom - top) == bucket.size
        assert 0 <= left <= right <= view.resized[0]
        assert 0 <= top <= bottom <= view.resized[1]
        assert bucket.resized[0] <= view.resized[0] <= round(bucket.resized[0] * 1.5)
        assert view.is_random
        if focus is not None:
            x, y = focus[0] * view.resized[0], focus[1] * view.resized[1]
            assert left - 1 <= x <= right + 1
            assert top - 1 <= y <= bottom + 1
        assert view.pixels(picture(size)).shape == (bucket.height, bucket.width, 3)
    shrunk = [view.scale / bucket.scale for view in views[1:]]
    assert 1.0 <= min(shrunk) < 1.1
    assert 1.4 < max(shrunk) <= 1.5


def test_a_layer_lies_where_the_picture_does() -> None:
    """A mask painted from the picture itself stays over it through every crop, zoom and mirror."""
    size = (200, 130)
    values = np.zeros((130, 200, 3), dtype=np.uint8)
    values[30:90, 50:140] = 255
    image, mask = Image.fromarray(values), Image.fromarray(values[..., 0])
    bucket = bucket_of(size)
    for variant in range(8):
        for flipped in (False, True):
            view = CROPS.view(bucket, None, variant, content="abc", flipped=flipped)
            layer = np.asarray(view.layer(mask))
            assert layer.shape == (bucket.height, bucket.width)
            assert np.array_equal(layer, view.pixels(image)[..., 0])


def test_colours_change_and_shapes_stay() -> None:
    rules = ViewRules(variants=3, tints=TintRanges(brightness=(0.5, 0.9), hue_degrees=(-30.0, 30.0)))
    image, bucket = picture((64, 64)), bucket_of((64, 64))
    plain, first, second = (rules.view(bucket, None, variant, content="abc") for variant in range(3))
    assert plain.tint is None
    assert first.tint != second.tint
    assert plain.crop == first.crop
    assert not first.is_random
    mask = image.getchannel("R")
    assert np.array_equal(np.asarray(plain.layer(mask)), np.asarray(first.layer(mask)))
    assert first.pixels(image).mean() < plain.pixels(image).mean()


def test_a_picture_of_another_size_is_refused() -> None:
    view = plain_view(bucket_of((64, 64)))
    with pytest.raises(FormatError, match="60 x 64 px, but its bucket was chosen for 64 x 64"):
        view.layer(Image.new("L", (60, 64)))


def test_tints_by_hand() -> None:
    pixels = np.array([[[200, 100, 50], [10, 20, 30]]], dtype=np.uint8)
    assert np.array_equal(tinted(pixels, Tint()), pixels)
    assert np.array_equal(tinted(pixels, Tint(brightness=0.5)), [[[100, 50, 25], [5, 10, 15]]])
    grey = 0.213 * 200 + 0.715 * 100 + 0.072 * 50
    assert tinted(pixels, Tint(saturation=0.0))[0, 0].tolist() == [round(grey)] * 3
    flat = tinted(pixels, Tint(contrast=0.0))
    assert len(np.unique(flat)) == 1
    assert tinted(pixels, Tint(brightness=3.0))[0, 0].tolist() == [255, 255, 150]


def test_hues_turn_by_the_angle_and_whole_turns_change_nothing() -> None:
    pixels = np.array([[[180, 100, 100]]], dtype=np.uint8)
    assert np.allclose(tinted(pixels, Tint(hue_degrees=360.0)), pixels, atol=1)
    turned = tinted(pixels, Tint(hue_degrees=120.0))[0, 0].astype(float) / 255
    hue = colorsys.rgb_to_hsv(*turned)[0] * 360
    assert 90 < hue < 150, "red turns to green"


def test_ranges_are_drawn_from_end_to_end() -> None:
    ranges = TintRanges(brightness=(0.5, 2.0), hue_degrees=(-10.0, 30.0))
    assert ranges.drawn([0.0] * 4) == Tint(brightness=0.5, hue_degrees=-10.0)
    assert ranges.drawn([1.0] * 4) == Tint(brightness=2.0, hue_degrees=30.0)


def test_variants_take_turns() -> None:
    for variants in (1, 2, 5, 64):
        seen = [variant_shown(3, 11, showing, variants) for showing in range(3 * variants)]
        for start in range(0, len(seen), variants):
            assert Counter(seen[start : start + variants]) == Counter(range(variants))
    orders = {tuple(variant_shown(seed, 11, showing, 4) for showing in range(4)) for seed in range(40)}
    assert len(orders) > 12
