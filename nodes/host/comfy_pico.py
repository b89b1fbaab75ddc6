"""Pico as ComfyUI's own MODEL, CLIP and VAE.

ComfyUI's checkpoint loader knows only full-size models, so its SD1.5 classes are built here from the sizes in the
file; from there on its own samplers, LoRA patching and VAE code draw the pictures. Like ``comfy.py``, this file
touches ComfyUI, and only inside functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import FormatError
from ...core.files import write_text
from ...core.tensors import read_header, read_tensors
from ...families._spec import get_family
from ...families._tokenizer import read_tables
from .protocol import CLIP, MODEL, VAE

if TYPE_CHECKING:
    import torch

    from ...core.tensors import Header

SIZES_KEY = "atelier.sizes"
FAMILY_KEY = "atelier.family"
TOKENIZER_KEY = "atelier.tokenizer"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
CLIP_TEXT_MODEL = "clip_l.transformer.text_model."
START, END = "<|startoftext|>", "<|endoftext|>"


class _Ratio(float):
    """A width as a multiple of another; ComfyUI multiplies the two and needs a whole number of channels."""

    def __mul__(self, width: Any) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


def is_pico(header: Header) -> bool:
    """True when the file carries its own sizes."""
    return SIZES_KEY in header.metadata


def load_pico(path: Path, *, temp_dir: Path) -> tuple[MODEL, CLIP, VAE]:
    """Load a file with sizes in its metadata as ComfyUI's MODEL, CLIP and VAE; the tokenizer goes to temp_dir.

    Raises:
        FormatError: the metadata is not what it should be, or does not fit the file's tensors.
        UnknownNameError: the file names a family that is not here.
    """
    header = read_header(path)
    sizes = checked_sizes(header, path)
    tensors = read_tensors(path)
    vae_tensors = {key[len(VAE_PREFIX) :]: value for key, value in tensors.items() if key.startswith(VAE_PREFIX)}
    config = _model_config(sizes["unet"])
    tokenizer_dir = _unpack_tokenizer(header.metadata[TOKENIZER_KEY], path, temp_dir)
    clip = _clip(config, dict(tensors), sizes["text_encoder"], tokenizer_dir)
    return _model(config, tensors), clip, _vae(vae_tensors, sizes["vae"])


def checked_sizes(header: Header, path: Path) -> dict[str, dict[str, Any]]:
    """The sizes of the file's metadata, so far checked that no model larger than the file is built from them.

    Raises:
        FormatError: metadata is missing, a size is not one the family can have, or it is not that of the tensors.
        UnknownNameError: the file names a family that is not here.
    """
    for key in (FAMILY_KEY, TOKENIZER_KEY):
        if key not in header.metadata:
            raise FormatError(f"{path.name} has {SIZES_KEY} in its metadata but no {key}; make the file again")
    sizes: dict[str, dict[str, Any]] = get_family(header.metadata[FAMILY_KEY]).sizes(header)
    for key, expected in _expected_shapes(sizes):
        if header.shapes.get(key) != expected:
            raise FormatError(
                f"{path.name}: its metadata {SIZES_KEY} asks for {key} of shape {expected}, "
                f"the file has {header.shapes.get(key, 'no such tensor')}; make the file again"
            )
    return sizes


def _expected_shapes(sizes: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One tensor for every size that decides how much memory the model takes."""
    unet, vae, text = sizes["unet"], sizes["vae"], sizes["text_encoder"]
    first, inputs = unet["block_out_channels"][0], f"{UNET_PREFIX}input_blocks."
    yield f"{inputs}0.0.weight", (first, unet["in_channels"], 3, 3)
    yield f"{UNET_PREFIX}out.2.weight", (unet["out_channels"], first, 3, 3)
    yield f"{inputs}1.1.transformer_blocks.0.attn2.to_k.weight", (first, unet["cross_attention_dim"])
    for level, width in enumerate(unet["block_out_channels"]):
        yield f"{inputs}{1 + level * (unet['layers_per_block'] + 1)}.0.out_layers.3.weight", (width, width, 3, 3)
    for level, width in enumerate(vae["block_out_channels"]):
        for layer in range(vae["layers_per_block"]):
            yield f"{VAE_PREFIX}encoder.down.{level}.block.{layer}.conv2.weight", (width, width, 3, 3)
    yield f"{VAE_PREFIX}encoder.conv_in.weight", (vae["block_out_channels"][0], vae["in_channels"], 3, 3)
    yield f"{VAE_PREFIX}decoder.conv_out.weight", (vae["out_channels"], vae["block_out_channels"][0], 3, 3)
    yield f"{TEXT_PREFIX}embeddings.token_embedding.weight", (text["vocab_size"], text["hidden_size"])
    yield (
        f"{TEXT_PREFIX}embeddings.position_embedding.weight",
        (text["max_position_embeddings"], text["hidden_size"]),
    )
    for layer in range(text["num_hidden_layers"]):
        key = f"{TEXT_PREFIX}encoder.layers.{layer}.mlp.fc1.weight"
        yield key, (text["intermediate_size"], text["hidden_size"])


def _ratios(widths: Sequence[int]) -> list[Any]:
    """Each width as a multiple of the first."""
    whole = all(width % widths[0] == 0 for width in widths)
    return [width // widths[0] if whole else _Ratio(width / widths[0]) for width in widths]


def _model_config(unet: dict[str, Any]) -> Any:
    """ComfyUI's SD15 model config with the sizes of a diffusers UNet config."""
    import comfy.supported_models

    resnets = unet["layers_per_block"]
    attention = [int(kind.startswith("CrossAttn")) for kind in unet["down_block_types"]]
    config = comfy.supported_models.SD15(
        {
            "image_size": 32,
            "in_channels": unet["in_channels"],
            "out_channels": unet["out_channels"],
            "model_channels": unet["block_out_channels"][0],
            "channel_mult": _ratios(unet["block_out_channels"]),
            "num_res_blocks": [resnets] * len(attention),
            "transformer_depth": [depth for depth in attention for _ in range(resnets)],
            "transformer_depth_output": [depth for depth in attention for _ in range(resnets + 1)],
            "transformer_depth_middle": 1,
            "context_dim": unet["cross_attention_dim"],
            "use_spatial_transformer": True,
            "use_linear_in_transformer": False,
            "use_temporal_resblock": False,
            "use_temporal_attention": False,
            "adm_in_channels": None,
            "legacy": False,
        }
    )
    config.unet_config["num_heads"] = unet["attention_head_dim"]
    return config


def _model(config: Any, tensors: dict[str, torch.Tensor]) -> MODEL:
    """The UNet as a patchable model."""
    import comfy.model_management as management
    import comfy.model_patcher
    import torch

    device = management.get_torch_device()
    parameters = sum(value.numel() for key, value in tensors.items() if key.startswith(UNET_PREFIX))
    supported = list(config.supported_inference_dtypes)
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=torch.float16)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(tensors, UNET_PREFIX, device=management.unet_offload_device())
    model.load_model_weights(tensors, UNET_PREFIX)
    offload = management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _vae(tensors: dict[str, torch.Tensor], vae: dict[str, Any]) -> VAE:
    """The autoencoder, in float32: it is tiny, and rounding would show."""
    import comfy.sd
    import torch

    widths = vae["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": 256,
        "in_channels": vae["in_channels"],
        "out_ch": vae["out_channels"],
        "ch": widths[0],
        "ch_mult": _ratios(widths),
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    config = {"params": {"ddconfig": ddconfig, "embed_dim": vae["latent_channels"]}}
    return comfy.sd.VAE(sd=tensors, config=config, dtype=torch.float32)


def _clip(config: Any, tensors: dict[str, torch.Tensor], text: dict[str, Any], tokenizer_dir: Path) -> CLIP:
    """The text encoder with its own tokenizer."""
    import comfy.sd
    import comfy.sd1_clip
    from comfy.supported_models_base import ClipTarget

    start, end = text["bos_token_id"], text["eos_token_id"]

    class PicoTextModel(comfy.sd1_clip.SDClipModel):  # type: ignore[misc, name-defined]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(text),
                special_tokens={"start": start, "end": end, "pad": end},
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class PicoClipModel(comfy.sd1_clip.SD1ClipModel):  # type: ignore[misc, name-defined]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=PicoTextModel)

    class PicoTokenizer(comfy.sd1_clip.SDTokenizer):  # type: ignore[misc, name-defined]
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                str(tokenizer_dir),
                embedding_directory=embedding_directory,
                embedding_size=text["hidden_size"],
                tokenizer_data=tokenizer_data or {},
            )

    class PicoClipTokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc, name-defined]
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=PicoTokenizer)

    clip = comfy.sd.CLIP(ClipTarget(PicoClipTokenizer, PicoClipModel), parameters=1)
    state = config.process_clip_state_dict(tensors)
    key = f"{CLIP_TEXT_MODEL}embeddings.token_embedding.weight"
    state[key] = _more_rows(state[key], len(clip.cond_stage_model.state_dict()[key]))
    clip.load_sd(state, full_model=True)
    return clip


def _more_rows(embedding: torch.Tensor, rows: int) -> torch.Tensor:
    """[tokens, width] with zero rows added: ComfyUI's CLIP always has the full-size vocabulary."""
    import torch

    return torch.cat([embedding, embedding.new_zeros(max(0, rows - len(embedding)), embedding.shape[1])])


def _unpack_tokenizer(metadata: str, path: Path, temp_dir: Path) -> Path:
    """Write the two files that ComfyUI's tokenizer class reads; the folder's name is that of their content."""
    from hashlib import sha256

    vocab, merges = read_tables(metadata, path)
    folder = temp_dir / f"atelier-tokenizer-{sha256(metadata.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_text(folder / "vocab.json", json.dumps(vocab))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(marks))
    write_text(folder / "tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer", **marks}))
    return folder
