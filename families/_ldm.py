"""What the families of the LDM layout (SD1.x, SD2, SDXL) have in common: one file, one U-Net kind, one VAE, CLIP."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import FormatError, InputError
from ..core.progress import Progress
from ..core.tensors import Header, TensorFile, TensorSource, read_header
from . import _clip, _names, _places, _tokenizer
from ._single_file import FilePart, build_on_meta, fill_module
from ._sizes import sizes_of
from ._spec import (
    EPSILON,
    KOHYA,
    V_PREDICTION,
    Components,
    Conditioning,
    Place,
    Target,
    TextEncoderSpec,
    TextOptions,
    TextState,
    Variant,
)
from ._vae import load_vae

UNET_PREFIX = "model.diffusion_model."
PARTS = ("unet", "text_encoder", "vae")
LAYERS_PER_BLOCK = 2
FAMILY_KEY = "atelier.family"
V_MARKERS = ("v_pred",)
"""Tensors (of any content) by which a checkpoint says that it predicts v, and `ztsnr` for the schedule."""

VAE_SIZES: dict[str, Any] = {
    "sample_size": 512,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 4,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": LAYERS_PER_BLOCK,
    "norm_num_groups": 32,
    "scaling_factor": 0.18215,
}
"""The VAE of SD1.x and SD2; SDXL's differs in its weights and in the scale of its latents."""

_ATTENTION_PATH = re.compile(r"(^|\.)attentions\.\d+\.")


class LdmFamily(ABC):
    """See `Family` for what each method promises; a family sets the attributes and says how its files are known."""

    name: str
    title: str
    base_model_version: str
    architecture: str
    latent_scale: float = 0.18215
    num_train_timesteps: int = 1000
    prediction_type: str = EPSILON
    blocks: tuple[str, ...]
    text_encoders: tuple[TextEncoderSpec, ...]
    takes_sizes: bool = False
    published: Mapping[str, Mapping[str, Any]]
    ldm_stems: bool = False
    """Whether a LoRA's UNet modules are named by their LDM paths (SDXL), else by those of diffusers."""

    # what a file is ------------------------------------------------------------------------------------------------

    @abstractmethod
    def detect(self, header: Header) -> bool:
        """Whether the header is of a text-to-image checkpoint of the family, or of one of pico's size."""

    def variant(self, path: Path) -> Variant:
        """What the file predicts: by the marker tensors, else by modelspec's metadata, else the family's usual."""
        header = read_header(path)
        if any(key in header.shapes for key in V_MARKERS):
            return Variant(prediction_type=V_PREDICTION, zero_terminal_snr="ztsnr" in header.shapes)
        told = header.metadata.get("modelspec.prediction_type", "")
        if told in ("v", "v_prediction", "v-prediction"):
            return Variant(prediction_type=V_PREDICTION, zero_terminal_snr="ztsnr" in header.shapes)
        return Variant(prediction_type=EPSILON if told == "epsilon" else self._usual_prediction(path, header))

    def _usual_prediction(self, path: Path, header: Header) -> str:
        return self.prediction_type

    def file_facts(self, variant: Variant) -> dict[str, Any]:
        """What a LoRA file says of its base, in kohya's and modelspec's words."""
        return {
            "ss_base_model_version": self.base_model_version,
            "ss_v2": False,
            "modelspec.architecture": self.architecture,
            "modelspec.implementation": "diffusers",
            "modelspec.prediction_type": "v" if variant.prediction_type == V_PREDICTION else "epsilon",
        }

    def sizes(self, header: Header) -> dict[str, dict[str, Any]]:
        """The published sizes, or those of the metadata `atelier.sizes`.

        Raises:
            FormatError: the metadata is not JSON, or a size is not one this family can have.
        """
        return sizes_of(header, self.published)

    # loading -------------------------------------------------------------------------------------------------------

    def load(
        self,
        path: Path,
        *,
        parts: Sequence[str] = PARTS,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        vae_path: Path | None = None,
        source: TensorSource | None = None,
    ) -> Components:
        """Builds the asked parts from one file; offline, one tensor in memory beyond the parts themselves.

        Args:
            path: a safetensors checkpoint in the LDM layout.
            parts: of "unet", "text_encoder", "vae"; the tokenizers come with the text encoders.
            dtype: of the parameters; the file's own may differ.
            device: where the parts go.
            progress: cancel is checked between tensors.
            vae_path: a file whose VAE takes the place of the checkpoint's own.
            source: tensors that stand in for the file at `path`, which need not exist then.

        Raises:
            FormatError: the file is of another family, or lacks or has keys the family does not.
            InputError: an unknown part, or no tokenizer anywhere.
        """
        strangers = [part for part in parts if part not in PARTS]
        if strangers:
            raise InputError(f"the base model has no part {strangers[0]!r}; allowed are {', '.join(PARTS)}")
        path = Path(path)
        # Inside ComfyUI nodes run in inference mode, whose tensors could never be trained through.
        with torch.inference_mode(False), _opened(path, source) as file:
            if not self.detect(file.header):
                raise FormatError(f"{path.name} is not a {self.title} checkpoint; open it as its own family")
            sizes = self.sizes(file.header)
            loaded = Components()
            if "text_encoder" in parts:
                tokenizer = _tokenizer.find_tokenizer(file.metadata, path)
                loaded.tokenizers = (tokenizer,) * len(self.text_encoders)
                loaded.text_encoders = tuple(
                    _clip.load_text_encoder(file, spec, sizes[spec.part], dtype=dtype, device=device, progress=progress)
                    for spec in self.text_encoders
                )
            if "unet" in parts:
                loaded.unet = _load_unet(file, sizes["unet"], dtype, device, progress)
            if "vae" in parts:
                loaded.vae = load_vae(file, vae_path, sizes["vae"], dtype=dtype, device=device, progress=progress)
        return loaded

    # text ----------------------------------------------------------------------------------------------------------

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> tuple[Tensor, ...]:
        """Token ids int64 [batch, 77] for each encoder: start, at most 75 tokens, end, filled up as it was trained."""
        return tuple(
            _tokenizer.tokenize(tokenizer, captions, pads_with_zero=spec.pads_with_zero)
            for tokenizer, spec in zip(tokenizers, self.text_encoders, strict=True)
        )

    def encode_text(
        self,
        components: Components,
        captions: Sequence[str],
        *,
        clip_skip: int = 1,
        options: TextOptions | None = None,
    ) -> TextState:
        """The hidden states of all encoders side by side, and the last one's pooled state where the UNet takes it.

        Args:
            components: with text encoders and tokenizers.
            captions: one per row.
            clip_skip: 1 is the layer the base was made with, 2 the last but one, ... (as A1111 and kohya count).
            options: how captions are read; `clip_skip` is passed over then.

        Returns:
            hidden [batch, tokens, channels] in the encoders' dtype (77 tokens by default), and pooled [batch, channels]
            of each caption's first window, or None.

        Raises:
            InputError: an encoder has fewer layers than clip_skip, or a weight in a caption is refused.
        """
        options = options or TextOptions(clip_skip=clip_skip)
        segments = [_clip.segments_of(caption, options) for caption in captions]
        hidden: list[Tensor] = []
        pooled: Tensor | None = None
        encoders = zip(self.text_encoders, components.text_encoders, components.tokenizers, strict=True)
        for number, (spec, model, tokenizer) in enumerate(encoders):
            layer = _clip.layer_for(spec, model, options.clip_skip_of(number))
            state, end_state = _clip.encode_segments(model, tokenizer, segments, spec, layer=layer, options=options)
            hidden.append(state)
            pooled = end_state if spec.pooled else pooled
        return TextState(hidden=hidden[0] if len(hidden) == 1 else torch.cat(hidden, dim=-1), pooled=pooled)

    # pictures ------------------------------------------------------------------------------------------------------

    def encode_image(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation [batch, 4, h/8, w/8] of the latents, not yet times `latent_scale`."""
        posterior = vae.encode(pixels.to(vae.dtype)).latent_dist
        return posterior.mean, posterior.std

    def decode_image(self, vae: Any, latents_scaled: Tensor) -> Tensor:
        """Pixels fp32 [batch, h, w, 3] in 0..1 of latents that were multiplied by `latent_scale`."""
        pixels: Tensor = vae.decode((latents_scaled / self.latent_scale).to(vae.dtype)).sample
        return (pixels.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def predict(
        self,
        unet: Any,
        noisy_latents: Tensor,
        timesteps: Tensor,
        text: TextState,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """The UNet's output [batch, 4, h, w]; this one takes no conditioning beside the text."""
        output: Tensor = unet(noisy_latents, timesteps, encoder_hidden_states=text.hidden, return_dict=False)[0]
        return output

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Tensor:
        """Cumulative product of 1 - beta for the scaled-linear betas 0.00085 ... 0.012, float64 [1000].

        Args:
            zero_terminal_snr: shift and stretch the square roots so that the last one is 0 and the first stays.
                Source: Lin et al. 2024 (Common Diffusion Noise Schedules and Sample Steps are Flawed), algorithm 1.
        """
        roots = torch.linspace(0.00085**0.5, 0.012**0.5, self.num_train_timesteps, dtype=torch.float64)
        bars = torch.cumprod(1.0 - roots**2, dim=0)
        if not zero_terminal_snr:
            return bars
        signal = bars.sqrt()
        return ((signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))) ** 2

    # names ---------------------------------------------------------------------------------------------------------

    def targets(self, components: Components, *, unet: bool = True, text_encoder: bool = True) -> list[Target]:
        """Kohya's default targets: every linear and 1x1 layer of the transformers, and of the text encoders' layers.

        Raises:
            InputError: a wanted part is not loaded.
        """
        found: list[Target] = []
        if text_encoder:
            if not components.text_encoders:
                raise InputError("the text encoder is to be trained but is not loaded; load the part 'text_encoder'")
            for model, spec in zip(components.text_encoders, self.text_encoders, strict=True):
                found.extend(_clip.text_targets(model, spec))
        if unet:
            if components.unet is None:
                raise InputError("the UNet is to be trained but is not loaded; load the part 'unet'")
            found.extend(target for target in self._unet_targets(components.unet) if _is_default(target))
        return found

    def _unet_targets(self, unet: nn.Module) -> Iterator[Target]:
        """Every linear and convolution layer of the UNet."""
        for path, module in unet.named_modules():
            kind = _clip.kind_of(module)
            if kind is not None:
                stem = self.unet_stem(unet, path)
                yield Target(
                    stem=stem, path=path, part="unet", block=self.block_of_stem(stem), kind=kind, module=module
                )

    def unet_stem(self, unet: Any, path: str) -> str:
        """`lora_unet_` and the path, in the naming that kohya's scripts write for the family."""
        named = (_names.unet_to_ldm(path, unet_table(unet.config)) or path) if self.ldm_stems else path
        return f"lora_unet_{named.replace('.', '_')}"

    def block_of_stem(self, stem: str) -> str:
        """`IN04`, `MID`, `OUT03`, `TE` ... of a stem in diffusers or LDM naming, dotted or with underscores.

        Raises:
            FormatError: no LoRA of the family has such a module.
        """
        levels = len(self.published["unet"]["block_out_channels"])
        block = _names.block_of_unet_stem(stem, levels=levels, layers_per_block=LAYERS_PER_BLOCK)
        if block is None or (block != "TE" and block not in self.blocks):
            raise FormatError(f"the module {stem!r} is in no block of {self.title}; is the LoRA of another family?")
        return block

    def place_of_stem(self, stem: str) -> Place | None:
        """The module that a stem means, in any naming."""
        return _places.place_of_stem(stem, self.text_encoders, unet_table(self.published["unet"]))

    def stem_of_place(self, place: Place, naming: str = KOHYA) -> str:
        """The stem of a module in one naming."""
        table = unet_table(self.published["unet"])
        return _places.stem_of_place(place, naming, self.text_encoders, table, ldm_stems=self.ldm_stems)

    def kernel_of(self, place: Place) -> tuple[int, ...]:
        """(3, 3) or (1, 1) for a convolution of the UNet, else nothing."""
        return _places.kernel_of(place, linear_projections=bool(self.published["unet"].get("use_linear_projection")))

    def place_in_file(self, place: Place, header: Header, parameter: str = "weight") -> FilePart | None:
        """The key, and the rows of a fused tensor, of a module's weight or bias in a checkpoint."""
        widths = {} if place.part == "unet" else self._text_sizes(header, "hidden_size")
        return _places.place_in_file(
            place, parameter, header, prefix=UNET_PREFIX, encoders=self.text_encoders,
            table=unet_table(self.published["unet"]), widths=widths,
        )  # fmt: skip

    def places_of_file(self, header: Header) -> list[Place]:
        """The modules with a weight that the checkpoint has."""
        found = _places.places_of_file(
            header, prefix=UNET_PREFIX, encoders=self.text_encoders, table=unet_table(self.published["unet"]),
            layers=self._text_sizes(header, "num_hidden_layers"),
        )  # fmt: skip
        return [place for place in found if self.place_in_file(place, header) is not None]

    def _text_sizes(self, header: Header, name: str) -> dict[str, int]:
        sizes = self.sizes(header)
        return {spec.part: int(sizes[spec.part][name]) for spec in self.text_encoders}

    def ldm_name(self, stem: str) -> str:
        """The LDM path of a UNet stem, the transformers path of a text encoder's, with underscores for dots."""
        place = self.place_of_stem(stem)
        if place is None:
            return stem.replace(".", "_")
        ldm = _names.unet_to_ldm(place.path, unet_table(self.published["unet"])) if place.part == "unet" else None
        return (ldm or place.path).replace(".", "_")

    def accepted_stems(self, source: Components | Header | Path) -> set[str]:
        """The stems that ComfyUI's LoRA loader matches on this base; `source` is its header, path or loaded parts."""
        if isinstance(source, Components):
            return self._stems_of_components(source)
        header = source if isinstance(source, Header) else read_header(source)
        sizes = self.sizes(header)
        keys = [key[len(UNET_PREFIX) :] for key in header.shapes if key.startswith(UNET_PREFIX)]
        stems = _names.comfy_unet_stems(keys, _names.diffusers_paths(keys, unet_table(sizes["unet"])))
        for spec in self.text_encoders:
            if any(key.startswith(spec.prefixes) for key in header.shapes):
                stems |= self._text_stems(spec, int(sizes[spec.part]["num_hidden_layers"])).keys()
        return stems

    def _stems_of_components(self, components: Components) -> set[str]:
        stems: set[str] = set()
        if components.unet is not None:
            table = unet_table(components.unet.config)
            keys = [_names.unet_to_ldm(key, table) or key for key, _ in components.unet.named_parameters()]
            stems |= _names.comfy_unet_stems(keys, _names.diffusers_paths(keys, table))
        for spec, model in zip(self.text_encoders, components.text_encoders, strict=False):
            num_layers = len(_clip.inner_text_model(model).encoder.layers) + spec.dropped_layers
            stems |= self._text_stems(spec, num_layers).keys()
        return stems

    def _text_stems(self, spec: TextEncoderSpec, num_layers: int) -> dict[str, str]:
        return _names.comfy_text_stems(num_layers, comfy_name=spec.comfy_name)

    def modules_by_stem(self, components: Components) -> dict[str, nn.Module]:
        """Every stem by which ComfyUI's loader would find a linear, convolution or norm layer, and that layer."""
        found: dict[str, nn.Module] = {}
        if components.unet is not None:
            table = unet_table(components.unet.config)
            for path, module in _weighted(components.unet):
                ldm = _names.unet_to_ldm(path, table)
                keys = [] if ldm is None else [f"{ldm}.weight"]
                paths = _names.diffusers_paths(keys, table) or [path]
                found.update(dict.fromkeys(_names.comfy_unet_stems(keys, paths), module))
        for spec, model in zip(self.text_encoders, components.text_encoders, strict=False):
            inner = _clip.inner_text_model(model)
            layers = {f"text_model.{path}": module for path, module in _weighted(inner)}
            stems = self._text_stems(spec, len(inner.encoder.layers))
            found.update({stem: layers[path] for stem, path in stems.items() if path in layers})
        return found


def _weighted(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for path, module in model.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)):
            yield path, module


@lru_cache(maxsize=8)
def _table_of(kinds: tuple[str, ...], layers_per_block: int) -> dict[str, str]:
    return _names.unet_modules(tuple("CrossAttn" in kind for kind in kinds), layers_per_block)


def unet_table(config: Mapping[str, Any]) -> dict[str, str]:
    """Diffusers path -> LDM path of the parts of a UNet of this configuration."""
    return _table_of(tuple(config["down_block_types"]), int(config["layers_per_block"]))


def _is_default(target: Target) -> bool:
    return target.kind != "conv3x3" and _ATTENTION_PATH.search(target.path) is not None


@contextmanager
def _opened(path: Path, source: TensorSource | None) -> Iterator[TensorSource]:
    """The source that is given, else the file, open."""
    if source is not None:
        yield source
        return
    with TensorFile(path) as file:
        yield file


def _load_unet(
    file: TensorSource,
    config: dict[str, Any],
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress | None,
) -> Any:
    from diffusers import UNet2DConditionModel

    unet = build_on_meta(lambda: UNet2DConditionModel(**config), "UNet")
    table = unet_table(config)

    def place(key: str) -> FilePart | None:
        ldm = _names.unet_to_ldm(key, table)
        return None if ldm is None else FilePart(key=ldm)

    fill_module(
        unet, file, what="UNet", prefix=UNET_PREFIX, file_key=place, ignored=lambda key: False,
        dtype=dtype, device=device, progress=progress,
    )  # fmt: skip
    return unet


def context_width(header: Header) -> int:
    """Channels of the text states the UNet takes, 0 where no transformer stands where one should."""
    for place in ("1.1", "4.1"):
        shape = header.shapes.get(f"{UNET_PREFIX}input_blocks.{place}.transformer_blocks.0.attn2.to_k.weight", ())
        if len(shape) == 2:
            return shape[1]
    return 0


def input_channels(header: Header) -> int:
    """Channels of the UNet's input: 4 of a text-to-image model, more where a mask or a picture goes in; 0 if none."""
    shape = header.shapes.get(f"{UNET_PREFIX}input_blocks.0.0.weight", ())
    return shape[1] if len(shape) == 4 else 0
