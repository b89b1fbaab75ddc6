"""The text encoders of all families: CLIP and OpenCLIP, built from a single file, and what they say of a text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import FormatError, InputError
from ..core.progress import Progress
from ..core.tensors import Header, TensorSource
from ..core.transfer import to_device
from ._emphasis import Segments, parse_emphasis
from ._single_file import FilePart, build_on_meta, fill_module
from ._spec import Kind, Target, TextEncoderSpec, TextOptions
from ._tokenizer import plain_ids, special_tokens
from ._windows import fixed_windows, same_length, token_windows, weighted_states, without_inner_marks

CLIP_CONFIG: dict[str, Any] = {
    "vocab_size": 49408,
    "max_position_embeddings": 77,
    "layer_norm_eps": 1e-5,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
    "pad_token_id": 49407,
}
CLIP_L: dict[str, Any] = {
    **CLIP_CONFIG,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "quick_gelu",
    "projection_dim": 768,
}
"""CLIP ViT-L/14's text model, as SD1.x and SDXL have it."""

_TARGET_PATH = re.compile(r"^text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$")
_LAYER = re.compile(r"^encoder\.layers\.(\d+)\.(.+)$")
_IGNORED = ("position_ids", "text_projection.weight", "text_projection", "logit_scale", "attn_mask")


def inner_text_model(model: Any) -> Any:
    """The module with embeddings, encoder and final layer norm; the libraries wrap it or not, by version and class."""
    return getattr(model, "text_model", model)


# --- loading -----------------------------------------------------------------------------------------------------

_OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_FUSED = {"self_attn.q_proj": 0, "self_attn.k_proj": 1, "self_attn.v_proj": 2}


def open_clip_part(key: str, width: int, *, linear_projection: bool = False) -> FilePart | None:
    """Where the weight of a transformers CLIP text model lies in an OpenCLIP checkpoint.

    Args:
        key: of the transformers model, with or without a leading `text_model.`.
        width: of the encoder.
        linear_projection: whether the file holds the projection as a linear layer's weight already.

    Source: OpenCLIP's TextTransformer (fused `in_proj` in the order q, k, v; the projection multiplies from the right).
    """
    key = key.removeprefix("text_model.")
    if key == "text_projection.weight":
        return FilePart(key=key) if linear_projection else FilePart(key="text_projection", transposed=True)
    if key in _OPEN_CLIP:
        return FilePart(key=_OPEN_CLIP[key])
    found = _LAYER.match(key)
    if found is None:
        return None
    block, (path, _, kind) = f"transformer.resblocks.{found[1]}", found[2].rpartition(".")
    if path in _FUSED:
        first = _FUSED[path] * width
        return FilePart(key=f"{block}.attn.in_proj_{kind}", rows=(first, first + width))
    return FilePart(key=f"{block}.{_OPEN_CLIP_LAYER[path]}.{kind}") if path in _OPEN_CLIP_LAYER else None


def text_prefix(header: Header, spec: TextEncoderSpec) -> str:
    """The beginning of the encoder's keys in this file; the usual one if none is there."""
    for prefix in spec.prefixes:
        if any(key.startswith(prefix) for key in header.shapes):
            return prefix
    return spec.prefixes[0]


def load_text_encoder(
    file: TensorSource,
    spec: TextEncoderSpec,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress | None,
) -> Any:
    """Builds a text encoder from its keys of the file.

    Raises:
        FormatError: the file holds none, or one of another layout.
    """
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    prefix = text_prefix(file.header, spec)
    keys = {key[len(prefix) :] for key in file.header.shapes if key.startswith(prefix)}
    if not keys:
        raise FormatError(
            f"{file.path.name} holds no {spec.title} (keys {spec.prefixes[-1]}...); use a checkpoint with all parts"
        )
    kind = CLIPTextModelWithProjection if spec.pooled else CLIPTextModel
    num_layers = int(config["num_hidden_layers"])
    used = {**config, "num_hidden_layers": num_layers - spec.dropped_layers}
    dropped = tuple(f"transformer.resblocks.{num_layers - 1 - back}." for back in range(spec.dropped_layers))
    model = build_on_meta(lambda: kind(CLIPTextConfig(**used)), spec.title)
    width, linear = int(config["hidden_size"]), "text_projection.weight" in keys

    def place(key: str) -> FilePart | None:
        if spec.open_clip:
            return open_clip_part(key, width, linear_projection=linear)
        return FilePart(key=key.removeprefix("text_model."))

    fill_module(
        model, file, what=spec.title, prefix=prefix, file_key=place,
        ignored=lambda key: key.endswith(_IGNORED) or key.startswith(dropped),
        dtype=dtype, device=device, progress=progress,
    )  # fmt: skip
    return model


# --- encoding ----------------------------------------------------------------------------------------------------


def layer_for(spec: TextEncoderSpec, model: Any, clip_skip: int) -> int:
    """The layer, counted from the last of the file, that a clip skip means on this encoder.

    1 means the layer that the base was made with, which is the last one of SD1.x and the one before it of SD2 and SDXL;
    larger numbers count from the last layer everywhere, as A1111 and kohya count.

    Raises:
        InputError: the encoder has fewer layers.
    """
    num_layers = len(inner_text_model(model).encoder.layers) + spec.dropped_layers
    if not 1 <= clip_skip <= num_layers:
        raise InputError(f"clip skip is {clip_skip}, allowed is 1 to {num_layers} for this base model")
    return max(clip_skip, spec.own_layer)


def encode_ids(model: Any, ids: Tensor, spec: TextEncoderSpec, *, layer: int) -> tuple[Tensor, Tensor]:
    """Hidden states of one layer, and the state at the end mark.

    Args:
        model: of transformers, with or without projection.
        ids: int64 [batch, tokens].
        spec: of the encoder.
        layer: counted from the last (1) of the file; beyond the first it means the last, normed, as ComfyUI takes it.

    Returns:
        hidden [batch, tokens, channels] and pooled [batch, channels], projected where the spec says so.
    """
    inner = inner_text_model(model)
    ids = to_device(ids, inner.final_layer_norm.weight.device)
    layer -= spec.dropped_layers
    if layer < 1:
        raise InputError(f"the last layer of the {spec.title} is not built, because no model uses it; take another")
    if layer > len(inner.encoder.layers) or (layer == 1 and spec.normed):
        output = model(input_ids=ids)
        return output.last_hidden_state, _pooled(output, spec)
    output = model(input_ids=ids, output_hidden_states=True)
    hidden = output.hidden_states[-layer]
    return inner.final_layer_norm(hidden) if spec.normed else hidden, _pooled(output, spec)


def segments_of(caption: str, options: TextOptions) -> Segments:
    """The caption's texts with their weights.

    Raises:
        InputError: a weight is not finite, or beyond what is allowed.
    """
    return parse_emphasis(caption).segments if options.weighted else ((caption, 1.0),)


def encode_segments(
    model: Any,
    tokenizer: Any,
    captions: Sequence[Segments],
    spec: TextEncoderSpec,
    *,
    layer: int,
    options: TextOptions,
) -> tuple[Tensor, Tensor]:
    """Hidden states and pooled state of captions of any length.

    Args:
        model: of transformers.
        tokenizer: of transformers.
        captions: the texts of each with their weights.
        spec: of the encoder.
        layer: as of `encode_ids`.
        options: how many tokens are read and how windows are joined.

    Returns:
        hidden [batch, tokens, channels], and pooled [batch, channels] of each caption's first window.
    """
    special = special_tokens(tokenizer, pads_with_zero=spec.pads_with_zero)
    lay = token_windows if options.long_captions == "comfyui" or options.max_tokens == special.room else fixed_windows
    windows = [
        lay(segments, partial(plain_ids, tokenizer), special, max_tokens=options.max_tokens) for segments in captions
    ]
    ids = torch.tensor([[token for token, _ in window] for rows in windows for window in rows], dtype=torch.long)
    hidden, pooled = encode_ids(model, ids, spec, layer=layer)
    is_weighted = any(weight != 1.0 for segments in captions for _, weight in segments)
    if len(hidden) == len(captions) and not is_weighted:
        return hidden, pooled
    counts = [len(rows) for rows in windows]
    states: list[Tensor] = []
    for rows, state in zip(windows, torch.split(hidden, counts), strict=True):
        weights = torch.tensor([[weight for _, weight in window] for window in rows]).unsqueeze(-1)
        joined = [
            without_inner_marks(part) if lay is fixed_windows else part.flatten(0, 1) for part in (state, weights)
        ]
        weighted = bool((weights != 1.0).any())
        states.append(weighted_states(joined[0], joined[1][:, 0]) if weighted else joined[0])
    firsts = torch.tensor([0, *itertools.accumulate(counts[:-1])])
    return same_length(states), pooled[to_device(firsts, pooled.device)]


def _pooled(output: Any, spec: TextEncoderSpec) -> Tensor:
    pooled: Tensor = output.text_embeds if spec.pooled else output.pooler_output
    return pooled


# --- names -------------------------------------------------------------------------------------------------------


def text_targets(model: Any, spec: TextEncoderSpec) -> Iterator[Target]:
    """Kohya's default targets: the linear layers of attention and feed-forward, layer by layer."""
    for name, module in inner_text_model(model).named_modules():
        path = f"text_model.{name}"
        if _TARGET_PATH.match(path):
            stem, kind = f"{spec.stem}_{path.replace('.', '_')}", kind_of(module)
            if kind is not None:
                yield Target(stem=stem, path=path, part="text_encoder", block="TE", kind=kind, module=module)


def kind_of(module: nn.Module) -> Kind | None:
    """Linear or convolution by kernel size; None for everything that no adapter is made for."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv1x1" if tuple(module.kernel_size) == (1, 1) else "conv3x3"
    return None
