"""Stable Diffusion XL: the base model and what was made of it, of full size and of pico's."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..core.tensors import Header
from ._clip import CLIP_CONFIG, CLIP_L
from ._ldm import FAMILY_KEY, LAYERS_PER_BLOCK, UNET_PREFIX, VAE_SIZES, LdmFamily, context_width, input_channels
from ._spec import Conditioning, Family, TextEncoderSpec, TextState, Variant

FULL_SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 128,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": LAYERS_PER_BLOCK,
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
        "norm_num_groups": 32,
    },
    "vae": {**VAE_SIZES, "sample_size": 1024, "scaling_factor": 0.13025},
    "text_encoder": dict(CLIP_L),
    "text_encoder_2": {
        **CLIP_CONFIG,
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "hidden_act": "gelu",
        "projection_dim": 1280,
    },
}

_DEEPEST = f"{UNET_PREFIX}middle_block.1.transformer_blocks.9.norm1.weight"


class Sdxl(LdmFamily):
    """The family; see `Family` for what each method promises."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    base_model_version = "sdxl_base_v1-0"
    architecture = "stable-diffusion-xl-v1-base/lora"
    latent_scale = 0.13025
    blocks = (*(f"IN{i:02d}" for i in range(9)), "MID", *(f"OUT{i:02d}" for i in range(9)))
    text_encoders: tuple[TextEncoderSpec, ...] = (
        TextEncoderSpec(
            part="text_encoder",
            title="first text encoder (CLIP-L)",
            stem="lora_te1",
            comfy_name="clip_l",
            prefixes=("conditioner.embedders.0.transformer.text_model.",),
            own_layer=2,
            normed=False,
        ),
        TextEncoderSpec(
            part="text_encoder_2",
            title="second text encoder (OpenCLIP-G)",
            stem="lora_te2",
            comfy_name="clip_g",
            prefixes=("conditioner.embedders.1.model.",),
            open_clip=True,
            pads_with_zero=True,
            own_layer=2,
            normed=False,
            pooled=True,
        ),
    )
    published = FULL_SIZES
    ldm_stems = True
    takes_sizes = True

    def detect(self, header: Header) -> bool:
        """Whether the header is of an SDXL base checkpoint with all its transformers, or of one of pico's size."""
        if input_channels(header) != 4 or f"{UNET_PREFIX}label_emb.0.0.weight" not in header.shapes:
            return False
        told = header.metadata.get(FAMILY_KEY)
        if told is not None:
            return told == self.name
        is_other = any(key in header.shapes for key in ("edm_mean", "edm_vpred.sigma_max"))
        return context_width(header) == 2048 and _DEEPEST in header.shapes and not is_other

    def file_facts(self, variant: Variant) -> dict[str, Any]:
        """As `LdmFamily`, with the implementation that modelspec names for SDXL."""
        generative_models = "https://github.com/Stability-AI/generative-models"
        return {**super().file_facts(variant), "modelspec.implementation": generative_models}

    def predict(
        self,
        unet: Any,
        noisy_latents: Tensor,
        timesteps: Tensor,
        text: TextState,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """The UNet's output [batch, 4, h, w], told the pooled text and six sizes of every picture.

        Source: Podell et al. 2023 (SDXL), section 2.2: sizes and crops as Fourier features beside the pooled text.
        """
        if text.pooled is None:
            raise ValueError("SDXL needs the pooled state of its second text encoder")
        if conditioning is None:
            height, width = noisy_latents.shape[-2:]
            conditioning = Conditioning.uncropped(
                height_px=8 * height, width_px=8 * width, batch_size=len(noisy_latents)
            )
        sizes = conditioning.flat().to(device=noisy_latents.device, dtype=torch.float32)
        output: Tensor = unet(
            noisy_latents,
            timesteps,
            encoder_hidden_states=text.hidden,
            added_cond_kwargs={"text_embeds": text.pooled, "time_ids": sizes},
            return_dict=False,
        )[0]
        return output


FAMILY: Family = Sdxl()
