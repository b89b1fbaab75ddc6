"""Tiny data sets with masks and regularisation pictures."""

from pathlib import Path

from PIL import Image, ImageDraw

from atelier_tests.helpers.training import draw_pictures, open_pictures
from lora_atelier.dataset.masks import MaskParams, with_masks
from lora_atelier.dataset.table import Dataset


def write_masks(folder: Path, *, skip: int = 4, fill: int | None = None) -> None:
    """Puts ``00-masklabel.png`` beside each picture but the one numbered ``skip``; a disc, or one grey all over."""
    for path in sorted(folder.rglob("*.png")):
        if path.stem.endswith("-masklabel") or int(path.stem) == skip:
            continue
        mask = Image.new("L", Image.open(path).size, fill or 0)
        if fill is None:
            ImageDraw.Draw(mask).ellipse((8, 8, 40, 40), fill=255)
        mask.save(path.with_name(f"{path.stem}-masklabel.png"))


def masked_pictures(folder: Path, *, reg: bool = False, fill: int | None = None) -> Dataset:
    """Five pictures, four of them with a mask beside them; with ``reg``, two for regularisation as well."""
    draw_pictures(folder / "set")
    write_masks(folder / "set", fill=fill)
    reg_folder = draw_pictures(folder / "reg", count=2) if reg else None
    return with_masks(open_pictures(folder / "set", reg_folder=reg_folder), MaskParams(source="files")).dataset
