"""Captions at training time: kept tags, shuffling, dropout. The same seed gives the same text everywhere.

Source: ``BaseDataset.process_caption`` of kohya-ss/sd-scripts (order of the steps: caption dropout, fixed tags,
shuffle, tag dropout). Departures: the prefix is never shuffled away from the front, and is not doubled where a
caption holds it already.
"""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import Dataset, Subset


def split_tags(caption: str) -> list[str]:
    """Splits a caption at its commas; surrounding and repeated blanks go, empty parts too."""
    return [tag for part in caption.split(",") if (tag := " ".join(part.split()))]


def training_caption(tags: Sequence[str], options: "Subset", *, seed: int) -> str:
    """The text that one picture is trained with this time.

    Args:
        tags: The picture's tags in order.
        options: Prefix, shuffling, kept tags and dropouts.
        seed: Decides the order and what is dropped; the batch carries one per picture.

    Returns:
        Tags joined by comma and space; empty when the caption was dropped.
    """
    draw = random.Random(seed).random  # its sequence is guaranteed not to change between Python versions
    if draw() < options.caption_dropout:
        return ""
    prefix = split_tags(options.caption_prefix)
    in_prefix = {tag.casefold() for tag in prefix}
    rest = [tag for tag in tags if tag.casefold() not in in_prefix]
    fixed, movable = rest[: options.keep_tokens], rest[options.keep_tokens :]
    if options.shuffle_captions:
        keys = [draw() for _ in movable]
        movable = [movable[place] for place in sorted(range(len(movable)), key=keys.__getitem__)]
    if options.tag_dropout > 0.0:
        movable = [tag for tag in movable if draw() >= options.tag_dropout]
    return ", ".join([*prefix, *fixed, *movable])


def caption_for(dataset: "Dataset", index: int, caption_seed: int) -> str:
    """The training text of a picture of a data set for one item of a batch."""
    return training_caption(dataset.tags.row(index), dataset.subset_of(index), seed=caption_seed)


def captions_vary(dataset: "Dataset") -> bool:
    """Whether any caption differs from time to time; if not, encoded texts can be kept."""
    return any(
        subset.shuffle_captions or subset.caption_dropout > 0.0 or subset.tag_dropout > 0.0
        for subset in dataset.subsets
    )
