"""What a model family is, and what its loaded parts look like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from ..core.discovery import discover
from ..core.errors import unknown_name
from ..core.progress import Progress
from ..core.tensors import Header

Part = Literal["unet", "text_encoder"]
Kind = Literal["linear", "conv1x1", "conv3x3"]


@dataclass(frozen=True, kw_only=True)
class Target:
    """A module that an adapter can be attached to.

    Attributes:
        stem: name in a kohya LoRA file, e.g. `lora_unet_down_blocks_0_attentions_0_proj_in`.
        path: dotted path in the names of diffusers and transformers.
        part: which component it belongs to.
        block: `IN01` ... `MID` ... `OUT11`, or `TE`.
        kind: linear or convolution by kernel size.
        module: the live module.
    """

    stem: str
    path: str
    part: Part
    block: str
    kind: Kind
    module: nn.Module


@dataclass(frozen=True, kw_only=True)
class TextState:
    """What the UNet is told: `hidden` [batch, tokens, channels] and, where the family has one, `pooled`."""

    hidden: Tensor
    pooled: Tensor | None = None


@dataclass(kw_only=True)
class Components:
    """The loaded parts of a base model; None or empty where a part was not asked for."""

    unet: Any = None
    text_encoders: tuple[Any, ...] = ()
    tokenizers: tuple[Any, ...] = ()
    vae: Any = None


class Family(Protocol):
    """One model family. Every method works on the family's full size and on its tiny relatives alike."""

    name: str
    title: str
    base_model_version: str
    architecture: str
    latent_scale: float
    num_train_timesteps: int
    prediction_type: str
    blocks: tuple[str, ...]

    def detect(self, header: Header) -> bool:
        """Whether the file with this header is of the family."""
        ...

    def sizes(self, header: Header) -> dict[str, dict[str, Any]]:
        """The configuration of every part under "unet", "vae" and "text_encoder"."""
        ...

    def load(
        self,
        path: Path,
        *,
        parts: Sequence[str] = ("unet", "text_encoder", "vae"),
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        progress: Progress | None = None,
    ) -> Components:
        """Builds the asked parts, frozen and in evaluation mode."""
        ...

    def tokenize(self, tokenizers: Sequence[Any], captions: Sequence[str]) -> Tensor:
        """Token ids [batch, 77], int64."""
        ...

    def encode_text(self, components: Components, captions: Sequence[str], *, clip_skip: int) -> TextState:
        """What the text encoder says of the captions; differentiable through an attached adapter."""
        ...

    def encode_image(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents of pixels [batch, 3, h, w] in -1..1; unscaled."""
        ...

    def decode_image(self, vae: Any, latents_scaled: Tensor) -> Tensor:
        """Pixels [batch, h, w, 3] in 0..1 of scaled latents [batch, 4, h/8, w/8]."""
        ...

    def predict(self, unet: Any, noisy_latents: Tensor, timesteps: Tensor, text: TextState) -> Tensor:
        """The UNet's output for scaled noisy latents at integer timesteps [batch]."""
        ...

    def alphas_cumprod(self) -> Tensor:
        """The share of signal variance left at each training timestep, float64 [num_train_timesteps]."""
        ...

    def targets(self, components: Components, *, unet: bool = True, text_encoder: bool = True) -> list[Target]:
        """The default LoRA targets, text encoder first, in the order of the modules."""
        ...

    def block_of_stem(self, stem: str) -> str:
        """The block of a LoRA stem in any accepted naming."""
        ...

    def accepted_stems(self, source: Components | Header | Path) -> set[str]:
        """Every stem that ComfyUI's LoRA loader matches on this base."""
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
