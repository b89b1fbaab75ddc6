"""Stable Diffusion 1.x: single files in the LDM layout, of full size and of the pico world's tiny sizes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import FormatError, InputError
from ..core.progress import Progress
from ..core.tensors import Header, TensorFile, read_header
from . import _names, _tokenizer
from ._single_file import build_on_meta, fill_module
from ._spec import Components, Family, Kind, Target, TextState

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
TEXT_PREFIX = "cond_stage_model.transformer.text_model."
NAI_TEXT_PREFIX = "cond_stage_model.transformer."
PARTS = ("unet", "text_encoder", "vae")
_LAYERS_PER_BLOCK = 2
_MAX_SIZE = 65536
_MAX_LAYERS = 64

# The configuration of Stable Diffusion 1.x as published with the model; pico's metadata changes numbers in it.
FULL_SIZES: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (320, 640, 1280, 1280),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": _LAYERS_PER_BLOCK,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
        "norm_num_groups": 32,
    },
    "vae": {
        "sample_size": 512,
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 4,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": _LAYERS_PER_BLOCK,
        "norm_num_groups": 32,
        "scaling_factor": 0.18215,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "projection_dim": 768,
        "bos_token_id": 49406,
        "eos_token_id": 49407,
        "pad_token_id": 49407,
    },
}

_ATTENTION_PATH = re.compile(r"(^|\.)attentions\.\d+\.")
_TEXT_PATH = re.compile(r"^text_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])$")


class Sd15:
    """The family; see `Family` for what each method promises."""

    name = "sd15"
    title = "Stable Diffusion 1.x"
    base_model_version = "sd_v1"
    architecture = "stable-diffusion-v1/lora"
    latent_scale = 0.18215
    num_train_timesteps = 1000
    prediction_type = "epsilon"
    blocks = (*(f"IN{i:02d}" for i in range(12)), "MID", *(f"OUT{i:02d}" for i in range(12)))

    def detect(self, header: Header) -> bool:
        """Whether the header is of a text-to-image SD1.x checkpoint, or of one of pico's size."""
        conv_in = header.shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight", ())
        context = header.shapes.get(f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", ())
        if len(conv_in) != 4 or conv_in[1] != 4 or len(context) != 2:
            return False
        if f"{UNET_PREFIX}label_emb.0.0.weight" in header.shapes:
            return False
        return context[1] == 768 or header.metadata.get("atelier.family") == self.name

    def sizes(self, header: Header) -> dict[str, dict[str, Any]]:
        """The published sizes, or those of the metadata `atelier.sizes`.

        Raises:
            FormatError: the metadata is not JSON, or a size is not one this family can have.
        """
        text = header.metadata.get("atelier.sizes")
        if text is None:
            return {part: dict(config) for part, config in FULL_SIZES.items()}
        try:
            given = json.loads(text)
            return {part: _merged(part, dict(given[part])) for part in FULL_SIZES}
        except (ValueError, KeyError, TypeError) as cause:
            raise FormatError(
                f"the metadata atelier.sizes of the base model is broken ({cause}); make it again"
            ) from cause

    def load(
        self,
        path: Path,
        *,
        parts: Sequence[str] = PARTS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Components:
        """Builds the asked parts from one file; offline, one tensor in memory beyond the parts themselves.

        Args:
            path: a safetensors checkpoint in the LDM layout.
            parts: of "unet", "text_encoder", "vae"; the tokenizer comes with the text encoder.
            dtype: of the parameters; the file's own may differ.
            device: where the parts go.
            progress: cancel is checked between tensors.

        Raises:
            FormatError: the file is of another family, or lacks or has keys the family does not.
            InputError: an unknown part, or no tokenizer anywhere.
        """
        strangers = [part for part in parts if part not in PARTS]
        if strangers:
            raise InputError(f"the base model has no part {strangers[0]!r}; allowed are {', '.join(PARTS)}")
        path = Path(path)
        # Inside ComfyUI nodes run in inference mode, whose tensors could never be trained through.
        with torch.inference_mode(False), TensorFile(path) as file:
            if not self.detect(file.header):
                raise FormatError(f"{path.name} is not a {self.title} checkpoint; open it as its own family")
            sizes = self.sizes(file.header)
            loaded = Components()
            if "text_encoder" in parts:
                loaded.tokenizers = (_tokenizer.find_tokenizer(file.metadata, path),)
                text_encoder = _load_text_encoder(file, sizes["text_encoder"], dtype, device, progress)
                loaded.text_encoders = (text_encoder,)
            if "unet" in parts:
                loaded.unet = _load_unet(file, sizes["unet"], dtype, device, progress)
            if "vae" in parts:
                loaded.vae = _load_vae(file, sizes["vae"], dtype, device, progress)
        return loaded

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> Tensor:
        """Token ids int64 [batch, 77]: start, at most 75 tokens, end, padded with end."""
        return _tokenizer.tokenize(tokenizers[0], captions)

    def encode_text(self, components: Components, captions: Sequence[str], *, clip_skip: int = 1) -> TextState:
        """The hidden state of layer `clip_skip` from the end, after the final layer norm.

        Args:
            components: with text encoder and tokenizer.
            captions: one per row.
            clip_skip: 1 is the last layer, 2 the one before it, ... (as A1111 and kohya count).

        Returns:
            hidden [batch, 77, channels] in the encoder's dtype.

        Raises:
            InputError: the encoder has fewer layers than clip_skip.
        """
        model = components.text_encoders[0]
        inner = _inner_text_model(model)
        num_layers = len(inner.encoder.layers)
        if not 1 <= clip_skip <= num_layers:
            raise InputError(f"clip skip is {clip_skip}, allowed is 1 to {num_layers} for this base model")
        ids = self.tokenize(components.tokenizers, captions).to(inner.final_layer_norm.weight.device)
        if clip_skip == 1:
            return TextState(hidden=model(input_ids=ids).last_hidden_state)
        states = model(input_ids=ids, output_hidden_states=True).hidden_states
        return TextState(hidden=inner.final_layer_norm(states[-clip_skip]))

    def encode_image(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [batch, 4, h/8, w/8] of the latents, not yet times `latent_scale`."""
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        return posterior.mean, posterior.std

    def decode_image(self, vae: Any, latents_scaled: Tensor) -> Tensor:
        """Pixels fp32 [batch, h, w, 3] in 0..1 of latents that were multiplied by `latent_scale`."""
        pixels: Tensor = vae.decode((latents_scaled / self.latent_scale).to(vae.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def predict(self, unet: Any, noisy_latents: Tensor, timesteps: Tensor, text: TextState) -> Tensor:
        """The predicted noise [batch, 4, h, w]."""
        output: Tensor = unet(noisy_latents, timesteps, encoder_hidden_states=text.hidden, return_dict=False)[0]
        return output

    def alphas_cumprod(self) -> Tensor:
        """Cumulative product of 1 - beta for the scaled-linear betas 0.00085 ... 0.012, float64 [1000]."""
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, self.num_train_timesteps, dtype=torch.float64)
        return torch.cumprod(1.0 - roots**2, dim=0)

    def targets(self, components: Components, *, unet: bool = True, text_encoder: bool = True) -> list[Target]:
        """Kohya's default targets: every linear and 1x1 layer of the transformers, and of the text encoder's layers.

        Raises:
            InputError: a wanted part is not loaded.
        """
        found: list[Target] = []
        if text_encoder:
            if not components.text_encoders:
                raise InputError("the text encoder is to be trained but is not loaded; load the part 'text_encoder'")
            found.extend(_text_targets(components.text_encoders[0]))
        if unet:
            if components.unet is None:
                raise InputError("the UNet is to be trained but is not loaded; load the part 'unet'")
            found.extend(self._unet_targets(components.unet))
        return found

    def _unet_targets(self, unet: nn.Module) -> Iterator[Target]:
        for path, module in unet.named_modules():
            kind = _kind(module)
            if kind is None or kind == "conv3x3" or not _ATTENTION_PATH.search(path):
                continue
            stem = f"lora_unet_{path.replace('.', '_')}"
            yield Target(stem=stem, path=path, part="unet", block=self.block_of_stem(stem), kind=kind, module=module)

    def block_of_stem(self, stem: str) -> str:
        """`IN04`, `MID`, `OUT03`, `TE` ... of a stem in diffusers or LDM naming, dotted or with underscores.

        Raises:
            FormatError: no SD1.x LoRA has such a module.
        """
        block = _names.block_of_unet_stem(stem, levels=4, layers_per_block=_LAYERS_PER_BLOCK)
        if block is None or (block != "TE" and block not in self.blocks):
            raise FormatError(f"the module {stem!r} is in no block of {self.title}; is the LoRA of another family?")
        return block

    def accepted_stems(self, source: Components | Header | Path) -> set[str]:
        """The stems that ComfyUI's LoRA loader matches on this base; `source` is its header, path or loaded parts."""
        if isinstance(source, Components):
            return _stems_of_components(source)
        header = source if isinstance(source, Header) else read_header(source)
        return _stems_of_header(header, self.sizes(header))


def _merged(part: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The published configuration with the given numbers; only numbers may differ, and only reasonable ones."""
    config = dict(FULL_SIZES[part])
    if part == "text_encoder" and "vocab_size" in given:
        last = given["vocab_size"] - 1  # start and end are the last two tokens of a CLIP vocabulary
        given = {"bos_token_id": last - 1, "eos_token_id": last, "pad_token_id": last, **given}
    for key, published in config.items():
        value = given.get(key, published)
        value = tuple(value) if isinstance(published, tuple) else value
        if value != published and (_fixed(part, key) or not _is_size(value, published, key)):
            raise ValueError(f"{part}.{key} is {value!r}")
        config[key] = value
    return config


def _fixed(part: str, key: str) -> bool:
    """What the family's own code counts on: the blocks' names, and the scale of the latents."""
    return (part, key) in {("unet", "layers_per_block"), ("vae", "scaling_factor"), ("vae", "latent_channels")}


def _is_size(value: Any, published: Any, key: str) -> bool:
    """Whether `value` can stand in for a published size: as many numbers, whole where those are whole, in reason."""
    numbers, originals = _as_tuple(value), _as_tuple(published)
    most = _MAX_LAYERS if "layers" in key else _MAX_SIZE
    return len(numbers) == len(originals) and all(
        type(number) is type(original) and not isinstance(original, str) and 0 < number <= most
        for number, original in zip(numbers, originals, strict=True)
    )


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _attention_levels(config: Mapping[str, Any]) -> tuple[bool, ...]:
    return tuple("CrossAttn" in block for block in config["down_block_types"])


def _load_unet(
    file: TensorFile, config: dict[str, Any], dtype: torch.dtype, device: torch.device | str, progress: Progress | None
) -> Any:
    from diffusers import UNet2DConditionModel

    unet = build_on_meta(lambda: UNet2DConditionModel(**config), "UNet")
    modules = _names.unet_modules(_attention_levels(config), config["layers_per_block"])
    fill_module(
        unet, file, what="UNet", prefix=UNET_PREFIX, file_key=lambda key: _names.unet_to_ldm(key, modules),
        ignored=lambda key: False, dtype=dtype, device=device, progress=progress,
    )  # fmt: skip
    return unet


def _load_vae(
    file: TensorFile, config: dict[str, Any], dtype: torch.dtype, device: torch.device | str, progress: Progress | None
) -> Any:
    from diffusers import AutoencoderKL

    _refuse_absent(file, VAE_PREFIX, "VAE")
    vae = build_on_meta(lambda: AutoencoderKL(**config), "VAE")
    levels = len(config["block_out_channels"])
    fill_module(
        vae, file, what="VAE", prefix=VAE_PREFIX, file_key=lambda key: _names.vae_to_ldm(key, levels),
        ignored=lambda key: key.startswith(("loss.", "model_ema.")), dtype=dtype, device=device, progress=progress,
    )  # fmt: skip
    return vae


def _load_text_encoder(
    file: TensorFile, config: dict[str, Any], dtype: torch.dtype, device: torch.device | str, progress: Progress | None
) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel

    _refuse_absent(file, NAI_TEXT_PREFIX, "text encoder")
    model = build_on_meta(lambda: CLIPTextModel(CLIPTextConfig(**config)), "text encoder")
    prefix = _text_prefix(file.header)
    fill_module(
        model, file, what="text encoder", prefix=prefix, file_key=lambda key: key.removeprefix("text_model."),
        ignored=lambda key: key.endswith(("position_ids", "text_projection.weight", "text_projection", "logit_scale")),
        dtype=dtype, device=device, progress=progress,
    )  # fmt: skip
    return model


def _text_prefix(header: Header) -> str:
    usual = any(key.startswith(TEXT_PREFIX) for key in header.shapes)
    return TEXT_PREFIX if usual else NAI_TEXT_PREFIX


def _refuse_absent(file: TensorFile, prefix: str, what: str) -> None:
    if not any(key.startswith(prefix) for key in file.header.shapes):
        raise FormatError(f"{file.path.name} holds no {what} (keys {prefix}...); use a checkpoint with all three parts")


def _inner_text_model(model: Any) -> Any:
    """The module with embeddings, encoder and final layer norm; transformers 4 wraps it, transformers 5 does not."""
    return getattr(model, "text_model", model)


def _kind(module: nn.Module) -> Kind | None:
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv1x1" if tuple(module.kernel_size) == (1, 1) else "conv3x3"
    return None


def _text_targets(text_encoder: nn.Module) -> Iterator[Target]:
    for name, module in _inner_text_model(text_encoder).named_modules():
        path = f"text_model.{name}"
        kind = _kind(module)
        if kind is not None and _TEXT_PATH.match(path):
            stem = f"lora_te_{path.replace('.', '_')}"
            yield Target(stem=stem, path=path, part="text_encoder", block="TE", kind=kind, module=module)


def _stems_of_header(header: Header, sizes: Mapping[str, Mapping[str, Any]]) -> set[str]:
    keys = [key[len(UNET_PREFIX) :] for key in header.shapes if key.startswith(UNET_PREFIX)]
    modules = _names.unet_modules(_attention_levels(sizes["unet"]), sizes["unet"]["layers_per_block"])
    prefix = _text_prefix(header)
    text = [f"text_model.{key[len(prefix) :]}" for key in header.shapes if key.startswith(prefix)]
    stems = _names.comfy_unet_stems(keys, _names.diffusers_paths(keys, modules))
    if text:
        stems |= _names.comfy_text_stems(int(sizes["text_encoder"]["num_hidden_layers"]), text)
    return stems


def _stems_of_components(components: Components) -> set[str]:
    stems: set[str] = set()
    if components.unet is not None:
        config = components.unet.config
        modules = _names.unet_modules(_attention_levels(config), config["layers_per_block"])
        keys = [_names.unet_to_ldm(key, modules) or key for key, _ in components.unet.named_parameters()]
        stems |= _names.comfy_unet_stems(keys, _names.diffusers_paths(keys, modules))
    for model in components.text_encoders:
        inner = _inner_text_model(model)
        stems |= _names.comfy_text_stems(
            len(inner.encoder.layers), [f"text_model.{key}" for key, _ in inner.named_parameters()]
        )
    return stems


FAMILY: Family = Sd15()
