"""What a model family is, and what its loaded parts look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.discovery import discover
from ..core.errors import unknown_name
from ..core.progress import Progress
from ..core.tensors import Header, TensorSource

if TYPE_CHECKING:
    from ._single_file import FilePart

Part = Literal["unet", "text_encoder"]
Kind = Literal["linear", "conv1x1", "conv3x3", "norm"]

EPSILON = "epsilon"
V_PREDICTION = "v_prediction"
PREDICTIONS = (EPSILON, V_PREDICTION)
"""What a UNet's output means: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) x_0."""


KOHYA, DIFFUSERS, COMFY = "kohya", "diffusers", "comfyui"
NAMINGS = (KOHYA, DIFFUSERS, COMFY)
"""How a LoRA file names modules: kohya's stems, peft's dotted paths, ComfyUI's own dotted state-dict paths."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """One module of a family's models, by one name for all files.

    Attributes:
        part: "unet", or the `part` of a text encoder.
        path: dotted path in the names of diffusers and transformers, e.g. `down_blocks.0.attentions.0.proj_in`.
    """

    part: str
    path: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """A module that an adapter can be attached to.

    Attributes:
        stem: name in a kohya LoRA file, e.g. `lora_unet_down_blocks_0_attentions_0_proj_in`.
        path: dotted path in the names of diffusers and transformers.
        part: which component it belongs to.
        block: `IN01` ... `MID` ... `OUT11`, or `TE`.
        kind: linear, convolution by kernel size, or normalisation.
        module: the live module.
        group: what it does in the model, e.g. `cross-attention`; set by `every_target`.
    """

    stem: str
    path: str
    part: Part
    block: str
    kind: Kind
    module: nn.Module
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class TextState:
    """What the UNet is told: `hidden` [batch, tokens, channels] and, where the family has one, `pooled`."""

    hidden: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What else the UNet is told of every picture: int64 [batch, 2] each, (height, width) or (top, left) in px.

    Attributes:
        original_size: of the picture before it was scaled.
        crop: how much of the scaled picture was cut off at the top and at the left.
        target_size: of what is trained or drawn.
    """

    original_size: Tensor
    crop: Tensor
    target_size: Tensor

    @classmethod
    def uncropped(cls, *, height_px: int, width_px: int, batch_size: int) -> Conditioning:
        """A picture of exactly this size; what ComfyUI says when a prompt says nothing."""
        size = torch.tensor([[height_px, width_px]]).expand(batch_size, 2)
        return cls(original_size=size, crop=torch.zeros_like(size), target_size=size)

    def flat(self) -> Tensor:
        """int64 [batch, 6]: original height and width, crop top and left, target height and width."""
        return torch.cat((self.original_size, self.crop, self.target_size), dim=1)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What differs between files of one family.

    Attributes:
        prediction_type: one of `PREDICTIONS`.
        zero_terminal_snr: whether the last time step is pure noise.
    """

    prediction_type: str = EPSILON
    zero_terminal_snr: bool = False


@dataclass(frozen=True, kw_only=True)
class TextEncoderSpec:
    """One text encoder of a family.

    Attributes:
        part: its place in `Family.sizes`.
        title: for people.
        stem: beginning of its modules' names in LoRA files, e.g. `lora_te1`.
        comfy_name: what ComfyUI calls it, e.g. `clip_l`.
        prefixes: of its keys in a checkpoint; the first that occurs is taken.
        open_clip: whether its keys are those of OpenCLIP, else those of transformers.
        pads_with_zero: whether a short text is filled up with token 0 (OpenCLIP), else with the end mark.
        own_layer: the layer that the base was made with, counted from the last (1) of those in the file.
        normed: whether that layer goes through the final layer norm.
        pooled: whether its projected end-mark state is given to the UNet as well.
        dropped_layers: how many last layers are never built, because nobody uses them.
    """

    part: str
    title: str
    stem: str
    comfy_name: str
    prefixes: tuple[str, ...]
    open_clip: bool = False
    pads_with_zero: bool = False
    own_layer: int = 1
    normed: bool = True
    pooled: bool = False
    dropped_layers: int = 0


LONG_CAPTIONS = ("comfyui", "kohya")
"""How a text that needs more than one window is read: as many windows as it needs, each with its marks (ComfyUI, and
AUTOMATIC1111 alike), or always as many as fit, with the inner marks taken out (kohya)."""


@dataclass(frozen=True, kw_only=True)
class TextOptions:
    """How captions are read.

    Attributes:
        clip_skip: layer of the first text encoder; 1 is the one the base was made with, 2 the last but one, ...
        clip_skip_2: likewise of a second one; 0 takes `clip_skip`.
        max_tokens: tokens of a caption that are read, a multiple of 75.
        long_captions: one of `LONG_CAPTIONS`; what is read with 75 tokens is the same.
        weighted: whether `(word:1.2)` and its like weight words; else brackets are plain text.
    """

    clip_skip: int = 1
    clip_skip_2: int = 0
    max_tokens: int = 75
    long_captions: str = LONG_CAPTIONS[0]
    weighted: bool = False

    def clip_skip_of(self, encoder: int) -> int:
        """The clip skip of an encoder by its place."""
        return self.clip_skip_2 if encoder > 0 and self.clip_skip_2 > 0 else self.clip_skip

    def key(self) -> str:
        """All options as one short text, for cache keys."""
        return f"{self.clip_skip} {self.clip_skip_2} {self.max_tokens} {self.long_captions} {self.weighted}"


@dataclass(kw_only=True)
class Components:
    """The loaded parts of a base model; None or empty where a part was not asked for."""

    unet: Any = None
    text_encoders: tuple[Any, ...] = ()
    tokenizers: tuple[Any, ...] = ()
    vae: Any = None


class Family(Protocol):
    """One model family. Every method works on the family's full size and on its tiny relatives alike.

    Attributes:
        name: key and file name.
        title: for people.
        base_model_version: `ss_base_model_version` of the family's usual files.
        architecture: `modelspec.architecture` of a LoRA for them.
        latent_scale: what the VAE's latents are multiplied by before the UNet sees them.
        num_train_timesteps: of the noise schedule.
        prediction_type: of the family's usual files; a file's own is in its `Variant`.
        blocks: of the UNet, in the order of the forward pass.
        text_encoders: one for each, in the order of `Components.text_encoders`.
        takes_sizes: whether the UNet is told of every picture's size and crop (`Conditioning`).
    """

    name: str
    title: str
    base_model_version: str
    architecture: str
    latent_scale: float
    num_train_timesteps: int
    prediction_type: str
    blocks: tuple[str, ...]
    text_encoders: tuple[TextEncoderSpec, ...]
    takes_sizes: bool

    def detect(self, header: Header) -> bool:
        """Whether the file with this header is of the family."""
        ...

    def variant(self, path: Path) -> Variant:
        """What the file predicts, by its markers; a tensor or two are read at most."""
        ...

    def file_facts(self, variant: Variant) -> dict[str, Any]:
        """What a LoRA file says of the base it was made for: `ss_` and `modelspec.` keys."""
        ...

    def sizes(self, header: Header) -> dict[str, dict[str, Any]]:
        """The configuration of every part under "unet", "vae" and each text encoder's `part`."""
        ...

    def load(
        self,
        path: Path,
        *,
        parts: Sequence[str] = ("unet", "text_encoder", "vae"),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
        vae_path: Path | None = None,
        source: TensorSource | None = None,
    ) -> Components:
        """Builds the asked parts, frozen and in evaluation mode; the VAE from `vae_path` where one is given.

        Where there is a `source`, its tensors stand in for the file at `path`.
        """
        ...

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> tuple[Tensor, ...]:
        """Token ids int64 [batch, 77] for every text encoder."""
        ...

    def encode_text(
        self,
        components: Components,
        captions: Sequence[str],
        *,
        clip_skip: int = 1,
        options: TextOptions | None = None,
    ) -> TextState:
        """What the text encoders say of the captions; differentiable through an attached adapter.

        `clip_skip` is for callers that have nothing else to ask for; where `options` are given, theirs is taken.
        """
        ...

    def encode_image(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pixels [batch, 3, h, w] in -1..1; unscaled."""
        ...

    def decode_image(self, vae: Any, latents_scaled: Tensor) -> Tensor:
        """Pixels [batch, h, w, 3] in 0..1 of scaled latents [batch, 4, h/8, w/8]."""
        ...

    def predict(
        self,
        unet: Any,
        noisy_latents: Tensor,
        timesteps: Tensor,
        text: TextState,
        *,
        conditioning: Conditioning | None = None,
    ) -> Tensor:
        """The UNet's output for scaled noisy latents at integer timesteps [batch].

        A family without sizes passes over `conditioning`; one that has them takes the latents' own size, uncropped,
        where none is given.
        """
        ...

    def alphas_cumprod(self, *, zero_terminal_snr: bool = False) -> Tensor:
        """The share of signal variance left at each training timestep, float64 [num_train_timesteps]."""
        ...

    def targets(self, components: Components, *, unet: bool = True, text_encoder: bool = True) -> list[Target]:
        """The default LoRA targets, text encoders first, in the order of the modules."""
        ...

    def unet_stem(self, unet: Any, path: str) -> str:
        """The stem in a LoRA file of the UNet's module at a path in diffusers' names."""
        ...

    def block_of_stem(self, stem: str) -> str:
        """The block of a LoRA stem in any accepted naming."""
        ...

    def place_of_stem(self, stem: str) -> Place | None:
        """The module that a stem of a LoRA file means, in any naming; None for one the family does not have."""
        ...

    def stem_of_place(self, place: Place, naming: str = KOHYA) -> str:
        """What a LoRA file of one of `NAMINGS` calls a module."""
        ...

    def kernel_of(self, place: Place) -> tuple[int, ...]:
        """Kernel of a convolution, (3, 3) or (1, 1); empty for every other layer."""
        ...

    def place_in_file(self, place: Place, header: Header, parameter: str = "weight") -> FilePart | None:
        """Where a checkpoint keeps a module's weight or bias (the whole key); None where it has none."""
        ...

    def places_of_file(self, header: Header) -> list[Place]:
        """Every module with a weight of UNet and text encoders in a checkpoint."""
        ...

    def ldm_name(self, stem: str) -> str:
        """The LDM path of a UNet stem, the transformers path of a text encoder's, with underscores for dots."""
        ...

    def accepted_stems(self, source: Components | Header | Path) -> set[str]:
        """Every stem that ComfyUI's LoRA loader matches on this base."""
        ...

    def modules_by_stem(self, components: Components) -> dict[str, nn.Module]:
        """The linear, convolution and norm layers of UNet and text encoders by every stem that is accepted."""
        ...


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """Every family of this folder by name."""
    return discover(__package__, "FAMILY")


def get_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        UnknownNameError: there is none; the nearest names are listed.
    """
    found: Mapping[str, Family] = families()
    if name not in found:
        raise unknown_name("model family", name, found)
    return found[name]


_tokenizer_dirs: tuple[Path, ...] = ()


def set_tokenizer_dirs(paths: Sequence[Path]) -> None:
    """Tells where copies of the CLIP tokenizer lie (folders with vocab.json and merges.txt); called by the host."""
    global _tokenizer_dirs
    _tokenizer_dirs = tuple(Path(path) for path in paths)


def tokenizer_dirs() -> tuple[Path, ...]:
    """The folders given to `set_tokenizer_dirs`."""
    return _tokenizer_dirs
