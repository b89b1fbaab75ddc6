"""Random single-file checkpoints of SD1.x, SD2 and SDXL, of full or tiny sizes, written tensor by tensor."""

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

FULL_SD2: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 1024},
    "vae": FULL["vae"],
    "text_encoder": {
        "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
        "projection_dim": 1024, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407,
    },
}  # fmt: skip
TINY_SD2: dict[str, dict[str, Any]] = {
    "unet": {**TINY["unet"], "attention_head_dim": [2, 2, 3, 4]},
    "vae": TINY["vae"],
    "text_encoder": {**TINY["text_encoder"], "num_hidden_layers": 4, "projection_dim": 64},
}
FULL_SDXL: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [320, 640, 1280], "cross_attention_dim": 2048,
        "transformer_layers_per_block": [1, 2, 10], "projection_class_embeddings_input_dim": 2816,
    },
    "vae": FULL["vae"],
    "text_encoder": FULL["text_encoder"],
    "text_encoder_2": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "projection_dim": 1280, "vocab_size": 49408, "bos_token_id": 49406, "eos_token_id": 49407,
    },
}  # fmt: skip
TINY_SDXL: dict[str, dict[str, Any]] = {
    "unet": {
        "block_out_channels": [32, 64, 96], "cross_attention_dim": 112, "attention_head_dim": [1, 2, 3],
        "transformer_layers_per_block": [1, 1, 2], "projection_class_embeddings_input_dim": 48 + 6 * 256,
    },
    "vae": TINY["vae"],
    "text_encoder": TINY["text_encoder"],
    "text_encoder_2": {**TINY["text_encoder"], "hidden_size": 48, "intermediate_size": 96, "projection_dim": 48},
}  # fmt: skip
FULL_OF = {"sd15": FULL, "sd2": FULL_SD2, "sdxl": FULL_SDXL}
TINY_OF = {"sd15": TINY, "sd2": TINY_SD2, "sdxl": TINY_SDXL}
TEXT_PLACES = {
    "sd15": {"text_encoder": TEXT},
    "sd2": {"text_encoder": "cond_stage_model.model."},
    "sdxl": {
        "text_encoder": "conditioner.embedders.0.transformer.text_model.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
}
"""Family -> text encoder -> beginning of its keys; those ending in `model.` without `text_` are OpenCLIP's."""


def unet_shapes(sizes: Mapping[str, Any], family: str = "sd15") -> dict[str, tuple[int, ...]]:
    """LDM key -> shape of a family's U-Net, without the prefix."""
    widths, context, table = list(sizes["block_out_channels"]), int(sizes["cross_attention_dim"]), _Table()
    depths = [1, 1, 1, 0] if family != "sdxl" else [0, *sizes["transformer_layers_per_block"][1:]]
    table.linear_projections, top = family != "sd15", len(widths) - 1
    time = widths[0] * 4
    table.linear("time_embed.0", widths[0], time)
    table.linear("time_embed.2", time, time)
    if family == "sdxl":
        table.linear("label_emb.0.0", int(sizes["projection_class_embeddings_input_dim"]), time)
        table.linear("label_emb.0.2", time, time)
    table.conv("input_blocks.0.0", 4, widths[0], 3)
    skips, channels, number = [widths[0]], widths[0], 0
    for level, width in enumerate(widths):
        for _ in range(2):
            number += 1
            table.resnet(f"input_blocks.{number}.0", channels, width, time)
            channels = width
            table.transformer(f"input_blocks.{number}.1", width, context, depth=depths[level])
            skips.append(width)
        if level < top:
            number += 1
            table.conv(f"input_blocks.{number}.0.op", width, width, 3)
            skips.append(width)
    table.resnet("middle_block.0", channels, channels, time)
    table.transformer("middle_block.1", channels, context, depth=max(1, depths[-1]))
    table.resnet("middle_block.2", channels, channels, time)
    number = -1
    for level, width in reversed(list(enumerate(widths))):
        for index in range(3):
            number += 1
            table.resnet(f"output_blocks.{number}.0", channels + skips.pop(), width, time)
            channels = width
            table.transformer(f"output_blocks.{number}.1", width, context, depth=depths[level])
            if index == 2 and level > 0:
                table.conv(f"output_blocks.{number}.{2 if depths[level] else 1}.conv", width, width, 3)
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


def open_clip_shapes(sizes: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Key -> shape of an OpenCLIP text encoder, without the prefix."""
    width, inner, table = int(sizes["hidden_size"]), int(sizes["intermediate_size"]), _Table()
    table.shapes["positional_embedding"] = (77, width)
    table.shapes["text_projection"] = (width, int(sizes["projection_dim"]))
    table.shapes["logit_scale"] = ()
    table.shapes["token_embedding.weight"] = (int(sizes["vocab_size"]), width)
    for layer in range(int(sizes["num_hidden_layers"])):
        prefix = f"transformer.resblocks.{layer}"
        table.norm(f"{prefix}.ln_1", width)
        table.norm(f"{prefix}.ln_2", width)
        table.shapes[f"{prefix}.attn.in_proj_weight"] = (3 * width, width)
        table.shapes[f"{prefix}.attn.in_proj_bias"] = (3 * width,)
        table.linear(f"{prefix}.attn.out_proj", width, width)
        table.linear(f"{prefix}.mlp.c_fc", width, inner)
        table.linear(f"{prefix}.mlp.c_proj", inner, width)
    table.norm("ln_final", width)
    return table.shapes


class _Table:
    """Collects the shapes of layers."""

    def __init__(self) -> None:
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.linear_projections = False

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

    def transformer(self, name: str, width: int, context: int, *, depth: int = 1) -> None:
        if depth == 0:
            return
        self.norm(f"{name}.norm", width)
        for projection in ("proj_in", "proj_out"):
            if self.linear_projections:
                self.linear(f"{name}.{projection}", width, width)
            else:
                self.conv(f"{name}.{projection}", width, width, 1)
        for number in range(depth):
            self._transformer_block(f"{name}.transformer_blocks.{number}", width, context)

    def _transformer_block(self, block: str, width: int, context: int) -> None:
        for attention, source in (("attn1", width), ("attn2", context)):
            self.linear(f"{block}.{attention}.to_q", width, width, bias=False)
            self.linear(f"{block}.{attention}.to_k", source, width, bias=False)
            self.linear(f"{block}.{attention}.to_v", source, width, bias=False)
            self.linear(f"{block}.{attention}.to_out.0", width, width)
        self.linear(f"{block}.ff.net.0.proj", width, width * 8)
        self.linear(f"{block}.ff.net.2", width * 4, width)
        for number in (1, 2, 3):
            self.norm(f"{block}.norm{number}", width)

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


def checkpoint_shapes(sizes: Mapping[str, Mapping[str, Any]], family: str = "sd15") -> dict[str, tuple[int, ...]]:
    """Key -> shape of the whole checkpoint; SD1.x: 686 U-Net keys, 248 of the VAE, 16 per text layer and 4 more."""
    shapes = {f"{UNET}{key}": shape for key, shape in unet_shapes(sizes["unet"], family).items()}
    shapes.update({f"{VAE}{key}": shape for key, shape in vae_shapes(sizes["vae"]).items()})
    for part, prefix in TEXT_PLACES[family].items():
        table = text_shapes if prefix.endswith("text_model.") else open_clip_shapes
        shapes.update({f"{prefix}{key}": shape for key, shape in table(sizes[part]).items()})
    return shapes


def random_value(key: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """fp32 values that keep activations finite: norms 1 and 0, biases 0, weights N(0, 1 / fan_in)."""
    if not shape:
        return torch.tensor(4.6)
    if key.endswith(("bias", "v_pred", "ztsnr")):
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
    family: str = "sd15",
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
        family: whose layout; `sizes` must be of the same.
        nai_names: text-encoder keys without `text_model.`, as the NovelAI leak and its children have them.
        extra: more tensors, e.g. EMA weights.
    """
    shapes = checkpoint_shapes(sizes, family)
    rows: dict[str, tuple[str, tuple[int, ...], Tensor | None]] = {
        key: (_DTYPES[dtype], shape, None) for key, shape in shapes.items()
    }
    if position_ids is not None and family != "sd2":
        ids = torch.arange(77).unsqueeze(0).to(position_ids)
        rows[f"{TEXT_PLACES[family]['text_encoder']}embeddings.position_ids"] = (_DTYPES[position_ids], (1, 77), ids)
    for key, value in (extra or {}).items():
        rows[key] = (_DTYPES[value.dtype], tuple(value.shape), value)
    if nai_names:
        rows = {key.replace(TEXT, TEXT.replace("text_model.", "")): row for key, row in rows.items()}
    metadata = {"format": "pt"}
    if sizes_in_metadata if sizes_in_metadata is not None else sizes is not FULL_OF[family]:
        metadata.update({"atelier.family": family, "atelier.sizes": json.dumps(sizes)})
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
    sizes = TINY_OF[options.get("family", "sd15")]
    return write_checkpoint(path, **{"sizes": sizes, "tokenizer": byte_tokenizer(), **options})


def main() -> None:
    """Command line: `python tests/helpers/full_size.py TARGET [--family sdxl] [--dtype fp16|bf16|fp32] [--seed N]`."""
    parser = argparse.ArgumentParser(description="Write a random full-size checkpoint.")
    parser.add_argument("--family", choices=sorted(FULL_OF), default="sd15")
    parser.add_argument("target", type=Path)
    parser.add_argument("--dtype", choices=["fp32", "fp16", "bf16"], default="fp16")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[given.dtype]
    write_checkpoint(given.target, sizes=FULL_OF[given.family], dtype=dtype, seed=given.seed, family=given.family)


if __name__ == "__main__":
    main()
