"""The tiny world's CLIP tokenizer: byte-pair merges learned so that every tag word is one token.

Words the world does not know fall into syllables and letters, as a rare name does in the real CLIP vocabulary. The
same functions encode without any library, and :func:`library_tokenizer` gives the transformers tokenizer.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import world
from .sizes import MAX_TOKENS

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START = "<|startoftext|>"
END = "<|endoftext|>"
_SYLLABLE_MERGES = 96
_WORD = re.compile(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|[^\s\w]+|_+", re.IGNORECASE)

Pair = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """CLIP's two tables: token to id, and the merges in the order they are applied."""

    vocab: dict[str, int]
    merges: tuple[Pair, ...]

    def to_json(self) -> str:
        """`{"vocab": {...}, "merges": ["a b", ...]}`, the text kept in the base file's metadata."""
        return json.dumps({"vocab": self.vocab, "merges": [" ".join(pair) for pair in self.merges]})

    @staticmethod
    def from_json(text: str) -> Vocabulary:
        """The inverse of :meth:`to_json`."""
        tables = json.loads(text)
        pairs = tuple((left, right) for left, _, right in (merge.partition(" ") for merge in tables["merges"]))
        return Vocabulary(vocab=dict(tables["vocab"]), merges=pairs)


def byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    symbols = {byte: chr(byte) for byte in printable}
    spare = (256 + i for i in range(256))
    return {byte: symbols[byte] if byte in symbols else chr(next(spare)) for byte in (*printable, *range(256))}


def _apply(parts: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    merged: list[str] = []
    at = 0
    while at < len(parts):
        if parts[at : at + 2] == pair:
            merged.append(parts[at] + parts[at + 1])
            at += 2
        else:
            merged.append(parts[at])
            at += 1
    return tuple(merged)


def _letters(word: str) -> tuple[str, ...]:
    symbols = byte_symbols()
    letters = [symbols[byte] for byte in word.encode("utf-8")]
    return (*letters[:-1], letters[-1] + "</w>")


def _commonest_pair(words: dict[tuple[str, ...], int]) -> Pair:
    counts: Counter[Pair] = Counter()
    for parts, number in words.items():
        for pair in zip(parts, parts[1:], strict=False):
            counts[pair] += number
    return min(counts, key=lambda pair: (-counts[pair], pair))


def _learn(words: Iterable[str], merges: list[Pair], limit: int | None) -> None:
    """Append byte-pair merges learned from the words: `limit` of them, or until each word is one token."""
    table: dict[tuple[str, ...], int] = Counter()
    for word in words:
        parts = _letters(word)
        for pair in merges:
            parts = _apply(parts, pair)
        table[parts] += 1
    start = len(merges)
    while any(len(parts) > 1 for parts in table) and (limit is None or len(merges) - start < limit):
        pair = _commonest_pair(table)
        merges.append(pair)
        joined: Counter[tuple[str, ...]] = Counter()
        for parts, number in table.items():
            joined[_apply(parts, pair)] += number
        table = joined


def tag_words() -> tuple[str, ...]:
    """Every word of a tag the base is trained on (traits of concepts included, trigger words not), sorted."""
    tags = (*world.SHAPES, *world.COLOURS, *world.BACKGROUNDS, *world.SIZES, *world.POSITIONS, *world.COUNTS)
    tags += (*world.ACCESSORIES, *world.CONCEPT_SHAPES, world.HATCHED)
    return tuple(sorted({word for tag in tags for word in _WORD.findall(tag)} | {"shape", "shapes", "a", "and"}))


@cache
def build() -> Vocabulary:
    """512 byte tokens, merges that make each tag word whole, then common syllables, then the two marks."""
    merges: list[Pair] = []
    _learn(tag_words(), merges, None)
    rng = random.Random("made-up words")
    _learn(sorted(world.nonsense_word(rng) for _ in range(4000)), merges, _SYLLABLE_MERGES)
    symbols = list(byte_symbols().values())
    tokens = symbols + [s + "</w>" for s in symbols] + [left + right for left, right in merges] + [START, END]
    return Vocabulary(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges=tuple(merges))


def tokenize(text: str, vocabulary: Vocabulary) -> list[int]:
    """Ids of a text without start and end marks: lower case, white space folded, as CLIP's tokenizer."""
    ranks = {pair: rank for rank, pair in enumerate(vocabulary.merges)}
    ids: list[int] = []
    for word in _WORD.findall(" ".join(text.lower().split())):
        if word in (START, END):
            ids.append(vocabulary.vocab[word])
            continue
        parts = _letters(word)
        while len(parts) > 1:
            pairs = [pair for pair in zip(parts, parts[1:], strict=False) if pair in ranks]
            if not pairs:
                break
            parts = _apply(parts, min(pairs, key=ranks.__getitem__))
        ids += [vocabulary.vocab[part] for part in parts]
    return ids


def encode(texts: Iterable[str], vocabulary: Vocabulary) -> Tensor:
    """int64 [n, 77]: start mark, the text's ids (cut at 75), then end marks to the end, as SD1.x pads."""
    start, end = vocabulary.vocab[START], vocabulary.vocab[END]
    rows = []
    for text in texts:
        ids = [start, *tokenize(text, vocabulary)[: MAX_TOKENS - 2]]
        rows.append(ids + [end] * (MAX_TOKENS - len(ids)))
    return torch.tensor(rows, dtype=torch.int64)


def library_tokenizer(vocabulary: Vocabulary, folder: Path) -> CLIPTokenizer:
    """The transformers tokenizer of this vocabulary; its `vocab.json` and `merges.txt` are written to the folder."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    merges = ["#version: 0.2", *(" ".join(pair) for pair in vocabulary.merges)]
    (folder / "vocab.json").write_text(json.dumps(vocabulary.vocab), encoding="utf-8", newline="\n")
    (folder / "merges.txt").write_text("\n".join(merges) + "\n", encoding="utf-8", newline="\n")
    return CLIPTokenizer(
        str(folder / "vocab.json"),
        str(folder / "merges.txt"),
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )
