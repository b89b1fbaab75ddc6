"""The VAE, from the checkpoint's own file or from a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..core.errors import FormatError
from ..core.progress import Progress
from ..core.tensors import Header, TensorFile, TensorSource
from . import _names
from ._single_file import FilePart, build_on_meta, fill_module

VAE_PREFIX = "first_stage_model."
_PREFIXES = (VAE_PREFIX, "vae.", "")
_CONV_IN = "encoder.conv_in.weight"


def load_vae(
    file: TensorSource,
    vae_path: Path | None,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress | None,
) -> Any:
    """Builds the VAE of an open checkpoint, or the one of `vae_path` in its place.

    Args:
        file: the checkpoint.
        vae_path: another file with a VAE: alone, in the layout of LDM or of diffusers, or a whole checkpoint.
        config: sizes for diffusers' AutoencoderKL.
        dtype: of the parameters.
        device: of the parameters.
        progress: checked for cancel between tensors.

    Raises:
        FormatError: there is no VAE, or one of other sizes.
    """
    if vae_path is None:
        if not any(key.startswith(VAE_PREFIX) for key in file.header.shapes):
            raise FormatError(
                f"{file.path.name} holds no VAE (keys {VAE_PREFIX}...); use a checkpoint with all three parts, or "
                "choose a VAE file where the base model is opened"
            )
        return _fill(file, VAE_PREFIX, config, dtype=dtype, device=device, progress=progress)
    with TensorFile(vae_path) as own:
        return _fill(own, vae_prefix(own.header, vae_path), config, dtype=dtype, device=device, progress=progress)


def vae_prefix(header: Header, path: Path) -> str:
    """The beginning of a VAE's keys in a file.

    Raises:
        FormatError: the file holds no VAE of this kind.
    """
    for prefix in _PREFIXES:
        shape = header.shapes.get(f"{prefix}{_CONV_IN}", ())
        if len(shape) == 4:
            return prefix
    raise FormatError(
        f"{path.name} holds no VAE of the Stable Diffusion kind (no key {_CONV_IN}); choose a VAE file, or a whole "
        "checkpoint whose VAE is to be used"
    )


def _fill(
    file: TensorSource,
    prefix: str,
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: Progress | None,
) -> Any:
    from diffusers import AutoencoderKL

    vae = build_on_meta(lambda: AutoencoderKL(**config), "VAE")
    levels, keys = len(config["block_out_channels"]), set(file.header.shapes)

    def ldm_place(key: str) -> FilePart | None:
        ldm = _names.vae_to_ldm(key, levels)
        return None if ldm is None else FilePart(key=ldm)

    as_diffusers = f"{prefix}encoder.down_blocks.0.resnets.0.conv1.weight" in keys
    place: Callable[[str], FilePart | None] = _diffusers_place(keys, prefix) if as_diffusers else ldm_place
    fill_module(
        vae, file, what="VAE", prefix=prefix, file_key=place,
        ignored=lambda key: key.startswith(("loss.", "model_ema.")) or (prefix == "" and "." not in key),
        dtype=dtype, device=device, progress=progress,
    )  # fmt: skip
    return vae


_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def _diffusers_place(keys: set[str], prefix: str) -> Callable[[str], FilePart]:
    """Old files of diffusers call the layers of the one attention by their long names."""

    def place(key: str) -> FilePart:
        if f"{prefix}{key}" not in keys:
            for new, old in _OLD_ATTENTION.items():
                key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
        return FilePart(key=key)

    return place
