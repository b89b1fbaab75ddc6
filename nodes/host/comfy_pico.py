"""Pico as ComfyUI's own MODEL, CLIP and VAE.

ComfyUI's checkpoint loader knows only full-size models, so its SD1.5 and SDXL classes are built here from the sizes in
the file; from there on its own samplers, LoRA patching and VAE code draw the pictures. Like ``comfy.py``, this file
touches ComfyUI, and only inside functions.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import FormatError
from ...core.files import write_text
from ...core.tensors import read_header, read_tensors
from ...families._spec import get_family
from ...families._tokenizer import read_tables
from .protocol import CLIP, MODEL, VAE

if TYPE_CHECKING:
    import torch

    from ...core.tensors import Header
    from ...families._spec import TextEncoderSpec

SIZES_KEY = "atelier.sizes"
FAMILY_KEY = "atelier.family"
TOKENIZER_KEY = "atelier.tokenizer"
UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
BUILT = ("sd15", "sdxl")
"""The families whose tiny relatives are built here."""
START, END = "<|startoftext|>", "<|endoftext|>"


class _Ratio(float):
    """A width as a multiple of another; ComfyUI multiplies the two and needs a whole number of channels."""

    def __mul__(self, width: Any) -> int:
        return round(float(self) * width)

    __rmul__ = __mul__


def is_pico(header: Header) -> bool:
    """True when the file carries its own sizes."""
    return SIZES_KEY in header.metadata


def load_pico(path: Path, *, temp_dir: Path) -> tuple[MODEL, CLIP, VAE]:
    """Load a file with sizes in its metadata as ComfyUI's MODEL, CLIP and VAE; the tokenizer goes to temp_dir.

    Raises:
        FormatError: the metadata is not what it should be, or does not fit the file's tensors.
        UnknownNameError: the file names a family that is not here.
    """
    return load_pico_tensors(read_header(path), read_tensors(path), path, temp_dir=temp_dir)


def load_pico_tensors(
    header: Header, tensors: dict[str, torch.Tensor], path: Path, *, temp_dir: Path
) -> tuple[MODEL, CLIP, VAE]:
    """The same of a header and tensors; the path names them in errors.

    Raises:
        FormatError: as :func:`load_pico`.
        UnknownNameError: as :func:`load_pico`.
    """
    sizes = checked_sizes(header, path)
    vae_tensors = {key[len(VAE_PREFIX) :]: value for key, value in tensors.items() if key.startswith(VAE_PREFIX)}
    config = _model_config(header.metadata[FAMILY_KEY], sizes["unet"])
    tokenizer_dir = _unpack_tokenizer(header.metadata[TOKENIZER_KEY], path, temp_dir)
    texts = [sizes[spec.part] for spec in get_family(header.metadata[FAMILY_KEY]).text_encoders]
    make_clip = _clip_xl if "text_encoder_2" in sizes else _clip
    clip = make_clip(config, dict(tensors), texts, tokenizer_dir)
    return _model(config, tensors), clip, _vae(vae_tensors, sizes["vae"])


def checked_sizes(header: Header, path: Path) -> dict[str, dict[str, Any]]:
    """The sizes of the file's metadata, so far checked that no model larger than the file is built from them.

    Raises:
        FormatError: metadata is missing, a size is not one the family can have, or it is not that of the tensors.
        UnknownNameError: the file names a family that is not here.
    """
    for key in (FAMILY_KEY, TOKENIZER_KEY):
        if key not in header.metadata:
            raise FormatError(f"{path.name} has {SIZES_KEY} in its metadata but no {key}; make the file again")
    family = get_family(header.metadata[FAMILY_KEY])
    if family.name not in BUILT:
        raise FormatError(f"{path.name} is a tiny {family.title}, which is not built inside ComfyUI; use its full size")
    sizes: dict[str, dict[str, Any]] = family.sizes(header)
    for key, expected in _expected_shapes(sizes, family.text_encoders):
        if header.shapes.get(key) != expected:
            raise FormatError(
                f"{path.name}: its metadata {SIZES_KEY} asks for {key} of shape {expected}, "
                f"the file has {header.shapes.get(key, 'no such tensor')}; make the file again"
            )
    return sizes


def _expected_shapes(
    sizes: Mapping[str, Mapping[str, Any]], encoders: Sequence[TextEncoderSpec]
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """One tensor for every size that decides how much memory the model takes."""
    unet, vae = sizes["unet"], sizes["vae"]
    first, inputs = unet["block_out_channels"][0], f"{UNET_PREFIX}input_blocks."
    yield f"{inputs}0.0.weight", (first, unet["in_channels"], 3, 3)
    yield f"{UNET_PREFIX}out.2.weight", (unet["out_channels"], first, 3, 3)
    if "projection_class_embeddings_input_dim" in unet:
        yield f"{UNET_PREFIX}label_emb.0.0.weight", (4 * first, unet["projection_class_embeddings_input_dim"])
    for level, (width, depth) in enumerate(zip(unet["block_out_channels"], _depths(unet), strict=True)):
        place = f"{inputs}{1 + level * (unet['layers_per_block'] + 1)}"
        yield f"{place}.0.out_layers.3.weight", (width, width, 3, 3)
        if depth:
            block = f"{place}.1.transformer_blocks.{depth - 1}"
            yield f"{block}.attn2.to_k.weight", (width, unet["cross_attention_dim"])
    for level, width in enumerate(vae["block_out_channels"]):
        for layer in range(vae["layers_per_block"]):
            yield f"{VAE_PREFIX}encoder.down.{level}.block.{layer}.conv2.weight", (width, width, 3, 3)
    yield f"{VAE_PREFIX}encoder.conv_in.weight", (vae["block_out_channels"][0], vae["in_channels"], 3, 3)
    yield f"{VAE_PREFIX}decoder.conv_out.weight", (vae["out_channels"], vae["block_out_channels"][0], 3, 3)
    for spec in encoders:
        yield from _expected_text_shapes(sizes[spec.part], spec)


def _expected_text_shapes(text: Mapping[str, Any], spec: TextEncoderSpec) -> Iterator[tuple[str, tuple[int, ...]]]:
    prefix, width = spec.prefixes[0], text["hidden_size"]
    words, places = (text["vocab_size"], width), (text["max_position_embeddings"], width)
    if spec.open_clip:
        yield f"{prefix}token_embedding.weight", words
        yield f"{prefix}positional_embedding", places
    else:
        yield f"{prefix}embeddings.token_embedding.weight", words
        yield f"{prefix}embeddings.position_embedding.weight", places
    feed_forward = "transformer.resblocks.{}.mlp.c_fc.weight" if spec.open_clip else "encoder.layers.{}.mlp.fc1.weight"
    for layer in range(text["num_hidden_layers"]):
        yield f"{prefix}{feed_forward.format(layer)}", (text["intermediate_size"], width)


def _depths(unet: Mapping[str, Any]) -> list[int]:
    """Transformer blocks of every level, 0 where it has no attention."""
    kinds = unet["down_block_types"]
    each = unet.get("transformer_layers_per_block", (1,) * len(kinds))
    return [depth if kind.startswith("CrossAttn") else 0 for kind, depth in zip(kinds, each, strict=True)]


def _ratios(widths: Sequence[int]) -> list[Any]:
    """Each width as a multiple of the first."""
    whole = all(width % widths[0] == 0 for width in widths)
    return [width // widths[0] if whole else _Ratio(width / widths[0]) for width in widths]


def _model_config(family: str, unet: dict[str, Any]) -> Any:
    """ComfyUI's model config of a family with the sizes of a diffusers UNet config.

    Raises:
        FormatError: the heads of the levels differ in width, which ComfyUI's SDXL cannot have.
    """
    import comfy.supported_models

    resnets, depths = unet["layers_per_block"], _depths(unet)
    is_xl = family == "sdxl"
    given: dict[str, Any] = {
        "image_size": 32,
        "in_channels": unet["in_channels"],
        "out_channels": unet["out_channels"],
        "model_channels": unet["block_out_channels"][0],
        "channel_mult": _ratios(unet["block_out_channels"]),
        "num_res_blocks": [resnets] * len(depths),
        "transformer_depth": [depth for depth in depths for _ in range(resnets)],
        "transformer_depth_output": [depth for depth in depths for _ in range(resnets + 1)],
        "transformer_depth_middle": depths[-1] if is_xl else 1,
        "context_dim": unet["cross_attention_dim"],
        "use_spatial_transformer": True,
        "use_linear_in_transformer": is_xl,
        "use_temporal_resblock": False,
        "use_temporal_attention": False,
        "adm_in_channels": unet.get("projection_class_embeddings_input_dim"),
        "legacy": False,
    }
    if not is_xl:
        config = comfy.supported_models.SD15(given)
        config.unet_config["num_heads"] = unet["attention_head_dim"]
        return config
    widths = {
        width // heads for width, heads in zip(unet["block_out_channels"], unet["attention_head_dim"], strict=True)
    }
    if len(widths) != 1:
        raise FormatError(
            f"the metadata {SIZES_KEY} gives attention heads of different widths ({sorted(widths)}); make it again"
        )
    config = comfy.supported_models.SDXL({**given, "num_classes": "sequential"})
    config.unet_config["num_head_channels"] = widths.pop()
    return config


def _model(config: Any, tensors: dict[str, torch.Tensor]) -> MODEL:
    """The UNet as a patchable model."""
    import comfy.model_management as management
    import comfy.model_patcher
    import torch

    device = management.get_torch_device()
    parameters = sum(value.numel() for key, value in tensors.items() if key.startswith(UNET_PREFIX))
    supported = list(config.supported_inference_dtypes)
    dtype = management.unet_dtype(model_params=parameters, supported_dtypes=supported, weight_dtype=torch.float16)
    config.set_inference_dtype(dtype, management.unet_manual_cast(dtype, device, supported))
    model = config.get_model(tensors, UNET_PREFIX, device=management.unet_offload_device())
    model.load_model_weights(tensors, UNET_PREFIX)
    offload = management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def _vae(tensors: dict[str, torch.Tensor], vae: dict[str, Any]) -> VAE:
    """The autoencoder, in float32: it is tiny, and rounding would show."""
    import comfy.sd
    import torch

    widths = vae["block_out_channels"]
    ddconfig = {
        "double_z": True,
        "z_channels": vae["latent_channels"],
        "resolution": 256,
        "in_channels": vae["in_channels"],
        "out_ch": vae["out_channels"],
        "ch": widths[0],
        "ch_mult": _ratios(widths),
        "num_res_blocks": vae["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    config = {"params": {"ddconfig": ddconfig, "embed_dim": vae["latent_channels"]}}
    return comfy.sd.VAE(sd=tensors, config=config, dtype=torch.float32)


def _text_model(text: dict[str, Any], *, pad: int, options: Mapping[str, Any], **layer: Any) -> Any:
    """ComfyUI's text encoder of these sizes."""
    import comfy.sd1_clip

    return comfy.sd1_clip.SDClipModel(
        textmodel_json_config=dict(text),
        special_tokens={"start": text["bos_token_id"], "end": text["eos_token_id"], "pad": pad},
        **options,
        **layer,
    )


def _clip(config: Any, tensors: dict[str, torch.Tensor], texts: Sequence[dict[str, Any]], tokenizer_dir: Path) -> CLIP:
    """The one text encoder of SD1.x with its own tokenizer."""
    import comfy.sd
    import comfy.sd1_clip
    from comfy.supported_models_base import ClipTarget

    (text,) = texts

    class PicoTextModel(comfy.sd1_clip.SDClipModel):  # type: ignore[misc, name-defined]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                dtype=dtype,
                textmodel_json_config=dict(text),
                special_tokens={
                    "start": text["bos_token_id"],
                    "end": text["eos_token_id"],
                    "pad": text["eos_token_id"],
                },
                return_projected_pooled=False,
                model_options=model_options or {},
            )

    class PicoClipModel(comfy.sd1_clip.SD1ClipModel):  # type: ignore[misc, name-defined]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device=device, dtype=dtype, model_options=model_options or {}, clip_model=PicoTextModel)

    class PicoTokenizer(comfy.sd1_clip.SDTokenizer):  # type: ignore[misc, name-defined]
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                str(tokenizer_dir),
                embedding_directory=embedding_directory,
                embedding_size=text["hidden_size"],
                tokenizer_data=tokenizer_data or {},
            )

    class PicoClipTokenizer(comfy.sd1_clip.SD1Tokenizer):  # type: ignore[misc, name-defined]
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            super().__init__(embedding_directory, tokenizer_data or {}, tokenizer=PicoTokenizer)

    clip = comfy.sd.CLIP(ClipTarget(PicoClipTokenizer, PicoClipModel), parameters=1)
    return _filled(clip, config, tensors)


def _clip_xl(
    config: Any, tensors: dict[str, torch.Tensor], texts: Sequence[dict[str, Any]], tokenizer_dir: Path
) -> CLIP:
    """Both text encoders of SDXL with the file's own tokenizer."""
    import comfy.sd
    import comfy.sd1_clip
    import comfy.sdxl_clip
    import torch
    from comfy.supported_models_base import ClipTarget

    first, second = texts
    penultimate = {"layer": "hidden", "layer_idx": -2, "layer_norm_hidden_state": False}

    class PicoXlModel(comfy.sdxl_clip.SDXLClipModel):  # type: ignore[misc, name-defined]
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            torch.nn.Module.__init__(self)
            options = {"device": device, "dtype": dtype, "model_options": model_options or {}}
            self.clip_l = _text_model(first, pad=first["eos_token_id"], options=options, **penultimate)
            self.clip_g = _text_model(second, pad=0, options=options, return_projected_pooled=True, **penultimate)
            self.dtypes = {dtype}

    class PicoXlTokenizer(comfy.sdxl_clip.SDXLTokenizer):  # type: ignore[misc, name-defined]
        def __init__(self, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
            def tokenizer(text: Mapping[str, Any], **options: Any) -> Any:
                return comfy.sd1_clip.SDTokenizer(
                    str(tokenizer_dir),
                    embedding_directory=embedding_directory,
                    embedding_size=text["hidden_size"],
                    tokenizer_data=tokenizer_data or {},
                    **options,
                )

            self.clip_l = tokenizer(first)
            self.clip_g = tokenizer(second, embedding_key="clip_g", pad_with_end=False)

    clip = comfy.sd.CLIP(ClipTarget(PicoXlTokenizer, PicoXlModel), parameters=1)
    return _filled(clip, config, tensors)


def _filled(clip: CLIP, config: Any, tensors: dict[str, torch.Tensor]) -> CLIP:
    """The text encoders with the weights of the file."""
    state, own = config.process_clip_state_dict(tensors), clip.cond_stage_model.state_dict()
    for key in state:
        if key.endswith(".token_embedding.weight"):
            state[key] = _more_rows(state[key], len(own[key]))
    clip.load_sd(state, full_model=True)
    return clip


def _more_rows(embedding: torch.Tensor, rows: int) -> torch.Tensor:
    """[tokens, width] with zero rows added: ComfyUI's CLIP always has the full-size vocabulary."""
    import torch

    return torch.cat([embedding, embedding.new_zeros(max(0, rows - len(embedding)), embedding.shape[1])])


def _unpack_tokenizer(metadata: str, path: Path, temp_dir: Path) -> Path:
    """Write the two files that ComfyUI's tokenizer class reads; the folder's name is that of their content."""
    from hashlib import sha256

    vocab, merges = read_tables(metadata, path)
    folder = temp_dir / f"atelier-tokenizer-{sha256(metadata.encode()).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    marks = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    write_text(folder / "vocab.json", json.dumps(vocab))
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")
    write_text(folder / "special_tokens_map.json", json.dumps(marks))
    write_text(folder / "tokenizer_config.json", json.dumps({"tokenizer_class": "CLIPTokenizer", **marks}))
    return folder
