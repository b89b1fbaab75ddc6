"""Changes of a picture's colours: brightness, contrast, saturation and hue."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

LUMA = (0.213, 0.715, 0.072)
"""Share of red, green and blue in grey (ITU-R BT.709, as the matrices below round it)."""
_QUARTER_TURN = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
"""What a quarter of a turn of the hues adds to grey."""
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Tint:
    """One change of colours.

    Attributes:
        brightness: Factor on all values.
        contrast: Factor on the distance from the picture's mean grey.
        saturation: Factor on the distance of every pixel from its own grey.
        hue_degrees: Turn of the hues.
    """

    brightness: float = 1.0
    contrast: float = 1.0
    saturation: float = 1.0
    hue_degrees: float = 0.0

    def matrix(self) -> NDArray[np.float64]:
        """Brightness, saturation and hue as one matrix float64 [3, 3] that RGB columns are multiplied by.

        Source: the matrices ``saturate`` and ``hueRotate`` of W3C Filter Effects (``feColorMatrix``).
        """
        grey, own = np.tile(np.array(LUMA), (3, 1)), np.eye(3)
        saturated = grey + self.saturation * (own - grey)
        angle = math.radians(self.hue_degrees)
        turned = grey + math.cos(angle) * (own - grey) + math.sin(angle) * _QUARTER_TURN
        return np.asarray(self.brightness * (turned @ saturated), dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class TintRanges:
    """From where to where each change is drawn; all at 1 and 0 change nothing."""

    brightness: Range = (1.0, 1.0)
    contrast: Range = (1.0, 1.0)
    saturation: Range = (1.0, 1.0)
    hue_degrees: Range = (0.0, 0.0)

    def drawn(self, draw: Sequence[float]) -> Tint:
        """The change at four numbers of 0 to 1."""
        low_high = (self.brightness, self.contrast, self.saturation, self.hue_degrees)
        values = [low + share * (high - low) for (low, high), share in zip(low_high, draw, strict=True)]
        return Tint(brightness=values[0], contrast=values[1], saturation=values[2], hue_degrees=values[3])


def tinted(pixels: NDArray[np.uint8], tint: Tint) -> NDArray[np.uint8]:
    """A picture uint8 [height, width, 3] in other colours; its shapes stay."""
    values = pixels.reshape(-1, 3).astype(np.float32)
    mean_grey = float((values @ np.array(LUMA, dtype=np.float32)).mean())
    values = (values - mean_grey) * np.float32(tint.contrast) + mean_grey
    values = values @ tint.matrix().T.astype(np.float32)
    found: NDArray[np.uint8] = np.clip(np.rint(values), 0, 255).astype(np.uint8).reshape(pixels.shape)
    return found
