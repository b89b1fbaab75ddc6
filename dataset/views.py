"""How one picture is seen this time: scaled, cut, perhaps mirrored and recoloured.

Everything that lies over a picture (its mask, for one) goes through the same view, so that it stays where it belongs.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..core.seeds import derive, uniform
from .buckets import Bucket, Size
from .images import scaled_crop
from .tints import Tint, TintRanges, tinted

Focus = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class View:
    """One way to see a picture.

    Attributes:
        bucket: Of the picture.
        resized: (width, height) in px that the picture is scaled to; at least ``bucket.resized``.
        scale: Factor from the picture to that; above 1 it is enlarged.
        crop: (left, top, right, bottom) of the trained part in px of the scaled picture, before mirroring.
        flipped: Whether it is mirrored.
        tint: Change of its colours; None for none.
        is_random: Whether the crop is drawn at random, so that a network that takes crops is told of it exactly.
    """

    bucket: Bucket
    resized: Size
    scale: float
    crop: tuple[int, int, int, int]
    flipped: bool = False
    tint: Tint | None = None
    is_random: bool = False

    @property
    def size(self) -> Size:
        """(width, height) in px of what is trained."""
        return self.bucket.size

    def mirrored(self) -> "View":
        """The same view in a mirror."""
        return replace(self, flipped=not self.flipped)

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """The trained pixels uint8 [height, width, 3] of the upright RGB picture.

        Raises:
            FormatError: The picture has another size than the bucket was chosen for.
        """
        cut = scaled_crop(image, self.bucket.source, self.resized, self.crop, shrinks=self.scale < 1.0)
        pixels = np.array(cut.convert("RGB"), dtype=np.uint8)
        if self.tint is not None:
            pixels = tinted(pixels, self.tint)
        return np.ascontiguousarray(pixels[:, ::-1]) if self.flipped else pixels

    def layer(self, layer: Image.Image) -> Image.Image:
        """The trained part of a layer of the picture's size, such as a mask; its colours stay.

        Raises:
            FormatError: The layer has another size than the picture.
        """
        cut = scaled_crop(layer, self.bucket.source, self.resized, self.crop, shrinks=self.scale < 1.0)
        return cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.flipped else cut


def plain_view(bucket: Bucket, focus: Focus | None = None, *, flipped: bool = False) -> View:
    """The view without chance: around the focal point, or the centre."""
    return View(bucket=bucket, resized=bucket.resized, scale=bucket.scale, crop=bucket.crop_at(focus), flipped=flipped)


@dataclass(frozen=True, kw_only=True)
class ViewRules:
    """What the variants of a picture may differ in.

    Attributes:
        variants: Views per picture; the first is the plain one.
        random_crop: Whether the others are cut somewhere at random.
        max_zoom: How far a random crop may be closer than its bucket needs; 1 for not at all.
        tints: Ranges of colour changes of the others; None for none.
    """

    variants: int = 1
    random_crop: bool = False
    max_zoom: float = 1.0
    tints: TintRanges | None = None

    def view(self, bucket: Bucket, focus: Focus | None, variant: int, *, content: str, flipped: bool = False) -> View:
        """One variant of a picture, from what the picture holds alone: every run sees the same variants.

        Args:
            bucket: Of the picture.
            focus: Its focal point, which every random crop contains; None for none.
            variant: 0 is the plain view.
            content: Hash of the picture's file.
            flipped: Whether it is mirrored.
        """
        view = plain_view(bucket, focus, flipped=flipped)
        if variant == 0:
            return replace(view, is_random=self.random_crop and self.variants > 1)
        draw = uniform(0, "view", content, variant, count=7)
        if self.random_crop:
            view = _cut_at_random(view, focus, max_zoom=self.max_zoom, draw=draw[:3])
        return view if self.tints is None else replace(view, tint=self.tints.drawn(draw[3:]))


def _cut_at_random(view: View, focus: Focus | None, *, max_zoom: float, draw: list[float]) -> View:
    bucket, zoom = view.bucket, 1.0 + draw[0] * (max_zoom - 1.0)
    width, height = (max(whole, round(whole * zoom)) for whole in bucket.resized)
    left = _start(width, bucket.width, None if focus is None else focus[0], draw[1])
    top = _start(height, bucket.height, None if focus is None else focus[1], draw[2])
    return replace(
        view,
        resized=(width, height),
        scale=bucket.scale * zoom,
        crop=(left, top, left + bucket.width, top + bucket.height),
        is_random=True,
    )


def _start(resized_px: int, length_px: int, focus: float | None, draw: float) -> int:
    """Where a crop begins: any place at which it lies in the picture and holds the focal point."""
    low, high = 0, resized_px - length_px
    if focus is not None:
        point = min(int(focus * resized_px), resized_px - 1)
        low, high = max(low, point - length_px + 1), min(high, point)
    return low + min(int(draw * (high - low + 1)), high - low)


def variant_shown(seed: int, picture: int, showing: int, variants: int) -> int:
    """Which of a picture's variants is shown, so that each comes once before any comes again.

    Args:
        seed: The run's seed.
        picture: Its place in the data set.
        showing: How often it was shown before.
        variants: How many there are.
    """
    if variants <= 1:
        return 0
    round_number, place = divmod(showing, variants)
    keys = np.random.Philox(key=derive(seed, "variants", picture, round_number)).random_raw(variants)
    return int(np.argsort(keys, kind="stable")[place])
