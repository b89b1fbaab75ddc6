"""Names what a model file is, from its header alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import FormatError
from ..core.files import storage_error
from ..core.tensors import Header, read_header
from ._spec import families

_OLD_SUFFIXES = {".ckpt", ".pt", ".pth", ".bin"}
_UNET = "model.diffusion_model."
_CONTEXT = f"{_UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
_CONV_IN = f"{_UNET}input_blocks.0.0.weight"
_LORA_MARKS = (
    ".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight",
    ".lora.down.weight", "_lora.down.weight", ".lora_A", ".lora_linear_layer.down.weight",
)  # fmt: skip
_LYCORIS_MARKS = (
    ".hada_w1_a",
    ".lokr_w1",
    ".lokr_w1_a",
    ".oft_blocks",
    ".diff",
    ".b1.weight",
    ".on_input",
    ".oft_diag",
)


_TOKEN_WIDTHS = (768, 1024, 1280)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What a base model file is.

    Attributes:
        family: key of its family.
        title: of the family, for people.
        is_pico: whether it is of the tiny sizes given by its own metadata.
        header: of the file.
    """

    family: str
    title: str
    is_pico: bool
    header: Header


def identify(path: Path) -> Identity:
    """The family of a checkpoint; only the header is read.

    Raises:
        FormatError: the file is something else, which is named, or an old format, or damaged.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    if path.is_dir():
        raise FormatError(f"{path.name} is a folder (a diffusers model?), a base model is one .safetensors file")
    if path.is_file() and (path.suffix.lower() in _OLD_SUFFIXES or _starts_as_zip(path)):
        raise FormatError(
            f"{path.name} is a pickled PyTorch file, which can run code when it is opened; make a .safetensors of it "
            "with the node 'Convert Checkpoint (Atelier)' or the command: lora-atelier convert"
        )
    header = read_header(path)
    for name, family in families().items():
        if family.detect(header):
            return Identity(family=name, title=family.title, is_pico="atelier.sizes" in header.metadata, header=header)
    titles = " or ".join(family.title for family in families().values())
    raise FormatError(f"{path.name} is {describe(header)}; a base model must be a full checkpoint of {titles}")


def _starts_as_zip(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"PK\x03\x04"
    except OSError as cause:
        raise storage_error("read", path, cause) from cause


def describe(header: Header) -> str:
    """What the file with this header is, with its article, e.g. "an SDXL base checkpoint"."""
    if not header.shapes:
        return "a safetensors file without any tensor"
    for title, holds in _KINDS:
        if holds(header):
            return title
    keys = list(header.shapes)
    return f"no model file this pack knows (its first keys are {', '.join(keys[:3])})"


def _has(header: Header, *prefixes: str) -> bool:
    return any(key.startswith(prefixes) for key in header.shapes)


def _ends(header: Header, *suffixes: str) -> bool:
    return any(key.endswith(suffixes) for key in header.shapes)


def _context_is(header: Header, width: int) -> bool:
    shape = header.shapes.get(_CONTEXT, header.shapes.get(_CONTEXT.replace("blocks.1.1", "blocks.4.1"), ()))
    return len(shape) == 2 and shape[1] == width


def _inputs_are(header: Header, *channels: int) -> bool:
    shape = header.shapes.get(_CONV_IN, ())
    return len(shape) == 4 and shape[1] in channels


def _has_inside(header: Header, *starts: str) -> bool:
    """Whether a diffusion model, alone or in a checkpoint, has keys that begin so."""
    return _has(header, *starts, *(f"{_UNET}{start}" for start in starts))


def _only(header: Header, *prefixes: str) -> bool:
    return all(key.startswith(prefixes) for key in header.shapes)


def _is_embedding(header: Header) -> bool:
    keys = set(header.shapes)
    if keys & {"emb_params", "emp_params", "string_to_param"} or keys <= {"clip_l", "clip_g"}:
        return True
    key, shape = next(iter(header.shapes.items()))  # a lone token, as in the concept libraries of diffusers
    return len(keys) == 1 and "." not in key and len(shape) in (1, 2) and shape[-1] in _TOKEN_WIDTHS


# Asked in this order; the first that fits gives the name.
_KINDS: tuple[tuple[str, Callable[[Header], bool]], ...] = (
    ("a LyCORIS file (an adapter, not a base model)", lambda header: _ends(header, *_LYCORIS_MARKS)),
    ("a LoRA (an adapter, not a base model)", lambda header: _ends(header, *_LORA_MARKS)),
    ("a textual-inversion embedding", _is_embedding),
    (
        "a ControlNet",
        lambda header: _has(header, "control_model.", "controlnet_", "input_hint_block.", "model.control_model."),
    ),
    ("an IP-Adapter", lambda header: _has(header, "ip_adapter.", "image_proj.")),
    ("an AnimateDiff motion module", lambda header: any(".motion_modules." in key for key in header.shapes)),
    ("an SD3 checkpoint", lambda header: _has(header, f"{_UNET}joint_blocks.", "joint_blocks.")),
    (
        "a Hunyuan Video checkpoint",
        lambda header: _has_inside(header, "txt_in.individual_token_refiner."),
    ),
    ("a Chroma checkpoint", lambda header: _has_inside(header, "distilled_guidance_layer.")),
    ("a Flux checkpoint", lambda header: _has(header, f"{_UNET}double_blocks.", "double_blocks.")),
    (
        "a Flux or SD3 transformer in the diffusers layout",
        lambda header: _has(header, "single_transformer_blocks.", "transformer_blocks.0.ff_context."),
    ),
    (
        "an SDXL refiner checkpoint",
        lambda header: _has(header, f"{_UNET}label_emb.") and _context_is(header, 1280),
    ),
    (
        "an SDXL inpainting or instruct-pix2pix checkpoint",
        lambda header: _has(header, f"{_UNET}label_emb.") and _context_is(header, 2048) and _inputs_are(header, 8, 9),
    ),
    (
        "an SDXL checkpoint with the EDM noise schedule (Playground 2.5, CosXL)",
        lambda header: _has(header, "edm_mean", "edm_vpred.") and _context_is(header, 2048),
    ),
    (
        "a distilled SDXL checkpoint with fewer transformers (SSD-1B, Segmind Vega, KOALA)",
        lambda header: _has(header, f"{_UNET}label_emb.") and _context_is(header, 2048),
    ),
    ("a Stable Video Diffusion checkpoint", lambda header: any(".time_stack." in key for key in header.shapes)),
    (
        "an SD2.1 unCLIP checkpoint",
        lambda header: _has(header, f"{_UNET}label_emb.") and _context_is(header, 1024),
    ),
    (
        "an SD2 inpainting, depth or upscaling checkpoint",
        lambda header: _context_is(header, 1024) and _inputs_are(header, 5, 7, 8, 9),
    ),
    ("an SD2 checkpoint (2.0 or 2.1, 512 or 768 px)", lambda header: _context_is(header, 1024)),
    ("an SD1.x inpainting checkpoint", lambda header: _context_is(header, 768) and _inputs_are(header, 9)),
    ("an SD1.x instruct-pix2pix checkpoint", lambda header: _context_is(header, 768) and _inputs_are(header, 8)),
    ("a Stable Cascade checkpoint", lambda header: _has_inside(header, "clip_txt_mapper.", "clf.1.", "clip_mapper.")),
    ("a Wan video checkpoint", lambda header: _has_inside(header, "head.modulation")),
    ("a Qwen-Image checkpoint", lambda header: _has_inside(header, "txt_norm.")),
    ("a Hunyuan-DiT checkpoint", lambda header: _has_inside(header, "mlp_t5.")),
    ("a PixArt checkpoint", lambda header: _has_inside(header, "t_block.1.")),
    ("an LTX-Video checkpoint", lambda header: _has_inside(header, "adaln_single.emb.timestep_embedder.")),
    ("an AuraFlow checkpoint", lambda header: _has_inside(header, "double_layers.0.")),
    ("a Lumina 2 or Z-Image checkpoint", lambda header: _has_inside(header, "cap_embedder.")),
    ("a HiDream checkpoint", lambda header: _has_inside(header, "caption_projection.0.")),
    ("a checkpoint of an architecture this pack does not know", lambda header: _has(header, _UNET)),
    ("a VAE alone", lambda header: _only(header, "first_stage_model.")),
    (
        "a VAE alone",
        lambda header: _has(header, "decoder.conv_in.", "decoder.up.", "decoder.up_blocks.")
        and not _has(header, "down_blocks."),
    ),
    (
        "a U-Net alone in the diffusers layout",
        lambda header: _has(header, "down_blocks.", "unet.down_blocks.") and _has(header, "conv_in.", "unet.conv_in."),
    ),
    ("a diffusion model alone, without text encoder and VAE", lambda header: _has(header, "input_blocks.0.")),
    (
        "a CLIP vision encoder",
        lambda header: _has(header, "vision_model.", "visual.") and not _has(header, "text_model.", "token_embedding."),
    ),
    (
        "a text encoder alone",
        lambda header: _has(
            header, "text_model.", "text_encoder.", "cond_stage_model.", "conditioner.", "transformer.resblocks.",
            "transformer.text_model.", "token_embedding.", "encoder.block.0.", "shared.weight", "model.embed_tokens.",
            "clip_l.", "clip_g.", "t5xxl.",
        ),
    ),
)  # fmt: skip
