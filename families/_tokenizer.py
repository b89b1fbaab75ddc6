"""The CLIP tokenizer: found without a network, the same tokens as ComfyUI's."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.errors import FormatError, InputError
from ..core.files import write_json, write_text
from ._spec import tokenizer_dirs
from ._windows import SpecialTokens, token_windows

BOS = "<|startoftext|>"
EOS = "<|endoftext|>"
NUM_TOKENS = 77
_HUB_NAME = "openai/clip-vit-large-patch14"


def find_tokenizer(metadata: Mapping[str, str], path: Path) -> Any:
    """The tokenizer of a checkpoint: from its metadata, else a known folder, else a local Hugging Face cache.

    Args:
        metadata: of the checkpoint; `atelier.tokenizer` is JSON {"vocab": {token: id}, "merges": ["a b", ...]}.
        path: of the checkpoint, for errors.

    Raises:
        InputError: none of the three places has it.
        FormatError: the metadata holds a broken one.
    """
    if "atelier.tokenizer" in metadata:
        return _from_metadata(metadata["atelier.tokenizer"], path)
    for folder in tokenizer_dirs():
        if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
            return _from_folder(str(folder))
    try:
        return _from_folder(_HUB_NAME)
    except (OSError, ValueError) as cause:
        searched = ", ".join(str(folder) for folder in tokenizer_dirs()) or "none was named"
        raise InputError(
            f"no CLIP tokenizer was found for {path.name}: the file's metadata (atelier.tokenizer) has none, ComfyUI's "
            f"copy is not there (folders: {searched}), and the local Hugging Face cache has no {_HUB_NAME}; "
            "run inside ComfyUI, set COMFYUI_DIR to its folder, or download that tokenizer once"
        ) from cause


def read_tables(text: str, path: Path) -> tuple[dict[str, int], list[str]]:
    """The vocabulary and the merges of the metadata `atelier.tokenizer`.

    Args:
        text: the metadata's value.
        path: of the checkpoint, for errors.

    Raises:
        FormatError: they are not what a CLIP tokenizer is made of.
    """
    try:
        data = json.loads(text)
        vocab, merges = data["vocab"], data["merges"]
        pairs = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        valid = all(isinstance(token, str) and type(number) is int for token, number in vocab.items())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise FormatError(f"{path.name}: the tokenizer in its metadata is broken; make the file again") from cause
    if not valid or BOS not in vocab or EOS not in vocab:
        raise FormatError(f"{path.name}: the tokenizer in its metadata lacks {BOS} or {EOS}; make the file again")
    return vocab, pairs


def _from_metadata(text: str, path: Path) -> Any:
    vocab, pairs = read_tables(text, path)
    # A folder is the one form that every version of transformers reads; it is read whole and not needed afterwards.
    with tempfile.TemporaryDirectory(prefix="atelier-tokenizer-") as name:
        folder = Path(name)
        write_json(folder / "vocab.json", vocab)
        write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *pairs, ""]))
        special = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
        write_json(folder / "special_tokens_map.json", special)
        write_json(
            folder / "tokenizer_config.json",
            {"tokenizer_class": "CLIPTokenizer", "model_max_length": NUM_TOKENS, "do_lower_case": True, **special},
        )
        return _from_folder(name)


def _from_folder(name: str) -> Any:
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(name, local_files_only=True)


def tokenize(tokenizer: Any, captions: Sequence[str], *, pads_with_zero: bool = False) -> Tensor:
    """Token ids as ComfyUI gives for plain text: start, at most 75 tokens, end, and end marks or zeros up to 77.

    Args:
        tokenizer: of transformers.
        captions: the texts.
        pads_with_zero: as OpenCLIP fills up; CLIP takes the end mark.

    Returns:
        int64 [len(captions), 77].
    """
    special = special_tokens(tokenizer, pads_with_zero=pads_with_zero)
    windows = [token_windows([(caption, 1.0)], partial(plain_ids, tokenizer), special)[0] for caption in captions]
    return torch.tensor([[token for token, _ in window] for window in windows], dtype=torch.long)


def plain_ids(tokenizer: Any, text: str) -> list[int]:
    """All token ids of a text, without marks."""
    return list(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)["input_ids"])


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, without marks."""
    if not texts:
        return []
    found = tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
    return [len(ids) for ids in found]


def special_tokens(tokenizer: Any, *, pads_with_zero: bool) -> SpecialTokens:
    """The marks that frame a text, and what fills it up."""
    start, end = (int(tokenizer.convert_tokens_to_ids(mark)) for mark in (BOS, EOS))
    return SpecialTokens(start=start, end=end, pad=0 if pads_with_zero else end, window_tokens=NUM_TOKENS)
