"""Between ComfyUI's IMAGE tensors and Pillow pictures, and pictures as a node shows them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from .host import get_host


def to_pil(image: torch.Tensor) -> Image.Image:
    """One picture [h, w, 3], float 0..1 of any dtype, rounded as the core SaveImage node does."""
    values = 255.0 * image.detach().float().cpu().numpy()
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))


def to_image(pictures: Iterable[Image.Image]) -> torch.Tensor:
    """IMAGE tensor [b, h, w, 3] float32 0..1 of pictures of one size."""
    arrays = [np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0 for picture in pictures]
    return torch.from_numpy(np.stack(arrays))


def shown(path: Path) -> dict[str, str]:
    """The entry of ``ui["images"]`` for a file below the output or the temporary folder."""
    host = get_host()
    for kind, root in (("output", host.output_dir()), ("temp", host.temp_dir())):
        if path.resolve().is_relative_to(root.resolve()):
            place = path.resolve().relative_to(root.resolve())
            folder = place.parent.as_posix()
            return {"filename": place.name, "subfolder": "" if folder == "." else folder, "type": kind}
    raise ValueError(f"{path.name} lies neither below the output nor below the temporary folder.")


def show_once(picture: Image.Image, prefix: str) -> dict[str, str]:
    """Write a picture into the temporary folder and return its ``ui`` entry."""
    import hashlib

    folder = get_host().temp_dir()
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(picture.tobytes()).hexdigest()[:16]
    path = folder / f"{prefix}-{digest}.png"
    if not path.exists():
        picture.save(path)
    return shown(path)


def first_frame(images: Any) -> Image.Image:
    """The first picture of a batch."""
    return to_pil(images[0])
