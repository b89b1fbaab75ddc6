"""How long captions are for a text encoder, counted once per tag, so that many captions are no work."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from .table import Dataset

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""Gives the number of tokens of each text, without the start and end marks."""

CHUNK_TOKENS = 75
"""Tokens of a caption that one pass of a CLIP text encoder takes; longer captions are read in such parts."""


def caption_tokens(dataset: "Dataset", count: TokenCounter) -> NDArray[np.int64]:
    """Tokens of every caption with its prefix, int64 [pictures].

    A caption's text is its tags joined by comma and blank. A byte-pair encoder never joins what a blank parts, so a
    caption's tokens are those of its parts ``tag,`` (the last without its comma) added up.

    Args:
        dataset: The table.
        count: Counts the tokens of texts.
    """
    column = dataset.tags
    vocabulary = list(column.vocabulary)
    used = np.flatnonzero(column.counts())
    with_comma = np.zeros(len(vocabulary), dtype=np.int64)
    alone = np.zeros(len(vocabulary), dtype=np.int64)
    with_comma[used] = list(count([f"{vocabulary[tag]}," for tag in used]))
    alone[used] = list(count([vocabulary[tag] for tag in used]))
    totals = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(with_comma[column.ids])])
    result: NDArray[np.int64] = totals[column.offsets[1:]] - totals[column.offsets[:-1]]
    filled = np.flatnonzero(column.lengths)
    last = column.ids[column.offsets[1:][filled] - 1]
    result[filled] += alone[last] - with_comma[last]
    prefixes = [subset.caption_prefix.strip() for subset in dataset.subsets]
    extra = np.array(list(count([f"{text}," if text else "" for text in prefixes])), dtype=np.int64)
    extra[[not text for text in prefixes]] = 0
    return result + extra[dataset.subset_index]
