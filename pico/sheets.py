"""Contact sheets of generated pictures with their prompts, for looking at a base with one's own eyes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from . import world
from .generate import Painter


def labelled_sheet(pictures: Sequence[Image.Image], labels: Sequence[str], columns: int = 8) -> Image.Image:
    """Pictures in rows, each with its comma-separated label below in short lines."""
    wide = max(p.width for p in pictures) + 8
    high = max(p.height for p in pictures) + 64
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * wide, rows * high), (30, 30, 30))
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        x, y = index % columns * wide, index // columns * high
        sheet.paste(picture, (x, y))
        words = label.split(", ")
        lines = [", ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
        pen.multiline_text((x + 2, y + picture.height + 2), "\n".join(lines[:5]), fill=(240, 240, 240), spacing=1)
    return sheet


def mixed_prompts(number: int, seed: int) -> list[str]:
    """Captions of base scenes: half of held-out triples, with one or two accessories or none."""
    rng = random.Random(f"prompts {seed}")
    return [
        world.caption(world.random_scene(rng, held_out=bool(i % 2), bucket_px=(96, 96)), rng, keep=0.8)
        for i in range(number)
    ]


def sample_sheet(painter: Painter, path: Path, number: int = 32) -> None:
    """Generate and save a labelled sheet of mixed prompts (every second one of a held-out triple)."""
    prompts = mixed_prompts(number, 5)
    pictures = painter.paint(prompts, list(range(number)))
    labelled_sheet(pictures, prompts).save(path)
