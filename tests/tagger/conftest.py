"""Small data sets and an index for the tagger's tests."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lora_atelier.core.index import Index
from lora_atelier.dataset.scan import DatasetParams, open_folder
from lora_atelier.dataset.table import Dataset

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "grey": (90, 90, 90)}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index(tmp_path / "user" / "index.sqlite") as opened:
        yield opened


@pytest.fixture
def make_dataset(tmp_path: Path) -> Callable[..., Dataset]:
    """Opens a folder of small pictures that are all different: colour by turns, one pixel by number."""

    def make(number: int, *, captions: dict[int, str] | None = None, folder: str = "pictures", ending: str = "png"):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        for n in range(number):
            pixels = np.full((24, 24, 3), list(COLOURS.values())[n % len(COLOURS)], np.uint8)
            pixels[0, 0] = [n % 256, n // 256 % 256, 7]
            Image.fromarray(pixels).save(place / f"{n:05d}.{ending}")
            if captions and n in captions:
                (place / f"{n:05d}.txt").write_text(captions[n], encoding="utf-8")
        return open_folder(place, DatasetParams())

    return make
