"""Captions at training time: kept tags, warm-up, shuffling, dropout. The same seed gives the same text everywhere.

Source: ``BaseDataset.process_caption`` of kohya-ss/sd-scripts (order of the steps: caption dropout, fixed tags,
warm-up, shuffle, tag dropout, secondary separator). Departures: the prefix is never shuffled away from the front, and
is not doubled where a caption holds it already.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .table import Dataset, Subset


def split_tags(caption: str) -> list[str]:
    """Splits a caption at its commas; surrounding and repeated blanks go, empty parts too."""
    return [tag for part in caption.split(",") if (tag := " ".join(part.split()))]


@dataclass(frozen=True, kw_only=True)
class TokenWarmup:
    """How many of the movable tags are shown at the beginning of a run.

    Attributes:
        steps: After so many updates all are shown.
        min_tags: Tags shown at the first step.

    Source: kohya-ss/sd-scripts, ``token_warmup_min`` and ``token_warmup_step``.
    """

    steps: int
    min_tags: int = 1

    def shown(self, count: int, step: int) -> int:
        """How many of ``count`` movable tags are shown after ``step`` updates."""
        if step >= self.steps or count <= self.min_tags:
            return count
        return self.min_tags + step * (count - self.min_tags) // self.steps


def kept_and_movable(tags: Sequence[str], options: "Subset") -> tuple[list[str], list[str], list[str]]:
    """Takes a caption's tags apart: those that stay in front, those that move, and those that stay at the end.

    Args:
        tags: In order, the prefix not among them.
        options: Of the picture's folder.
    """
    mark = options.keep_tokens_separator
    if mark and any(mark in tag for tag in tags):
        first, *rest = ", ".join(tags).split(mark, 2)
        parts = [split_tags(part.replace(mark, ",")) for part in (first, *rest)]
        return parts[0], parts[1], parts[2] if len(parts) > 2 else []
    return list(tags[: options.keep_tokens]), list(tags[options.keep_tokens :]), []


def training_caption(
    tags: Sequence[str], options: "Subset", *, seed: int, warmup: TokenWarmup | None = None, step: int = 0
) -> str:
    """The text that one picture is trained with this time.

    Args:
        tags: The picture's tags in order.
        options: Prefix, shuffling, kept tags and dropouts.
        seed: Decides the order and what is dropped; the batch carries one per picture.
        warmup: How many movable tags are shown at first; None shows all.
        step: Updates done before, for the warm-up.

    Returns:
        Tags joined by comma and space; empty when the caption was dropped.
    """
    draw = random.Random(seed).random  # its sequence is guaranteed not to change between Python versions
    if draw() < options.caption_dropout:
        return ""
    prefix = split_tags(options.caption_prefix)
    in_prefix = {tag.casefold() for tag in prefix}
    rest = [tag for tag in tags if tag.casefold() not in in_prefix]
    fixed, movable, last = kept_and_movable(rest, options)
    if warmup is not None:
        movable = movable[: warmup.shown(len(movable), step)]
    if options.shuffle_captions:
        keys = [draw() for _ in movable]
        movable = [movable[place] for place in sorted(range(len(movable)), key=keys.__getitem__)]
    if options.tag_dropout > 0.0:
        movable = [tag for tag in movable if draw() >= options.tag_dropout]
    joined = ", ".join([*prefix, *fixed, *movable, *last])
    mark = options.secondary_separator
    return ", ".join(split_tags(joined.replace(mark, ","))) if mark and mark in joined else joined


def caption_for(
    dataset: "Dataset", index: int, caption_seed: int, *, warmup: TokenWarmup | None = None, step: int = 0
) -> str:
    """The training text of a picture of a data set for one item of a batch."""
    tags, options = dataset.tags.row(index), dataset.subset_of(index)
    return training_caption(tags, options, seed=caption_seed, warmup=warmup, step=step)


def captions_vary(dataset: "Dataset") -> bool:
    """Whether any caption differs from time to time; if not, encoded texts can be kept."""
    return any(
        subset.shuffle_captions or subset.caption_dropout > 0.0 or subset.tag_dropout > 0.0
        for subset in dataset.subsets
    )
