"""Stable Diffusion 2.0 and 2.1: the 512 px models that predict noise and the 768 px models that predict v."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..core.tensors import Header, TensorFile
from ._clip import CLIP_CONFIG
from ._ldm import FAMILY_KEY, LAYERS_PER_BLOCK, UNET_PREFIX, VAE_SIZES, LdmFamily, context_width, input_channels
from ._spec import EPSILON, V_PREDICTION, Family, TextEncoderSpec, Variant

FULL_SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 96,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": LAYERS_PER_BLOCK,
        "attention_head_dim": (5, 10, 20, 20),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "norm_num_groups": 32,
    },
    "vae": {**VAE_SIZES, "sample_size": 768},
    "text_encoder": {
        **CLIP_CONFIG,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
    },
}

_MARKER = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
_MARKER_DEVIATION = 0.09


class Sd2(LdmFamily):
    """The family; see `Family` for what each method promises.

    The last layer of its OpenCLIP-H is never used: kohya's scripts do not even build it, some files lack it, and no
    LoRA has it.
    """

    name = "sd2"
    title = "Stable Diffusion 2.x"
    base_model_version = "sd_v2"
    architecture = "stable-diffusion-v2-512/lora"
    blocks = (*(f"IN{i:02d}" for i in range(12)), "MID", *(f"OUT{i:02d}" for i in range(12)))
    text_encoders: tuple[TextEncoderSpec, ...] = (
        TextEncoderSpec(
            part="text_encoder",
            title="text encoder",
            stem="lora_te",
            comfy_name="clip_h",
            prefixes=("conditioner.embedders.0.model.", "cond_stage_model.model."),
            open_clip=True,
            pads_with_zero=True,
            own_layer=2,
            dropped_layers=1,
        ),
    )
    published = FULL_SIZES

    def detect(self, header: Header) -> bool:
        """Whether the header is of a text-to-image SD2 checkpoint, or of one of pico's size."""
        projection = header.shapes.get(f"{UNET_PREFIX}input_blocks.1.1.proj_in.weight", ())
        if input_channels(header) != 4 or len(projection) != 2 or f"{UNET_PREFIX}label_emb.0.0.weight" in header.shapes:
            return False
        told = header.metadata.get(FAMILY_KEY)
        return told == self.name if told is not None else context_width(header) == 1024

    def _usual_prediction(self, path: Path, header: Header) -> str:
        """No key tells the 768 px models apart; the spread of one bias does.

        Source: ComfyUI's `supported_models.SD20.model_type`, whose threshold this is.
        """
        if _MARKER not in header.shapes:
            return self.prediction_type
        with TensorFile(path) as file:
            deviation = float(file.tensor(_MARKER).float().std(unbiased=False))
        return V_PREDICTION if deviation > _MARKER_DEVIATION else EPSILON

    def file_facts(self, variant: Variant) -> dict[str, Any]:
        """As `LdmFamily`, with the names of the two kinds."""
        facts = {**super().file_facts(variant), "ss_v2": True}
        if variant.prediction_type == V_PREDICTION:
            facts["ss_base_model_version"] = f"{self.base_model_version}_v"
            facts["modelspec.architecture"] = "stable-diffusion-v2-768-v/lora"
        return facts


FAMILY: Family = Sd2()
