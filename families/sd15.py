"""Stable Diffusion 1.x: single files in the LDM layout, of full size and of the pico world's tiny sizes."""

from __future__ import annotations

from typing import Any

from ..core.tensors import Header
from ._clip import CLIP_L
from ._ldm import FAMILY_KEY, LAYERS_PER_BLOCK, UNET_PREFIX, VAE_SIZES, LdmFamily, input_channels
from ._spec import Family, TextEncoderSpec, Variant

# The configuration of Stable Diffusion 1.x as published with the model; pico's metadata changes numbers in it.
FULL_SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": LAYERS_PER_BLOCK,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    },
    "vae": dict(VAE_SIZES),
    "text_encoder": dict(CLIP_L),
}


class Sd15(LdmFamily):
    """The family; see `Family` for what each method promises."""

    name = "sd15"
    title = "Stable Diffusion 1.x"
    base_model_version = "sd_v1"
    architecture = "stable-diffusion-v1/lora"
    blocks = (*(f"IN{i:02d}" for i in range(12)), "MID", *(f"OUT{i:02d}" for i in range(12)))
    text_encoders: tuple[TextEncoderSpec, ...] = (
        TextEncoderSpec(
            part="text_encoder",
            title="text encoder",
            stem="lora_te",
            comfy_name="clip_l",
            # children of the NovelAI leak lack `text_model.`
            prefixes=("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer."),
        ),
    )
    published = FULL_SIZES

    def detect(self, header: Header) -> bool:
        """Whether the header is of a text-to-image SD1.x checkpoint, or of one of pico's size."""
        context = header.shapes.get(f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", ())
        if input_channels(header) != 4 or len(context) != 2 or f"{UNET_PREFIX}label_emb.0.0.weight" in header.shapes:
            return False
        told = header.metadata.get(FAMILY_KEY)
        return told == self.name if told is not None else context[1] == 768

    def file_facts(self, variant: Variant) -> dict[str, Any]:
        """As `LdmFamily`; a base that predicts v has a version name of its own."""
        facts = super().file_facts(variant)
        is_v = facts["modelspec.prediction_type"] == "v"
        return {**facts, "ss_base_model_version": f"{self.base_model_version}_v"} if is_v else facts


FAMILY: Family = Sd15()
