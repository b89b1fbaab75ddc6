"""The sizes that SDXL's UNet is told of every training picture."""

from collections.abc import Sequence

import torch

from ..core.transfer import to_device
from ..dataset.buckets import Bucket
from ..dataset.views import View
from ..families._spec import Conditioning


def crop_top_left(bucket: Bucket, *, flipped: bool) -> tuple[int, int]:
    """Returns the crop (top, left) in px that a picture is said to have.

    Source: kohya-ss/sd-scripts, ``BucketManager.get_crop_ltrb`` and the flip in ``BaseDataset.__getitem__``, so that a
    LoRA trained here is told what one trained there is: the margins that the picture would leave in its bucket if it
    were fitted inside, not the pixels that are cut off, and the same for every focal point.
    """
    width, height = bucket.size
    ratio = bucket.source[0] / bucket.source[1]
    is_wider = width / height > ratio
    fitted_width = height * ratio if is_wider else float(width)
    fitted_height = float(height) if is_wider else width / ratio
    left, top = (width - fitted_width) // 2, (height - fitted_height) // 2
    return int(top), int(width - (left + fitted_width) if flipped else left)


def crop_told(view: View) -> tuple[int, int]:
    """Returns the crop (top, left) in px that is told of a view.

    A random crop is told as it is: what is cut off above and, in the picture as it is shown, at the left. Source:
    Podell et al. 2023 (SDXL), section 2.2; kohya's scripts tell the margins of the centre there as well.
    """
    if not view.is_random:
        return crop_top_left(view.bucket, flipped=view.flipped)
    left, top, right, _ = view.crop
    return top, view.resized[0] - right if view.flipped else left


def conditioning_of(views: Sequence[View], device: torch.device) -> Conditioning:
    """Returns what is told of the pictures of a batch: source size, crop, and the size they are trained at.

    Args:
        views: of each picture.
        device: the training device.
    """
    original = [(view.bucket.source[1], view.bucket.source[0]) for view in views]
    crops = [crop_told(view) for view in views]
    target = [(view.bucket.height, view.bucket.width) for view in views]

    def tensor(pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        return to_device(torch.tensor(pairs, dtype=torch.int64), device)

    return Conditioning(original_size=tensor(original), crop=tensor(crops), target_size=tensor(target))
