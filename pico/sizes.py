"""The tiny widths of the world's networks, and the untrained networks themselves.

Everything else is SD1.x: four levels, two resnets a level in the UNet, attention in its first three, eight heads,
32 norm groups, an 8x autoencoder with four latent channels, a CLIP text encoder of 77 positions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

TEXT_WIDTH = 96
MAX_TOKENS = 77
LATENT_FACTOR_PX = 8
LATENT_CHANNELS = 4
VAE_SCALE = 0.18215
"""Latents are multiplied by this before the UNet sees them; every SD1.x program has the number built in."""

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 12,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [64, 64, 96, 128],
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": TEXT_WIDTH,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
}
VAE_CONFIG: dict[str, Any] = {
    "sample_size": 96,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [64, 64, 64, 96],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "scaling_factor": VAE_SCALE,
}


def text_encoder_config(vocabulary_size: int, start_id: int, end_id: int) -> dict[str, Any]:
    """The CLIP text configuration for a vocabulary of this size."""
    return {
        "vocab_size": vocabulary_size,
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 4 * TEXT_WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "max_position_embeddings": MAX_TOKENS,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "bos_token_id": start_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
        "projection_dim": TEXT_WIDTH,
    }


def new_unet() -> UNet2DConditionModel:
    """An untrained UNet of `UNET_CONFIG`."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(**UNET_CONFIG)


def new_vae() -> AutoencoderKL:
    """An untrained autoencoder of `VAE_CONFIG`."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(**VAE_CONFIG)


def new_text_encoder(config: dict[str, Any]) -> CLIPTextModel:
    """An untrained text encoder of a :func:`text_encoder_config`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**config))


def count_parameters(module: nn.Module) -> int:
    """Number of weights in a module."""
    return sum(p.numel() for p in module.parameters())
