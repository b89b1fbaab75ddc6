"""The LoRA handle that travels on wires: which file, how strong, with which block weights. No weights are loaded."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.errors import FormatError, InputError
from ...core.files import known_sha256
from ...core.tensors import Header, read_header
from .blocks import ResolvedWeights, explain_weights
from .elements import ElementSets
from .presets import Presets

MAX_STRENGTH = 100.0
"""Largest absolute strength, as in the core loader."""

_PART = re.compile(
    r"[._](?:lora_(?:down|up|mid)(?:\.weight)?|lora_[AB](?:(?:\.default)?\.weight)?|lora(?:\.|_linear_layer\.)(?:down|up)\.weight"
    r"|alpha|dora_scale|hada_(?:w1_a|w1_b|w2_a|w2_b|t1|t2)|lokr_(?:w1|w2|w1_a|w1_b|w2_a|w2_b|t1|t2)"
    r"|oft_blocks|oft_diag|rescale|on_input|[ab][12](?:\.weight)?|diff|diff_b|w_norm|b_norm|set_weight|reshape_weight)$"
)
"""End of a tensor's name that makes it part of a LoRA-like network: kohya, diffusers, peft and LyCORIS names."""

_OTHER_MODELS = ("double_blocks", "single_blocks", "joint_blocks", "single_transformer_blocks", "lora_transformer_")
_CROSS_ATTENTION = re.compile(r"attn2[._](?:processor\.)?to_k[._](?:lora_down|lora_A|lora[._]down|hada_w1_b|diff$)")
_SDXL_STEM = re.compile(
    r"(lora_te2_|text_encoder_2|text_encoders_clip_g|conditioner|input_blocks_[78]_1_transformer_blocks_[1-9]|down_blocks_2_\w+blocks_[2-9])"
)


@dataclass(frozen=True, kw_only=True)
class Lora:
    """One LoRA file as it is to be applied (socket ``ATELIER_LORA``).

    Attributes:
        path: The safetensors file.
        name: Its name below the loras folder, as the loader lists it.
        sha256: Hash of the whole file, hexadecimal.
        family: Model family it was trained for.
        strength_model: Factor of the UNet's deltas.
        strength_clip: Factor of the text encoder's deltas.
        block_weights: Preset name, numbers or items such as ``lbw=NIN:step=5-10``; empty means ALL.
        trigger: Words that call the concept, as its author gave them; may be empty.
    """

    path: Path
    name: str
    sha256: str
    family: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    block_weights: str = ""
    trigger: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain values, the path as text."""
        return {**dataclasses.asdict(self), "path": str(self.path)}


def open_lora(
    path: Path,
    name: str,
    *,
    strength_model: float = 1.0,
    strength_clip: float = 1.0,
    block_weights: str = "",
    trigger: str = "",
) -> Lora:
    """Make a handle from a LoRA file, by its header and hash.

    Raises:
        FormatError: Not a LoRA, or one for a model family that cannot be used here (named).
        InputError: A strength is not a number or beyond 100.
        StorageError: The file cannot be read.
    """
    for what, strength in (("model strength", strength_model), ("clip strength", strength_clip)):
        if not -MAX_STRENGTH <= strength <= MAX_STRENGTH:
            raise InputError(f"The {what} is {strength}; give a number from -{MAX_STRENGTH:g} to {MAX_STRENGTH:g}.")
    family = lora_family(read_header(path), name)
    return Lora(
        path=path,
        name=name,
        sha256=known_sha256(path),
        family=family,
        strength_model=strength_model,
        strength_clip=strength_clip,
        block_weights=block_weights.strip(),
        trigger=trigger.strip(),
    )


def stem_of_key(key: str) -> str | None:
    """Return the module part of a LoRA tensor's name, or None when the name is no LoRA's."""
    found = _PART.search(key)
    return key[: found.start()] if found else None


def lora_stems(path: Path) -> tuple[str, ...]:
    """Return the module stems of a LoRA file in file order, read from its header."""
    stems = (stem_of_key(key) for key in read_header(path).shapes)
    return tuple(dict.fromkeys(stem for stem in stems if stem))


def lora_family(header: Header, name: str) -> str:
    """Name the model family of a LoRA by the names and shapes of its tensors.

    Raises:
        FormatError: Not a LoRA, or a LoRA for another kind of model; the message says which.
    """
    stems = [stem.replace(".", "_") for stem in (stem_of_key(key) for key in header.shapes) if stem]
    if not stems:
        raise FormatError(
            f"'{name}' is not a LoRA: none of its {len(header.shapes)} tensors has a LoRA's name; "
            "choose a file that a LoRA trainer wrote."
        )
    told = _told_family(header)
    other = "" if told or any(_SDXL_STEM.search(stem) for stem in stems) else _other_model(stems)
    if other:
        raise FormatError(
            f"'{name}' is a LoRA for {other}; only LoRAs for SD 1.x, SD 2.x and SDXL can be opened so far."
        )
    return told or _shown_family(header, stems)


def _told_family(header: Header) -> str:
    """The family that the file's metadata names, "" where it names none that is known here."""
    version = header.metadata.get("ss_base_model_version", "")
    architecture = header.metadata.get("modelspec.architecture", "")
    if version.startswith("sdxl_") or architecture.startswith("stable-diffusion-xl"):
        return "sdxl"
    if version.startswith("sd_v2") or header.metadata.get("ss_v2") == "True":
        return "sd2"
    return "sd15" if version.startswith("sd_v1") else ""


def _shown_family(header: Header, stems: list[str]) -> str:
    """The family by the width of the text states that cross-attention takes, and by names that only SDXL has."""
    widths = {shape[1] for key, shape in header.shapes.items() if _CROSS_ATTENTION.search(key) and len(shape) >= 2}
    if 2048 in widths or any(_SDXL_STEM.search(stem) for stem in stems):
        return "sdxl"
    return "sd2" if 1024 in widths else "sd15"


def _other_model(stems: list[str]) -> str:
    if any(word in stem for stem in stems for word in _OTHER_MODELS):
        return "a transformer model such as Flux or SD 3"
    known = (
        "lora_unet_",
        "lora_te_",
        "lora_te1_",
        "lycoris_",
        "unet_",
        "text_encoder",
        "diffusion_model_",
        "model_diffusion_model_",
        "base_model_model_",
        "down_blocks_",
        "mid_block_",
        "up_blocks_",
        "lora_prior",
    )
    if not any(stem.startswith(known) for stem in stems):
        return f"an unknown model (its first module is '{stems[0]}')"
    return ""


def explain_strengths(
    lora: Lora, *, presets: Presets | None = None, elements: ElementSets | None = None
) -> ResolvedWeights:
    """Return the block weights of a LoRA's file, with the factor of every module and an account of how they were read.

    ALL is 1 for every stem, also for one that belongs to no known block.

    Raises:
        InputError: As `explain_weights`.
        FormatError: A stem belongs to no block of the family and the weights are not ALL.
    """
    return explain_weights(
        lora.block_weights, family=lora.family, stems=lora_stems(lora.path), presets=presets, elements=elements
    )
