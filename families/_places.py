"""One name for a module of a model, whatever a LoRA file or a checkpoint calls it.

A `Place` is a part and the module's dotted path in the names of diffusers and transformers. Stems of LoRA files in
every naming (kohya, LyCORIS, diffusers, peft, ComfyUI's dotted names) are read into places, and places are written as
stems of one naming or found in a checkpoint of the LDM layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from ..core.tensors import Header
from . import _names
from ._clip import open_clip_part, text_prefix
from ._single_file import FilePart
from ._spec import COMFY, DIFFUSERS, Place, TextEncoderSpec

UNET = "unet"

_TOKENS = (
    # U-Net in the names of diffusers
    "down_blocks", "up_blocks", "mid_block", "resnets", "attentions", "downsamplers", "upsamplers",
    "transformer_blocks", "time_embedding", "add_embedding", "class_embedding", "linear_1", "linear_2",
    "time_emb_proj", "conv_shortcut", "conv_norm_out", "conv_in", "conv_out", "conv1", "conv2", "conv",
    "norm1", "norm2", "norm3", "norm", "proj_in", "proj_out", "proj", "attn1", "attn2", "to_q", "to_k", "to_v",
    "to_out", "ff", "net",
    # U-Net in the LDM layout
    "input_blocks", "middle_block", "output_blocks", "in_layers", "out_layers", "emb_layers", "skip_connection",
    "time_embed", "label_emb", "op", "out",
    # text encoders
    "text_model", "encoder", "layers", "embeddings", "token_embedding", "position_embedding", "final_layer_norm",
    "text_projection", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj", "mlp", "fc1", "fc2", "layer_norm1",
    "layer_norm2",
)  # fmt: skip
_TOKEN = re.compile(rf"({'|'.join(sorted(_TOKENS, key=len, reverse=True))}|\d+)(?:_|$)")
_UNET_PREFIXES = (
    "lora_unet_", "lycoris_unet_", "lycoris_", "unet.base_model.model.", "base_model.model.unet.", "base_model.model.",
    "unet.", "unet_", "model.diffusion_model.", "diffusion_model.", "diffusion_model_",
)  # fmt: skip
_TEXT_PREFIXES = (
    re.compile(r"^(?:lora|lycoris)_te([12]?)_"),
    re.compile(r"^text_encoder(?:_([12]))?\.(?:base_model\.model\.)?"),
    re.compile(r"^(?:lycoris_)?()(?=text_model[._])"),
)
"""Which encoder is counted in the group, from 1; nothing is the first."""
_COMFY_TEXT = re.compile(r"^text_encoders\.(\w+)\.transformer\.")
_LDM_BEGINNINGS = ("input_blocks.", "middle_block.", "output_blocks.", "time_embed.", "label_emb.", "out.")


def dotted(flat: str) -> str | None:
    """The dotted path of one whose dots became underscores; None where a word of it belongs to no such model."""
    words: list[str] = []
    position = 0
    while position < len(flat):
        found = _TOKEN.match(flat, position)
        if found is None:
            return None
        words.append(found[1])
        position = found.end()
    return ".".join(words) if words and not flat.endswith("_") else None


def place_of_stem(stem: str, encoders: Sequence[TextEncoderSpec], table: Mapping[str, str]) -> Place | None:
    """The place that a stem of any naming means; None for one that no model of the family has.

    Args:
        stem: module part of a LoRA tensor's name.
        encoders: of the family.
        table: diffusers path -> LDM path of the U-Net's parts (`_names.unet_modules`).
    """
    found = _text_stem(stem, encoders)
    if found is not None:
        part, rest = found
        path = _clean(rest)
        return Place(part=part, path=path) if path and path.startswith("text_") else None
    rest = next((stem[len(prefix) :] for prefix in _UNET_PREFIXES if stem.startswith(prefix)), stem)
    path = _clean(rest)
    if path is None:
        return None
    if path.startswith(_LDM_BEGINNINGS):
        path = _diffusers_path(path, table)
    elif path.startswith("class_embedding."):  # ComfyUI's second name of it
        path = path.replace("class_embedding", "add_embedding", 1)
    if path is None or _names.unet_to_ldm(path, table) is None:
        return None
    return Place(part=UNET, path=path)


def stem_of_place(
    place: Place, naming: str, encoders: Sequence[TextEncoderSpec], table: Mapping[str, str], *, ldm_stems: bool
) -> str:
    """What a LoRA file of one naming calls a place.

    Args:
        place: of the family.
        naming: one of `NAMINGS`.
        encoders: of the family.
        table: as `place_of_stem`.
        ldm_stems: whether kohya's scripts name the family's U-Net by its LDM paths.
    """
    if place.part == UNET:
        ldm = _names.unet_to_ldm(place.path, table) or place.path
        if naming == DIFFUSERS:
            return f"unet.{place.path}"
        if naming == COMFY:
            return f"diffusion_model.{ldm}"
        return f"lora_unet_{(ldm if ldm_stems else place.path).replace('.', '_')}"
    spec = next(spec for spec in encoders if spec.part == place.part)
    if naming == DIFFUSERS:
        return f"{spec.part}.{place.path}"
    if naming == COMFY:
        return f"text_encoders.{spec.comfy_name}.transformer.{place.path}"
    return f"{spec.stem}_{place.path.replace('.', '_')}"


_SPATIAL = ("conv", "conv1", "conv2", "conv_in", "conv_out")


def kernel_of(place: Place, *, linear_projections: bool) -> tuple[int, ...]:
    """The kernel of a layer by its name; empty for one that is no convolution.

    Args:
        place: of the family.
        linear_projections: whether the projections around transformers are linear layers.
    """
    last = place.path.rpartition(".")[2]
    if place.part != UNET:
        return ()
    if last in _SPATIAL:
        return (3, 3)
    is_projection = last in ("proj_in", "proj_out") and not linear_projections
    return (1, 1) if last == "conv_shortcut" or is_projection else ()


def place_in_file(
    place: Place,
    parameter: str,
    header: Header,
    *,
    prefix: str,
    encoders: Sequence[TextEncoderSpec],
    table: Mapping[str, str],
    widths: Mapping[str, int],
) -> FilePart | None:
    """Where a checkpoint keeps a place's weight or bias: the whole key; None where it has none.

    Args:
        place: of the family.
        parameter: "weight" or "bias".
        header: of the checkpoint.
        prefix: of the U-Net's keys.
        encoders: of the family.
        table: as `place_of_stem`.
        widths: of the text encoders by part.
    """
    if place.part == UNET:
        ldm = _names.unet_to_ldm(place.path, table)
        part = None if ldm is None else FilePart(key=f"{prefix}{ldm}.{parameter}")
    else:
        spec = next(spec for spec in encoders if spec.part == place.part)
        part = _text_part(place, parameter, header, spec, widths[spec.part])
    return part if part is not None and part.key in header.shapes else None


def places_of_file(
    header: Header, *, prefix: str, encoders: Sequence[TextEncoderSpec], table: Mapping[str, str],
    layers: Mapping[str, int],
) -> Iterator[Place]:  # fmt: skip
    """Every place whose weight a checkpoint may hold: the U-Net's in the file's order, then the text encoders'.

    Args:
        header: of the checkpoint.
        prefix: of the U-Net's keys.
        encoders: of the family.
        table: as `place_of_stem`.
        layers: of the text encoders by part.
    """
    for key in header.shapes:
        if key.startswith(prefix) and key.endswith(".weight"):
            path = _diffusers_path(key[len(prefix) : -len(".weight")], table)
            if path is not None:
                yield Place(part=UNET, path=path)
    for spec in encoders:
        yield from (Place(part=spec.part, path=path) for path in _names.text_paths(layers[spec.part]))


def _diffusers_path(ldm: str, table: Mapping[str, str]) -> str | None:
    named = _names.diffusers_paths([f"{ldm}.weight"], table)
    return named[0] if named else None


def _text_stem(stem: str, encoders: Sequence[TextEncoderSpec]) -> tuple[str, str] | None:
    """Part and rest of a text encoder's stem; None where it is none."""
    if found := _COMFY_TEXT.match(stem):
        part = next((spec.part for spec in encoders if spec.comfy_name == found[1]), None)
        return None if part is None else (part, stem[found.end() :])
    for pattern in _TEXT_PREFIXES:
        if found := pattern.match(stem):
            number = int(found[1] or "1") - 1
            return (encoders[number].part, stem[found.end() :]) if number < len(encoders) else None
    return None


def _text_part(place: Place, parameter: str, header: Header, spec: TextEncoderSpec, width: int) -> FilePart | None:
    prefix = text_prefix(header, spec)
    key = f"{place.path}.{parameter}"
    if not spec.open_clip:
        return FilePart(key=f"{prefix}{key.removeprefix('text_model.')}")
    linear = f"{prefix}text_projection.weight" in header.shapes
    part = open_clip_part(key, width, linear_projection=linear)
    return None if part is None else FilePart(key=f"{prefix}{part.key}", rows=part.rows, transposed=part.transposed)


def _clean(rest: str) -> str | None:
    """A dotted path of what stands behind a stem's prefix, in the names that the tables know."""
    path = rest if "." in rest else dotted(rest)
    if path is None:
        return None
    path = path.replace(".processor.", ".")
    return f"{path}.0" if path.endswith(".to_out") else path
