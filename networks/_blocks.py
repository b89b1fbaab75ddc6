"""Choosing blocks of a model by name: `IN04-07,OUT03-06`, `MID`, `TE`, `NOT IN`, ..."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..core.errors import InputError, unknown_name

TEXT_ENCODER = "TE"
_NUMBERED = re.compile(r"^(?P<kind>[A-Z]+?)(?P<number>\d+)$")
_ALIASES = {"BASE": TEXT_ENCODER, "M00": "MID"}


def expand_selection(text: str, blocks: Sequence[str]) -> tuple[str, ...]:
    """The blocks that a selection names.

    Names are separated by commas or spaces, upper or lower case: single blocks (`IN04`, `in4`, `MID`, `TE`), ranges
    (`IN04-07`, `IN05-OUT05`), groups (`IN`, `OUT`, `UNET`, `ALL`). A leading `NOT` takes everything else.
    An empty text means `ALL`.

    Args:
        text: the selection.
        blocks: the model's blocks in the order of the forward pass, e.g. IN00 ... IN11, MID, OUT00 ... OUT11.

    Returns:
        Chosen names in the order TE, then `blocks`.

    Raises:
        UnknownNameError: a name that the model does not have; the nearest are listed.
        InputError: a range that runs backwards, or a selection that leaves nothing.
    """
    unet = [block for block in blocks if block != TEXT_ENCODER]
    every = [TEXT_ENCODER, *unet]
    words = re.sub(r"\s*-\s*", "-", text.strip().upper()).replace(",", " ").replace(";", " ").split()
    inverted = bool(words) and words[0] == "NOT"
    if inverted:
        words = words[1:]
        if not words:
            raise InputError(f"the block selection '{text}' names nothing after NOT; name blocks, e.g. NOT IN00-03")
    chosen: set[str] = set() if words else set(every)
    for word in words:
        chosen.update(_expand_word(word, unet, text))
    if inverted:
        chosen = set(every) - chosen
    if not chosen:
        raise InputError(f"the block selection '{text}' leaves no block; name at least one of {_summary(unet)}")
    return tuple(block for block in every if block in chosen)


def _expand_word(word: str, unet: Sequence[str], text: str) -> list[str]:
    if word == "ALL":
        return [TEXT_ENCODER, *unet]
    if word == "UNET":
        return list(unet)
    if word in {"IN", "OUT"}:
        return [block for block in unet if block.startswith(word) and block[len(word) :].isdigit()]
    if "-" not in word:
        return [_block(word, unet, text)]
    first_word, _, last_word = word.partition("-")
    first = _block(first_word, unet, text)
    if last_word.isdigit():
        match = _NUMBERED.match(first)
        last_word = f"{match['kind'] if match else first}{last_word}"
    last = _block(last_word, unet, text)
    if TEXT_ENCODER in (first, last):
        raise InputError(f"the block range '{word}' in '{text}' includes TE, which has no place in an order; name it")
    start, stop = unet.index(first), unet.index(last)
    if start > stop:
        raise InputError(f"the block range '{word}' in '{text}' runs backwards; write {last}-{first}")
    return list(unet[start : stop + 1])


def _block(word: str, unet: Sequence[str], text: str) -> str:
    name = _ALIASES.get(word, word)
    if name == TEXT_ENCODER or name in unet:
        return name
    match = _NUMBERED.match(name)
    padded = f"{match['kind']}{int(match['number']):02d}" if match else name
    if padded in unet:
        return padded
    raise unknown_name(
        f"block in the selection '{text}'", word, [TEXT_ENCODER, "UNET", "ALL", "NOT", "IN", "OUT", *unet]
    )


def _summary(unet: Sequence[str]) -> str:
    return f"TE, {unet[0]} ... {unet[-1]}, MID" if unet else TEXT_ENCODER
