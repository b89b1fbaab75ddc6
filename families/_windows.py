"""Texts longer than one window of a text encoder, and the weights of their words."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from ..core.transfer import to_device

LARGE_WORD_TOKENS = 8
"""Weighted segments with fewer tokens are not torn at the end of a window (ComfyUI's ``max_word_length``)."""

SMALLEST_MEAN = 1e-3
"""Share of the mean size of a caption's numbers below which their mean counts as none."""

Weighted: TypeAlias = tuple[int, float]
"""A token id and its weight."""


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that frame a window, and its length in tokens (77 for CLIP)."""

    start: int
    end: int
    pad: int
    window_tokens: int = 77

    @property
    def room(self) -> int:
        """Tokens of text in a window."""
        return self.window_tokens - 2


def framed(tokens: Sequence[Weighted], special: SpecialTokens) -> list[Weighted]:
    """One window: start, at most 75 tokens, end, and filled up; the marks have weight 1."""
    window = [(special.start, 1.0), *tokens, (special.end, 1.0)]
    return window + [(special.pad, 1.0)] * (special.window_tokens - len(window))


def token_windows(
    segments: Sequence[tuple[str, float]],
    word_ids: Callable[[str], Sequence[int]],
    special: SpecialTokens,
    *,
    max_tokens: int | None = None,
) -> list[list[Weighted]]:
    """Lays the tokens of weighted segments into as many windows as they need, as ComfyUI does.

    Args:
        segments: texts with their weights, in order.
        word_ids: token ids of a text without start and end marks.
        special: frame tokens.
        max_tokens: tokens that are read, a multiple of a window's room; None reads all.

    Returns:
        At least one window of exactly ``special.window_tokens`` (id, weight) pairs.

    Source: ComfyUI's ``SDTokenizer.tokenize_with_weights``.
    """
    windows: list[list[Weighted]] = []
    window: list[Weighted] = []
    for text, weight in segments:
        tokens = [(token, weight) for token in word_ids(text)]
        large = len(tokens) >= LARGE_WORD_TOKENS
        while len(window) + len(tokens) > special.room:
            if large:
                free = special.room - len(window)
                window.extend(tokens[:free])
                tokens = tokens[free:]
            windows.append(framed(window, special))
            window = []
        window.extend(tokens)
    windows.append(framed(window, special))
    return windows if max_tokens is None else windows[: max_tokens // special.room]


def fixed_windows(
    segments: Sequence[tuple[str, float]],
    word_ids: Callable[[str], Sequence[int]],
    special: SpecialTokens,
    *,
    max_tokens: int,
) -> list[list[Weighted]]:
    """Lays the tokens into always ``max_tokens`` / 75 windows, torn wherever one is full.

    Source: kohya-ss/sd-scripts, ``TokenizeStrategy._get_input_ids`` with ``max_token_length``.
    """
    tokens = [(token, weight) for text, weight in segments for token in word_ids(text)]
    starts = range(0, max_tokens, special.room)
    return [framed(tokens[start : start + special.room], special) for start in starts]


def without_inner_marks(hidden: Tensor) -> Tensor:
    """Joins windows [windows, 77, channels] to [75 windows + 2, channels]: first start mark, texts, last end mark.

    Source: kohya-ss/sd-scripts, ``TextEncodingStrategy`` ("three times BOS ... EOS back to one").
    """
    return torch.cat((hidden[0, :1], hidden[:, 1:-1].flatten(0, 1), hidden[-1, -1:]))


def weighted_states(hidden: Tensor, weights: Tensor) -> Tensor:
    """Multiplies the state of every token by its weight and brings the mean of all numbers back to what it was.

    Args:
        hidden: [tokens, channels].
        weights: [tokens], 1 for marks and filling.

    Source: AUTOMATIC1111's ``EmphasisOriginal``, and kohya's ``get_weighted_text_embeddings``.
    """
    moved = hidden * to_device(weights, hidden.device).to(hidden.dtype).unsqueeze(-1)
    mean, moved_mean = hidden.float().mean(), moved.float().mean()
    # A mean that vanishes beside the numbers themselves cannot be brought back by a factor.
    usable = moved_mean.abs() > SMALLEST_MEAN * moved.float().abs().mean()
    share = torch.where(usable, mean / torch.where(usable, moved_mean, torch.ones_like(mean)), torch.ones_like(mean))
    return moved * share.to(moved.dtype)


def same_length(states: Sequence[Tensor]) -> Tensor:
    """Stacks states [tokens, channels] of different lengths to [batch, tokens, channels].

    Shorter ones are repeated whole until all are as long as their least common multiple, as ComfyUI does when it joins
    prompts: cross-attention sees a set in which each key stands equally often, and answers as if it stood there once.
    """
    tokens = math.lcm(*(len(state) for state in states))
    return torch.stack([state if len(state) == tokens else state.repeat(tokens // len(state), 1) for state in states])
