"""The handle of a base model: what it is and where it lies; nothing is loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..core.errors import unknown_name
from ..core.files import known_sha256
from ..core.progress import Progress
from ..core.tensors import read_header
from ._identify import identify
from ._spec import PREDICTIONS, Family, Variant, get_family
from ._vae import vae_prefix

DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BY_FILE = "by the file"
"""The choice that leaves what the file's own markers say."""

SWITCHES = (BY_FILE, "on", "off")


@dataclass(frozen=True, kw_only=True)
class MergedLora:
    """A LoRA that belongs to a base: its change is in the weights before anything else is done with them.

    Attributes:
        path: the LoRA file.
        name: as the loader lists it.
        strength_model: factor on the UNet's changes.
        strength_clip: factor on the text encoders' changes.
        stem_strengths: further factors by module, those that are not 1, sorted.
    """

    path: Path
    name: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    stem_strengths: tuple[tuple[str, float], ...] = ()

    def factors(self) -> Mapping[str, float]:
        """`stem_strengths` as a table."""
        return dict(self.stem_strengths)


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model on disk.

    Attributes:
        family: key of its family, e.g. `sd15`.
        path: the checkpoint.
        name: as the person chose it in a list.
        dtype: "fp32", "fp16" or "bf16": how a host that does not choose by itself holds its weights for drawing;
            training goes by its own precision.
        vae_path: a file whose VAE takes the place of the checkpoint's own; None for that.
        vae_name: as the person chose it.
        loras: merged in first, in this order.
        variant: what it predicts, by its markers or as the person said.
        told: what the person said of the variant against the file's markers; empty where they agree.
    """

    family: str
    path: Path
    name: str
    dtype: str = "fp32"
    vae_path: Path | None = None
    vae_name: str = ""
    loras: tuple[MergedLora, ...] = ()
    variant: Variant = field(default_factory=Variant)
    told: str = ""

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch names it."""
        return DTYPES[self.dtype]

    @property
    def prediction_type(self) -> str:
        """What the UNet predicts: "epsilon" or "v_prediction"."""
        return self.variant.prediction_type

    @property
    def zero_terminal_snr(self) -> bool:
        """Whether the base's last time step is pure noise."""
        return self.variant.zero_terminal_snr

    def open_family(self) -> Family:
        """The family that loads this file."""
        return get_family(self.family)

    def with_lora(self, lora: MergedLora) -> Base:
        """The same base with one more LoRA merged in."""
        return replace(self, loras=(*self.loras, lora))


def open_base(
    path: Path,
    *,
    name: str,
    dtype: str = "fp32",
    vae_path: Path | None = None,
    vae_name: str = "",
    prediction: str = BY_FILE,
    zero_terminal_snr: str = BY_FILE,
) -> Base:
    """Looks at the header of a checkpoint and makes its handle.

    Args:
        path: the checkpoint.
        name: as the person chose it.
        dtype: for drawing, see `Base`.
        vae_path: a file whose VAE is to be used.
        vae_name: as the person chose it.
        prediction: "epsilon" or "v_prediction" where the file's markers are missing or wrong.
        zero_terminal_snr: "on" or "off", likewise.

    Raises:
        FormatError: the file is something else; it is named. Or the VAE file holds none.
        UnknownNameError: the dtype or one of the two choices is not among the allowed ones.
        StorageError: a file cannot be read.
    """
    if dtype not in DTYPES:
        raise unknown_name("dtype of the base model", dtype, DTYPES)
    if prediction not in (BY_FILE, *PREDICTIONS):
        raise unknown_name("prediction of the base model", prediction, (BY_FILE, *PREDICTIONS))
    if zero_terminal_snr not in SWITCHES:
        raise unknown_name("choice for zero_terminal_snr", zero_terminal_snr, SWITCHES)
    path = Path(path)
    family = identify(path).family
    marked = get_family(family).variant(path)
    variant = Variant(
        prediction_type=marked.prediction_type if prediction == BY_FILE else prediction,
        zero_terminal_snr=marked.zero_terminal_snr if zero_terminal_snr == BY_FILE else zero_terminal_snr == "on",
    )
    if vae_path is not None:
        vae_prefix(read_header(vae_path), vae_path)
    return Base(
        family=family,
        path=path,
        name=name,
        dtype=dtype,
        vae_path=vae_path,
        vae_name=vae_name,
        variant=variant,
        told="" if variant == marked else f"{variant.prediction_type}{' ztsnr' * variant.zero_terminal_snr}",
    )


def base_hash(base: Base, progress: Progress | None = None) -> str:
    """SHA-256 of the checkpoint, read once per process as long as its size and time stay the same."""
    return known_sha256(base.path, progress)


def identity_hash(base: Base, checkpoint_hash: str, progress: Progress | None = None) -> str:
    """What decides the base's numbers, as one hash: of the checkpoint alone where nothing else was chosen.

    Args:
        base: the handle.
        checkpoint_hash: SHA-256 of its checkpoint.
        progress: told while files are read.

    Raises:
        StorageError: the VAE or a LoRA cannot be read.
    """
    if base.vae_path is None and not base.loras and not base.told:
        return checkpoint_hash
    said = {
        "checkpoint": checkpoint_hash,
        "vae": vae_hash(base, "", progress),
        "loras": [
            [known_sha256(lora.path, progress), lora.strength_model, lora.strength_clip, lora.stem_strengths]
            for lora in base.loras
        ],
        "told": base.told,
    }
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode("utf-8")).hexdigest()


def text_hash(base: Base, checkpoint_hash: str, progress: Progress | None = None) -> str:
    """What decides the numbers of the text encoders, as one hash: of the checkpoint, where no LoRA changes them."""
    loras = [
        [known_sha256(lora.path, progress), lora.strength_clip, lora.stem_strengths]
        for lora in base.loras
        if lora.strength_clip
    ]
    if not loras:
        return checkpoint_hash
    return hashlib.sha256(json.dumps([checkpoint_hash, loras]).encode("utf-8")).hexdigest()


def vae_hash(base: Base, checkpoint_hash: str, progress: Progress | None = None) -> str:
    """SHA-256 of the file whose VAE is used."""
    return checkpoint_hash if base.vae_path is None else known_sha256(base.vae_path, progress)
