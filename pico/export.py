"""Writes the trained networks as one SD1.x single file: LDM names, fp16, sizes and tokenizer in the metadata."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import sizes
from .progress_file import save_tensors
from .tokenizer import Vocabulary

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."

_UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def unet_name(name: str) -> str:
    """The LDM name, without prefix, of a diffusers UNet tensor of the SD1.x layout (four levels, two resnets each)."""
    parts = re.fullmatch(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    if parts is None:
        for ours, theirs in _UNET_ENDS.items():
            if name.startswith(ours + "."):
                rest = name[len(ours) + 1 :]
                return f"{theirs}.{_renamed(rest, _UNET_RESNET) if 'resnets' in ours else rest}"
        raise KeyError(f"the UNet tensor {name!r} has no place in the SD1.x layout")
    side, kind, rest = parts[1], parts[3], parts[5]
    level, index = int(parts[2]), int(parts[4])
    if kind == "resnets":
        rest = _renamed(rest, _UNET_RESNET)
    if side == "down":
        if kind == "downsamplers":
            return f"input_blocks.{3 + 3 * level}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{1 + 3 * level + index}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{1 if level == 0 else 2}.{rest}"
    return f"output_blocks.{3 * level + index}.{int(kind == 'attentions')}.{rest}"


def vae_name(name: str) -> str:
    """The LDM name, without prefix, of a diffusers autoencoder tensor; decoder levels count the other way round."""
    levels = len(sizes.VAE_CONFIG["block_out_channels"])
    name = re.sub(r"mid_block\.attentions\.0\.(.+)", lambda m: "mid.attn_1." + _renamed(m[1], _VAE_ATTENTION), name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d)\.resnets", lambda m: f"up.{levels - 1 - int(m[1])}.block", name)
    name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{levels - 1 - int(m[1])}.upsample", name)
    return name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")


def _renamed(name: str, table: Mapping[str, str]) -> str:
    for ours, theirs in table.items():
        if name == ours or name.startswith(ours + "."):
            return theirs + name[len(ours) :]
    return name


def single_file_tensors(unet: UNet2DConditionModel, vae: AutoencoderKL, text: CLIPTextModel) -> dict[str, Tensor]:
    """Every tensor of the three networks under its LDM name, fp16; `position_ids` int64 as in the real file."""
    tensors = {UNET_PREFIX + unet_name(k): v for k, v in unet.state_dict().items()}
    for key, value in vae.state_dict().items():
        new = vae_name(key)
        is_attention_matrix = "attn_1" in new and value.ndim == 2
        tensors[VAE_PREFIX + new] = value[:, :, None, None] if is_attention_matrix else value
    for key, value in text.state_dict().items():
        tensors[TEXT_PREFIX + key.removeprefix("text_model.")] = value
    tensors = {k: v.detach().to(torch.float16) for k, v in tensors.items()}
    positions = torch.arange(sizes.MAX_TOKENS, dtype=torch.int64)[None]
    return tensors | {TEXT_PREFIX + "embeddings.position_ids": positions}


def file_metadata(text_config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, str]:
    """The metadata of the base file: what a loader needs beside the tensors, and the modelspec fields people read."""
    described = {"unet": sizes.UNET_CONFIG, "vae": sizes.VAE_CONFIG, "text_encoder": dict(text_config)}
    return {
        "atelier.family": "sd15",
        "atelier.sizes": json.dumps(described),
        "atelier.tokenizer": vocabulary.to_json(),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "diffusers",
        "modelspec.title": "Pico, a tiny drawn world",
        "modelspec.description": "A few million parameters trained from nothing on drawn shapes; to try and test with.",
        "modelspec.resolution": "96x96",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "MIT",
        "modelspec.author": "LoRA Atelier",
    }


def write_base(
    path: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderKL,
    text: CLIPTextModel,
    text_config: Mapping[str, Any],
    vocabulary: Vocabulary,
) -> None:
    """Write the base as one file."""
    save_tensors(path, single_file_tensors(unet, vae, text), file_metadata(text_config, vocabulary))


def fold_latent_scale(vae: AutoencoderKL, mean: Tensor, std: Tensor, *, scale: float = sizes.VAE_SCALE) -> None:
    """Change both 1x1 convolutions around the latents so that latents x `scale` have mean 0 and deviation 1.

    Args:
        vae: changed in place; pictures rebuilt by it stay the same.
        mean: [4] mean of the latents as they are now.
        std: [4] standard deviation of the latents as they are now.
        scale: of the family.
    """
    gain = 1.0 / (std * scale)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    channels = sizes.LATENT_CHANNELS
    with torch.no_grad():
        outward.bias += outward.weight[:, :, 0, 0] @ mean
        outward.weight /= gain[None, :, None, None]
        inward.weight[:channels] *= gain[:, None, None, None]
        inward.bias[:channels] = (inward.bias[:channels] - mean) * gain
        inward.bias[channels:] += 2 * gain.log()


def load_base(path: Path) -> tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel, Vocabulary]:
    """The three networks (fp32, evaluation mode) and the vocabulary of a base file, read back by our own name table."""
    from .progress_file import load_tensors

    tensors, metadata = load_tensors(path)
    described = json.loads(metadata["atelier.sizes"])
    vocabulary = Vocabulary.from_json(metadata["atelier.tokenizer"])
    unet, vae, text = sizes.new_unet(), sizes.new_vae(), sizes.new_text_encoder(described["text_encoder"])
    unet.load_state_dict({k: tensors[UNET_PREFIX + unet_name(k)].float() for k in unet.state_dict()})
    vae.load_state_dict({k: tensors[VAE_PREFIX + vae_name(k)].float().view_as(v) for k, v in vae.state_dict().items()})
    text.load_state_dict(
        {k: tensors[TEXT_PREFIX + k.removeprefix("text_model.")].to(v.dtype) for k, v in text.state_dict().items()}
    )
    return unet.eval(), vae.eval(), text.eval(), vocabulary
