"""Data sets made of captions alone: no file is on disk."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lora_atelier.dataset.columns import TagColumn, TextColumn
from lora_atelier.dataset.table import CAPTION_FILE, Dataset, Subset

KAYOKO = (
    "kayoko (blue archive), 1girl, solo, multicolored hair, black hair, horns, hood, white hair, halo, sitting, skirt, "
    "bag, hoodie, two-tone hair, red eyes, blush, long sleeves, black hoodie, red skirt, ponytail, bangs, "
    "looking at viewer, closed mouth, miniskirt, collarbone, hair between eyes, feet out of frame, plaid skirt, "
    "pleated skirt, sidelocks, hood down, hand up, mole on neck, medium hair, backpack, clothes writing, plaid"
)
"""A LoRA trainer's published example: 37 tags."""

KAYOKO_KEPT = (
    "kayoko (blue archive), 1girl, solo, hood, sitting, skirt, bag, hoodie, long sleeves, black hoodie, red skirt, "
    "looking at viewer, closed mouth, miniskirt, collarbone, feet out of frame, plaid skirt, pleated skirt, hood down, "
    "hand up, mole on neck, medium hair, backpack, clothes writing, plaid"
)
"""The 25 that its author kept."""


def split(caption: str) -> list[str]:
    return [tag.strip() for tag in caption.split(",") if tag.strip()]


def dataset_of(
    captions: Sequence[str],
    *,
    categories: Mapping[str, str] | None = None,
    scores: Sequence[float] | None = None,
    sources: Sequence[int] | None = None,
    subsets: Sequence[Subset] | None = None,
    subset_index: Sequence[int] | None = None,
) -> Dataset:
    """A data set with these captions; scores and sources are one number per tag, in order."""
    number = len(captions)
    tags = TagColumn.from_rows([split(caption) for caption in captions])
    if categories:
        tags = tags.with_categories(dict(categories))
    if scores is not None or sources is not None:
        tags = tags.with_scores(
            None if scores is None else np.array(scores, dtype=np.float16),
            None if sources is None else np.array(sources, dtype=np.uint8),
        )
    index = np.zeros(number, dtype=np.int32) if subset_index is None else np.array(subset_index, dtype=np.int32)
    return Dataset(
        root=Path("folder"),
        subsets=tuple(subsets or [Subset(folder=Path("folder"))]),
        names=TextColumn.from_strings(f"{row:06}.png" for row in range(number)),
        width_px=np.full(number, 512, dtype=np.int32),
        height_px=np.full(number, 512, dtype=np.int32),
        size_bytes=np.ones(number, dtype=np.int64),
        mtime_ns=np.zeros(number, dtype=np.int64),
        subset_index=index,
        caption_source=np.full(number, CAPTION_FILE, dtype=np.uint8),
        tags=tags,
        layout="made for a test",
    )


def captions_of(dataset: Dataset) -> list[str]:
    """Every caption as text."""
    return [dataset.caption(row) for row in range(len(dataset))]
