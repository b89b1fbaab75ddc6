r"""Prompt weights and token chunks of the local host, with ComfyUI's meaning of brackets.

``(text)`` multiplies the weight inside by 1.1, ``(text:1.3)`` sets it to 1.3, brackets nest, ``\(`` and ``\)`` are
literal. A prompt longer than one window of the text encoder is split into windows whose encodings are concatenated,
and a word is not torn at a window's end while it has fewer than eight tokens. The weight moves a token's encoding along
the line from the empty prompt's encoding of the same position.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch

from ...core.errors import InputError
from ...families._windows import SpecialTokens, token_windows

_EMPHASIS = 1.1
_EMBEDDING = re.compile(r"(^|[ \n])embedding:")


def parse_weights(prompt: str) -> list[tuple[str, float]]:
    """Split a prompt into (text, weight) segments in order; empty segments are left out.

    Unbalanced brackets are kept as text, as a closing bracket without an opening one is part of its segment.
    """
    marked = prompt.replace("\\)", "\x00\x02").replace("\\(", "\x00\x01")
    segments = _weighted(marked, 1.0)
    literal = [(text.replace("\x00\x02", ")").replace("\x00\x01", "("), weight) for text, weight in segments]
    return [(text, weight) for text, weight in literal if text]


def _weighted(text: str, weight: float) -> list[tuple[str, float]]:
    out: list[tuple[str, float]] = []
    for group in _top_level_groups(text):
        if len(group) < 2 or not (group.startswith("(") and group.endswith(")")):
            out.append((group, weight))
            continue
        inner, inner_weight = group[1:-1], weight * _EMPHASIS
        colon = inner.rfind(":")
        if colon > 0:
            given = _number(inner[colon + 1 :])
            if given is not None:
                inner, inner_weight = inner[:colon], given
        out.extend(_weighted(inner, inner_weight))
    return out


def _top_level_groups(text: str) -> list[str]:
    """Cut before each outermost ``(`` and after its ``)``."""
    groups: list[str] = []
    begin = depth = 0
    for at, character in enumerate(text):
        if character == "(":
            if depth == 0 and at > begin:
                groups.append(text[begin:at])
                begin = at
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                groups.append(text[begin : at + 1])
                begin = at + 1
    if begin < len(text):
        groups.append(text[begin:])
    return groups


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def prompt_windows(
    segments: Sequence[tuple[str, float]], word_ids: Callable[[str], list[int]], special: SpecialTokens
) -> list[list[tuple[int, float]]]:
    """Lay the tokens of weighted segments into framed, padded windows.

    Args:
        segments: output of :func:`parse_weights`.
        word_ids: token ids of a text without start and end marks.
        special: frame tokens.

    Returns:
        At least one window of exactly ``special.window_tokens`` (id, weight) pairs.

    Raises:
        InputError: the prompt names a textual-inversion embedding, which only ComfyUI itself applies.
    """
    for text, _ in segments:
        if _EMBEDDING.search(text):
            raise InputError(
                f"the prompt {text!r} uses a textual-inversion embedding; the local runner has none, remove it "
                "or run the workflow on a ComfyUI server (--server URL)."
            )
    return token_windows(segments, word_ids, special)


def encode_windows(
    windows: Sequence[Sequence[tuple[int, float]]],
    encode: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]],
    special: SpecialTokens,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Encode windows and apply their weights relative to the empty prompt.

    Args:
        windows: (id, weight) pairs of :func:`prompt_windows`.
        encode: maps int64 ids [w, tokens] to (hidden [w, tokens, channels] float32, pooled [w, channels] or None).
        special: frame tokens.

    Returns:
        (hidden [1, windows * tokens, channels], pooled of the first window [1, channels] or None).
    """
    ids = [[token for token, _ in window] for window in windows]
    weights = torch.tensor([[weight for _, weight in window] for window in windows], dtype=torch.float32)
    weighted = bool((weights != 1.0).any())
    if weighted:
        empty = [special.start, special.end] + [special.pad] * (special.window_tokens - 2)
        ids = [*ids, empty]
    hidden, pooled = encode(torch.tensor(ids, dtype=torch.long))
    first_pooled = None if pooled is None else pooled[:1]
    if weighted:
        reference = hidden[-1:]
        # torch.lerp would also move the tokens of weight 1 by a rounding error.
        moved = (hidden[:-1] - reference) * weights[..., None].to(hidden) + reference
        hidden = torch.where(weights[..., None].to(hidden.device) == 1.0, hidden[:-1], moved)
    return hidden.reshape(1, -1, hidden.shape[-1]), first_pooled
