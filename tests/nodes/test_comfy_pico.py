"""What the metadata of a tiny base may ask for, before ComfyUI's classes are built from it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_atelier.core.errors import AtelierError, FormatError
from lora_atelier.core.tensors import Header, read_header
from lora_atelier.families._tokenizer import read_tables
from lora_atelier.nodes.host.comfy_pico import FAMILY_KEY, SIZES_KEY, TOKENIZER_KEY, checked_sizes
from lora_atelier.nodes.host.shared import PICO_BASE

HEADER = read_header(PICO_BASE)
PATH = Path("tiny.safetensors")


def changed(**metadata: str | None) -> Header:
    given = {**HEADER.metadata, **{key.replace("_", "."): value for key, value in metadata.items()}}
    return replace(HEADER, metadata={key: value for key, value in given.items() if value is not None})


def with_size(part: str, name: str, value: Any) -> Header:
    sizes = json.loads(HEADER.metadata[SIZES_KEY])
    sizes[part][name] = value
    return changed(atelier_sizes=json.dumps(sizes))


def test_the_shipped_base_passes() -> None:
    assert checked_sizes(HEADER, PATH)["unet"]["cross_attention_dim"] == 96
    read_tables(HEADER.metadata[TOKENIZER_KEY], PATH)


@pytest.mark.parametrize("key", [FAMILY_KEY, TOKENIZER_KEY])
def test_family_and_tokenizer_must_be_there(key: str) -> None:
    with pytest.raises(FormatError, match=key):
        checked_sizes(changed(**{key.replace(".", "_"): None}), PATH)


@pytest.mark.parametrize("sizes", ["", "[]", "{", "null", '{"unet": {}}'])
def test_broken_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(FormatError):
        checked_sizes(changed(atelier_sizes=sizes), PATH)
    with pytest.raises(AtelierError, match="family"):
        checked_sizes(changed(atelier_family="sd9"), PATH)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("unet", "block_out_channels", [64, 64, 96, 60000]),
        ("unet", "block_out_channels", [10**12] * 4),
        ("unet", "cross_attention_dim", 65000),
        ("vae", "block_out_channels", [64, 64, 60000, 96]),
        ("vae", "layers_per_block", 60),
        ("text_encoder", "num_hidden_layers", 60),
        ("text_encoder", "hidden_size", 64000),
        ("text_encoder", "intermediate_size", 64000),
        ("text_encoder", "vocab_size", 60000),
        ("text_encoder", "max_position_embeddings", 60000),
    ],
)
def test_no_model_larger_than_the_file_is_built(part: str, name: str, value: Any) -> None:
    with pytest.raises(FormatError):
        checked_sizes(with_size(part, name, value), PATH)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"vocab": {"a": "b"}, "merges": []}', '{"vocab": {}, "merges": []}'])
def test_broken_tokenizers_are_refused(text: str) -> None:
    with pytest.raises(FormatError, match="tokenizer"):
        read_tables(text, PATH)
