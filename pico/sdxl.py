"""The tiny world in the shape of SDXL: three levels, two text encoders, sizes told to the UNet; and its single file.

What differs from SDXL are widths and depths alone, so that every loader takes it for what it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..families import _names
from ..families._clip import open_clip_part
from . import sizes
from .progress_file import save_tensors
from .tokenizer import Vocabulary

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

LATENT_SCALE = 0.13025
"""Latents are multiplied by this before SDXL's UNet sees them."""

SECOND_WIDTH = 64
SIZE_NUMBERS = 6
SIZE_CHANNELS = 256
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
FIRST_PREFIX = "conditioner.embedders.0.transformer.text_model."
SECOND_PREFIX = "conditioner.embedders.1.model."

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 12,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "transformer_layers_per_block": [1, 1, 2],
    "attention_head_dim": [1, 1, 2],
    "cross_attention_dim": sizes.TEXT_WIDTH + SECOND_WIDTH,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": SIZE_CHANNELS,
    "projection_class_embeddings_input_dim": SECOND_WIDTH + SIZE_NUMBERS * SIZE_CHANNELS,
    "norm_num_groups": 32,
}
VAE_CONFIG: dict[str, Any] = {
    **sizes.VAE_CONFIG,
    "block_out_channels": [32, 32, 32, 32],
    "scaling_factor": LATENT_SCALE,
}


def second_text_config(first: Mapping[str, Any]) -> dict[str, Any]:
    """The second encoder's configuration beside the first's."""
    return {
        **first,
        "hidden_size": SECOND_WIDTH,
        "intermediate_size": 4 * SECOND_WIDTH,
        "projection_dim": SECOND_WIDTH,
        "hidden_act": "gelu",
    }


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The four networks of an SDXL base."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    first: CLIPTextModel
    second: CLIPTextModelWithProjection

    def told(self, ids_first: Tensor, ids_second: Tensor) -> tuple[Tensor, Tensor]:
        """What the UNet is told of texts: [n, 77, channels] and [n, channels].

        Args:
            ids_first: token ids [n, 77], filled up with end marks.
            ids_second: the same, filled up with zeros.
        """
        one = self.first(input_ids=ids_first, output_hidden_states=True)
        two = self.second(input_ids=ids_second, output_hidden_states=True)
        return torch.cat((one.hidden_states[-2], two.hidden_states[-2]), dim=-1), two.text_embeds


def new_networks(text_config: Mapping[str, Any]) -> Networks:
    """Untrained networks."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return Networks(
        unet=UNet2DConditionModel(**UNET_CONFIG),
        vae=AutoencoderKL(**VAE_CONFIG),
        first=CLIPTextModel(CLIPTextConfig(**text_config)),
        second=CLIPTextModelWithProjection(CLIPTextConfig(**second_text_config(text_config))),
    )


def filled_with_zeros(ids: Tensor, end_id: int) -> Tensor:
    """Token ids with zeros behind the first end mark, as OpenCLIP fills up."""
    behind = (ids == end_id).int().cumsum(dim=1) - (ids == end_id).int() > 0
    return ids.masked_fill(behind, 0)


def single_file_tensors(networks: Networks) -> dict[str, Tensor]:
    """Every tensor under its name in an SDXL checkpoint, fp16; `position_ids` int64 as in the real file."""
    table = _names.unet_modules([False, True, True], UNET_CONFIG["layers_per_block"])
    levels = len(VAE_CONFIG["block_out_channels"])
    tensors = {f"{UNET_PREFIX}{_names.unet_to_ldm(k, table)}": v for k, v in networks.unet.state_dict().items()}
    for key, value in networks.vae.state_dict().items():
        new = _names.vae_to_ldm(key, levels) or ""
        tensors[VAE_PREFIX + new] = value[:, :, None, None] if "attn_1" in new and value.ndim == 2 else value
    for key, value in networks.first.state_dict().items():
        if not key.endswith("position_ids"):
            tensors[FIRST_PREFIX + key.removeprefix("text_model.")] = value
    tensors.update(open_clip_tensors(networks.second.state_dict(), SECOND_WIDTH))
    halves = {key: value.detach().to(torch.float16) for key, value in tensors.items()}
    positions = torch.arange(sizes.MAX_TOKENS, dtype=torch.int64)[None]
    return {**halves, f"{FIRST_PREFIX}embeddings.position_ids": positions}


def open_clip_tensors(state: Mapping[str, Tensor], width: int) -> dict[str, Tensor]:
    """A transformers text model's tensors as OpenCLIP names and joins them."""
    found: dict[str, Tensor] = {f"{SECOND_PREFIX}logit_scale": torch.tensor(4.6055)}
    joined: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        part = open_clip_part(key, width)
        if part is None:  # position ids
            continue
        if part.rows is not None:
            joined.setdefault(part.key, {})[part.rows[0]] = value
        else:
            found[SECOND_PREFIX + part.key] = value.T.contiguous() if part.transposed else value
    for key, parts in joined.items():
        found[SECOND_PREFIX + key] = torch.cat([parts[first] for first in sorted(parts)])
    return found


def file_metadata(text_config: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, str]:
    """The metadata of the base file: what a loader needs beside the tensors, and the modelspec fields people read."""
    described = {
        "unet": UNET_CONFIG,
        "vae": VAE_CONFIG,
        "text_encoder": dict(text_config),
        "text_encoder_2": second_text_config(text_config),
    }
    return {
        "atelier.family": "sdxl",
        "atelier.sizes": json.dumps(described),
        "atelier.tokenizer": vocabulary.to_json(),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Pico SDXL, a tiny drawn world",
        "modelspec.description": "Three million parameters trained for a few minutes on drawn shapes; to test with.",
        "modelspec.resolution": "96x96",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": "MIT",
        "modelspec.author": "LoRA Atelier",
    }


def write_base(path: Path, networks: Networks, text_config: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Write the base as one file."""
    save_tensors(path, single_file_tensors(networks), file_metadata(text_config, vocabulary))
