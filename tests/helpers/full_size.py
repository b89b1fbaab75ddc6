"""Random SD1.x single-file checkpoints, of full size (2 GB in fp16) or of tiny sizes, written tensor by tensor."""

from __future__ import annotations

import argparse
import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer.text_model."
_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}

FULL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768},
    "vae": {"block_out_channels": [128, 256, 512, 512]},
    "text_encoder": {
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
        "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407,
    },
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [64, 64, 96, 128], "cross_attention_dim": 64},
    "vae": {"block_out_channels": [32, 32, 32, 32]},
    "text_encoder": {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
        "vocab_size": 514, "bos_token_id": 512, "eos_token_id": 513,
    },
}  # fmt: skip


def unet_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """LDM key -> shape of an SD1.x U-Net, without the prefix."""
    widths, context, table = list(sizes["block_out_channels"]), int(sizes["cross_attention_dim"]), _Table()
    time = widths[0] * 4
    table.linear("time_embed.0", widths[0], time)
    table.linear("time_embed.2", time, time)
    table.conv("input_blocks.0.0", 4, widths[0], 3)
    skips, channels, number = [widths[0]], widths[0], 0
    for level, width in enumerate(widths):
        for _ in range(2):
            number += 1
            table.resnet(f"input_blocks.{number}.0", channels, width, time)
            channels = width
            if level < 3:
                table.transformer(f"input_blocks.{number}.1", width, context)
            skips.append(width)
        if level < 3:
            number += 1
            table.conv(f"input_blocks.{number}.0.op", width, width, 3)
            skips.append(width)
    table.resnet("middle_block.0", channels, channels, time)
    table.transformer("middle_block.1", channels, context)
    table.resnet("middle_block.2", channels, channels, time)
    number = -1
    for level, width in reversed(list(enumerate(widths))):
        for index in range(3):
            number += 1
            table.resnet(f"output_blocks.{number}.0", channels + skips.pop(), width, time)
            channels = width
            if level < 3:
                table.transformer(f"output_blocks.{number}.1", width, context)
            if index == 2 and level > 0:
                table.conv(f"output_blocks.{number}.{2 if level < 3 else 1}.conv", width, width, 3)
    table.norm("out.0", widths[0])
    table.conv("out.2", widths[0], 4, 3)
    return table.shapes


def vae_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """LDM key -> shape of an SD1.x VAE, without the prefix."""
    widths, table = list(sizes["block_out_channels"]), _Table()
    last = widths[-1]
    table.conv("encoder.conv_in", 3, widths[0], 3)
    channels = widths[0]
    for level, width in enumerate(widths):
        for index in range(2):
            table.vae_resnet(f"encoder.down.{level}.block.{index}", channels, width)
            channels = width
        if level < 3:
            table.conv(f"encoder.down.{level}.downsample.conv", width, width, 3)
    table.vae_middle("encoder.mid", last)
    table.norm("encoder.norm_out", last)
    table.conv("encoder.conv_out", last, 8, 3)
    table.conv("decoder.conv_in", 4, last, 3)
    table.vae_middle("decoder.mid", last)
    channels = last
    for level, width in reversed(list(enumerate(widths))):
        for index in range(3):
            table.vae_resnet(f"decoder.up.{level}.block.{index}", channels, width)
            channels = width
        if level > 0:
            table.conv(f"decoder.up.{level}.upsample.conv", width, width, 3)
    table.norm("decoder.norm_out", widths[0])
    table.conv("decoder.conv_out", widths[0], 3, 3)
    table.conv("quant_conv", 8, 8, 1)
    table.conv("post_quant_conv", 4, 4, 1)
    return table.shapes


def text_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the CLIP text encoder, without the prefix; `embeddings.position_ids` comes separately."""
    width, inner, table = int(sizes["hidden_size"]), int(sizes["intermediate_size"]), _Table()
    table.shapes["embeddings.token_embedding.weight"] = (int(sizes["vocab_size"]), width)
    table.shapes["embeddings.position_embedding.weight"] = (77, width)
    for layer in range(int(sizes["num_hidden_layers"])):
        prefix = f"encoder.layers.{layer}"
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            table.linear(f"{prefix}.self_attn.{name}", width, width)
        table.norm(f"{prefix}.layer_norm1", width)
        table.linear(f"{prefix}.mlp.fc1", width, inner)
        table.linear(f"{prefix}.mlp.fc2", inner, width)
        table.norm(f"{prefix}.layer_norm2", width)
    table.norm("final_layer_norm", width)
    return table.shapes


class _Table:
    """Collects the shapes of layers."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}

    def linear(self, name: str, wide_in: int, wide_out: int, bias: bool = True) -> None:
        self.shapes[f"{name}.weight"] = (wide_out, wide_in)
        if bias:
            self.shapes[f"{name}.bias"] = (wide_out,)

    def conv(self, name: str, wide_in: int, wide_out: int, kernel: int) -> None:
        self.shapes[f"{name}.weight"] = (wide_out, wide_in, kernel, kernel)
        self.shapes[f"{name}.bias"] = (wide_out,)

    def norm(self, name: str, width: int) -> None:
        self.shapes[f"{name}.weight"] = (width,)
        self.shapes[f"{name}.bias"] = (width,)

    def resnet(self, name: str, wide_in: int, wide_out: int, time: int) -> None:
        self.norm(f"{name}.in_layers.0", wide_in)
        self.conv(f"{name}.in_layers.2", wide_in, wide_out, 3)
        self.linear(f"{name}.emb_layers.1", time, wide_out)
        self.norm(f"{name}.out_layers.0", wide_out)
        self.conv(f"{name}.out_layers.3", wide_out, wide_out, 3)
        if wide_in != wide_out:
            self.conv(f"{name}.skip_connection", wide_in, wide_out, 1)

    def transformer(self, name: str, width: int, context: int) -> None:
        self.norm(f"{name}.norm", width)
        self.conv(f"{name}.proj_in", width, width, 1)
        block = f"{name}.transformer_blocks.0"
        for attention, source in (("attn1", width), ("attn2", context)):
            self.linear(f"{block}.{attention}.to_q", width, width, bias=False)
            self.linear(f"{block}.{attention}.to_k", source, width, bias=False)
            self.linear(f"{block}.{attention}.to_v", source, width, bias=False)
            self.linear(f"{block}.{attention}.to_out.0", width, width)
        self.linear(f"{block}.ff.net.0.proj", width, width * 8)
        self.linear(f"{block}.ff.net.2", width * 4, width)
        for number in (1, 2, 3):
            self.norm(f"{block}.norm{number}", width)
        self.conv(f"{name}.proj_out", width, width, 1)

    def vae_resnet(self, name: str, wide_in: int, wide_out: int) -> None:
        self.norm(f"{name}.norm1", wide_in)
        self.conv(f"{name}.conv1", wide_in, wide_out, 3)
        self.norm(f"{name}.norm2", wide_out)
        self.conv(f"{name}.conv2", wide_out, wide_out, 3)
        if wide_in != wide_out:
            self.conv(f"{name}.nin_shortcut", wide_in, wide_out, 1)

    def vae_middle(self, name: str, width: int) -> None:
        self.vae_resnet(f"{name}.block_1", width, width)
        self.norm(f"{name}.attn_1.norm", width)
        for layer in ("q", "k", "v", "proj_out"):
            self.conv(f"{name}.attn_1.{layer}", width, width, 1)
        self.vae_resnet(f"{name}.block_2", width, width)


def checkpoint_shapes(sizes: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the whole checkpoint: 686 U-Net keys, 248 of the VAE, 16 per text layer and 4 more."""
    shapes = {f"{UNET}{key}": shape for key, shape in unet_shapes(sizes["unet"]).items()}
    shapes.update({f"{VAE}{key}": shape for key, shape in vae_shapes(sizes["vae"]).items()})
    shapes.update({f"{TEXT}{key}": shape for key, shape in text_shapes(sizes["text_encoder"]).items()})
    return shapes


def random_value(key: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """fp32 values that keep activations finite: norms 1 and 0, biases 0, weights N(0, 1 / fan_in)."""
    if key.endswith(".bias"):
        return torch.zeros(*shape)
    if len(shape) == 1:
        return torch.ones(*shape)
    if "embedding" in key:
        return torch.randn(*shape, generator=generator) * 0.02
    return torch.randn(*shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def write_checkpoint(
    path: Path,
    *,
    sizes: Mapping[str, Mapping[str, Any]] = FULL,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
    tokenizer: Mapping[str, Any] | None = None,
    sizes_in_metadata: bool | None = None,
    position_ids: torch.dtype | None = torch.int64,
    nai_names: bool = False,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """Writes a random checkpoint; at most one tensor is in memory.

    Args:
        path: the file.
        sizes: `FULL` or `TINY`, or a table like them.
        dtype: of every weight.
        seed: of the values.
        tokenizer: {"vocab", "merges"} to embed in the metadata; None embeds none.
        sizes_in_metadata: None embeds them unless the sizes are `FULL`.
        position_ids: their dtype; None leaves them out.
        nai_names: text-encoder keys without `text_model.`, as the NovelAI leak and its children have them.
        extra: more tensors, e.g. EMA weights.
    """
    shapes = checkpoint_shapes(sizes)
    rows: dict[str, tuple[str, tuple[int, ...], Tensor | None]] = {
        key: (_DTYPES[dtype], shape, None) for key, shape in shapes.items()
    }
    if position_ids is not None:
        ids = torch.arange(77).unsqueeze(0).to(position_ids)
        rows[f"{TEXT}embeddings.position_ids"] = (_DTYPES[position_ids], (1, 77), ids)
    for key, value in (extra or {}).items():
        rows[key] = (_DTYPES[value.dtype], tuple(value.shape), value)
    if nai_names:
        rows = {key.replace(TEXT, TEXT.replace("text_model.", "")): row for key, row in rows.items()}
    metadata = {"format": "pt"}
    if sizes_in_metadata if sizes_in_metadata is not None else sizes is not FULL:
        metadata.update({"atelier.family": "sd15", "atelier.sizes": json.dumps(sizes)})
    if tokenizer is not None:
        metadata["atelier.tokenizer"] = json.dumps(tokenizer)
    _stream(path, rows, metadata, dtype, torch.Generator().manual_seed(seed))
    return path


def _stream(
    path: Path,
    rows: Mapping[str, tuple[str, tuple[int, ...], Tensor | None]],
    metadata: Mapping[str, str],
    dtype: torch.dtype,
    generator: torch.Generator,
) -> None:
    width = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}
    ordered = sorted(rows.items(), key=lambda item: (-width[item[1][0]], item[0]))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for key, (name, shape, _) in ordered:
        size = math.prod(shape) * width[name]
        header[key] = {"dtype": name, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(header).encode("utf-8")
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for key, (_, shape, given) in ordered:
            value = random_value(key, shape, generator).to(dtype) if given is None else given
            file.write(value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def byte_tokenizer(words: Sequence[str] = ()) -> dict[str, Any]:
    """A CLIP BPE vocabulary of the 256 bytes, the same at a word's end, merges that spell `words`, and the two marks.

    Ids: 0-255 bytes, 256-511 bytes with `</w>`, then merges, then start and end. Without words it has 514 entries.
    """
    symbols = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256))]
    symbols += [chr(256 + index) for index in range(256 - len(symbols))]
    tokens = symbols + [f"{symbol}</w>" for symbol in symbols]
    merges: list[str] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        while len(pieces) > 1:
            merge = f"{pieces[-2]} {pieces[-1]}"
            pieces[-2:] = ["".join(pieces[-2:])]
            if merge not in merges:
                merges.append(merge)
                tokens.append(pieces[-1])
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {"vocab": {token: index for index, token in enumerate(tokens)}, "merges": merges}


def write_tiny_checkpoint(path: Path, **options: Any) -> Path:
    """A random checkpoint of a few MB with its sizes and a byte tokenizer in its metadata."""
    return write_checkpoint(path, **{"sizes": TINY, "tokenizer": byte_tokenizer(), **options})


def main() -> None:
    """Command line: `python tests/helpers/full_size.py TARGET [--dtype fp16|bf16|fp32] [--seed N]`."""
    parser = argparse.ArgumentParser(description="Write a random full-size SD1.5 checkpoint.")
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[given.dtype]
    write_checkpoint(given.target, dtype=dtype, seed=given.seed)


if __name__ == "__main__":
    main()
