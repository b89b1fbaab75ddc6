"""The core nodes that workflows for this pack use, for runs without ComfyUI.

Class names, inputs, ranges, outputs and PNG metadata are those of ComfyUI's own nodes, so that one workflow runs in
both. They exist only in the local runner and are never registered inside ComfyUI.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...core.errors import InputError
from ...core.files import atomic_path
from . import get_host

if TYPE_CHECKING:
    import torch

    from .local import LocalHost

_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_ANNOTATION = re.compile(r"^(?P<name>.*?) ?\[(?P<folder>input|output|temp)\]$")
_DATE_MARK = re.compile(r"%date:(?P<format>[^%]*)%")
MAX_RESOLUTION_PX = 16384


def _host() -> LocalHost:
    return cast("LocalHost", get_host())


class CheckpointLoaderSimple:
    """Load MODEL, CLIP and VAE from one checkpoint file."""

    RETURN_TYPES = ("MODEL", "CLIP", "VAE")
    FUNCTION = "load_checkpoint"
    CATEGORY = "loaders"
    TITLE = "Load Checkpoint"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        names = _host().checkpoint_names()
        return {"required": {"ckpt_name": (names, {"tooltip": "The name of the checkpoint to load."})}}

    def load_checkpoint(self, ckpt_name: str) -> tuple[Any, Any, Any]:
        """Load."""
        from ...families._base import open_base

        return _host().load_base(open_base(_host().checkpoint_path(ckpt_name), name=ckpt_name))


class LoraLoader:
    """Apply a LoRA file to MODEL and CLIP."""

    RETURN_TYPES = ("MODEL", "CLIP")
    FUNCTION = "load_lora"
    CATEGORY = "loaders"
    TITLE = "Load LoRA"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        strength = ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01})
        return {
            "required": {
                "model": ("MODEL",),
                "clip": ("CLIP",),
                "lora_name": (_host().lora_names(),),
                "strength_model": strength,
                "strength_clip": strength,
            }
        }

    def load_lora(
        self, model: Any, clip: Any, lora_name: str, strength_model: float, strength_clip: float
    ) -> tuple[Any, Any]:
        """Patch model and clip."""
        from ...core.tensors import read_tensors

        if strength_model == 0 and strength_clip == 0:
            return model, clip
        tensors = read_tensors(_host().lora_path(lora_name))
        return _host().apply_lora(
            model, clip, tensors, strength_model=strength_model, strength_clip=strength_clip, stem_strengths={}
        )


class LoraLoaderModelOnly(LoraLoader):
    """Apply a LoRA file to MODEL alone."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load_lora_model_only"
    TITLE = "LoraLoaderModelOnly"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {
                "model": ("MODEL",),
                "lora_name": (_host().lora_names(),),
                "strength_model": ("FLOAT", {"default": 1.0, "min": -100.0, "max": 100.0, "step": 0.01}),
            }
        }

    def load_lora_model_only(self, model: Any, lora_name: str, strength_model: float) -> tuple[Any]:
        """Patch the model."""
        return (self.load_lora(model, None, lora_name, strength_model, 0.0)[0],)


class CLIPTextEncode:
    """Encode a prompt."""

    RETURN_TYPES = ("CONDITIONING",)
    FUNCTION = "encode"
    CATEGORY = "conditioning"
    TITLE = "CLIP Text Encode (Prompt)"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        text = ("STRING", {"multiline": True, "dynamicPrompts": True, "tooltip": "The text to be encoded."})
        return {"required": {"text": text, "clip": ("CLIP",)}}

    def encode(self, clip: Any, text: str) -> tuple[Any]:
        """Encode."""
        return (_host().encode_prompt(clip, text),)


class CLIPSetLastLayer:
    """Choose the text encoder's layer, -1 for the last."""

    RETURN_TYPES = ("CLIP",)
    FUNCTION = "set_last_layer"
    CATEGORY = "conditioning"
    TITLE = "CLIP Set Last Layer"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        layer = ("INT", {"default": -1, "min": -24, "max": -1, "step": 1})
        return {"required": {"clip": ("CLIP",), "stop_at_clip_layer": layer}}

    def set_last_layer(self, clip: Any, stop_at_clip_layer: int) -> tuple[Any]:
        """Choose the layer."""
        return (clip.at_layer(-stop_at_clip_layer),)


class EmptyLatentImage:
    """A batch of empty latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "generate"
    CATEGORY = "latent"
    TITLE = "Empty Latent Image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        size = ("INT", {"default": 512, "min": 16, "max": MAX_RESOLUTION_PX, "step": 8})
        return {
            "required": {
                "width": size,
                "height": size,
                "batch_size": ("INT", {"default": 1, "min": 1, "max": 4096}),
            }
        }

    def generate(self, width: int, height: int, batch_size: int = 1) -> tuple[dict[str, Any]]:
        """Make the batch."""
        from .local_generate import empty_latent

        return (empty_latent(width, height, batch_size),)


class KSampler:
    """Sample a latent."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "sample"
    CATEGORY = "sampling"
    TITLE = "KSampler"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        seed = ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF, "control_after_generate": True})
        return {
            "required": {
                "model": ("MODEL",),
                "seed": seed,
                "steps": ("INT", {"default": 20, "min": 1, "max": 10000}),
                "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
                "sampler_name": (_host().samplers(),),
                "scheduler": (_host().schedulers(),),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "denoise": ("FLOAT", {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.01}),
            }
        }

    def sample(
        self,
        model: Any,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        positive: Any,
        negative: Any,
        latent_image: Mapping[str, Any],
        denoise: float = 1.0,
    ) -> tuple[dict[str, Any]]:
        """Sample."""
        latent = _host().sample_latent(
            model, positive, negative, latent_image, progress=_host().progress(steps),
            seed=seed, steps=steps, cfg=cfg, sampler=sampler_name, scheduler=scheduler, denoise=denoise,
        )  # fmt: skip
        return (latent,)


class VAEDecode:
    """Latents to pictures."""

    RETURN_TYPES = ("IMAGE",)
    FUNCTION = "decode"
    CATEGORY = "latent"
    TITLE = "VAE Decode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"samples": ("LATENT",), "vae": ("VAE",)}}

    def decode(self, vae: Any, samples: dict[str, Any]) -> tuple[torch.Tensor]:
        """Decode."""
        return (_host().decode(vae, samples),)


class VAEEncode:
    """Pictures to latents."""

    RETURN_TYPES = ("LATENT",)
    FUNCTION = "encode"
    CATEGORY = "latent"
    TITLE = "VAE Encode"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {"required": {"pixels": ("IMAGE",), "vae": ("VAE",)}}

    def encode(self, vae: Any, pixels: torch.Tensor) -> tuple[dict[str, Any]]:
        """Encode."""
        return (_host().encode(vae, pixels),)


class LoadImage:
    """A picture of the input folder; ``name [output]`` and ``name [temp]`` take it from those folders."""

    RETURN_TYPES = ("IMAGE", "MASK")
    FUNCTION = "load_image"
    CATEGORY = "image"
    TITLE = "Load Image"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        folder = _host().input_dir()
        names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.suffix.lower() in _PICTURE_SUFFIXES)
        return {"required": {"image": (names, {"image_upload": True})}}

    @classmethod
    def VALIDATE_INPUTS(cls, image: str) -> bool | str:
        """The picture must be there."""
        return True if image is None or _picture_path(image) else f"there is no picture {image!r}"

    def load_image(self, image: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Read picture and mask."""
        import numpy as np
        import torch
        from PIL import Image, ImageOps, UnidentifiedImageError

        path = _picture_path(image)
        try:
            with Image.open(path) as opened:
                picture = ImageOps.exif_transpose(opened)
                picture.load()
        except (UnidentifiedImageError, OSError, Image.DecompressionBombError) as cause:
            raise InputError(
                f"the picture {image!r} cannot be read ({cause}); save it again or choose another."
            ) from cause
        if picture.mode == "I":
            picture = picture.point(lambda value: value * (1 / 255))
        pixels = torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255.0)[None]
        if "A" in picture.getbands() or "transparency" in picture.info:
            alpha = np.asarray(picture.convert("RGBA").getchannel("A"), dtype=np.float32) / 255.0
            return pixels, 1.0 - torch.from_numpy(alpha)[None]
        return pixels, torch.zeros((1, 64, 64))


def _picture_path(image: str) -> Path:
    match = _ANNOTATION.match(image)
    name, folder = (match["name"], match["folder"]) if match else (image, "input")
    host = _host()
    folders = {"input": host.input_dir(), "output": host.output_dir(), "temp": host.temp_dir()}
    from ...core.roots import Roots

    path = Roots(folders={folder: (folders[folder],)}).resolve(name, (folder,), what="picture")
    if not path.is_file():
        raise InputError(f"{image!r} is a folder, not a picture; name a picture in the {folder} folder.")
    return path


class SaveImage:
    """Save pictures into the output folder, with the workflow in their metadata."""

    RETURN_TYPES = ()
    FUNCTION = "save_images"
    CATEGORY = "image"
    OUTPUT_NODE = True
    TITLE = "Save Image"
    KIND = "output"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {"images": ("IMAGE",), "filename_prefix": ("STRING", {"default": "ComfyUI"})},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: torch.Tensor,
        filename_prefix: str = "ComfyUI",
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the PNG files."""
        host = _host()
        root = host.output_dir() if self.KIND == "output" else host.temp_dir()
        height_px, width_px = int(images.shape[1]), int(images.shape[2])
        folder, name = _save_place(root, self.KIND, filename_prefix, width_px, height_px)
        counter = _next_counter(folder, name)
        saved = []
        for number, image in enumerate(images):
            file_name = f"{name.replace('%batch_num%', str(number))}_{counter + number:05}_.png"
            _write_png(folder / file_name, image, prompt, extra_pnginfo)
            subfolder = "" if folder == root else folder.relative_to(root).as_posix()
            saved.append({"filename": file_name, "subfolder": subfolder, "type": self.KIND})
        return {"ui": {"images": saved}}


class PreviewImage(SaveImage):
    """Save pictures into the temporary folder."""

    TITLE = "Preview Image"
    KIND = "temp"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Inputs."""
        return {
            "required": {"images": ("IMAGE",)},
            "hidden": {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"},
        }

    def save_images(
        self,
        images: torch.Tensor,
        filename_prefix: str = "preview",
        prompt: Any = None,
        extra_pnginfo: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write the PNG files."""
        return super().save_images(images, filename_prefix, prompt, extra_pnginfo)


def _save_place(root: Path, kind: str, prefix: str, width_px: int, height_px: int) -> tuple[Path, str]:
    """Folder and name part of a file prefix that may hold subfolders and %width%-like marks.

    Raises:
        StorageError: the prefix leads out of the folder.
    """
    from ...core.roots import Roots

    now = time.localtime()
    marks = {"width": width_px, "height": height_px, "year": now.tm_year}
    two_digits = {"month": now.tm_mon, "day": now.tm_mday, "hour": now.tm_hour}
    two_digits |= {"minute": now.tm_min, "second": now.tm_sec}
    for mark, value in {**marks, **{name: f"{number:02}" for name, number in two_digits.items()}}.items():
        prefix = prefix.replace(f"%{mark}%", str(value))
    prefix = _DATE_MARK.sub(lambda mark: _date_text(mark["format"], now), prefix)
    roots = Roots(folders={kind: (root,)})
    target = roots.resolve(prefix.replace("%batch_num%", "0"), (kind,), must_exist=False, what="file name prefix")
    return target.parent, prefix.replace("\\", "/").rstrip("/ ").rsplit("/", 1)[-1]


def _date_text(pattern: str, now: time.struct_time) -> str:
    """A date as the page writes it for %date:yyyy-MM-dd hh_mm_ss%; doubled letters are padded with zeros."""
    values = {"y": now.tm_year, "M": now.tm_mon, "d": now.tm_mday, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def written(mark: re.Match[str]) -> str:
        text = str(values[mark[0][0]])
        return text[-2:] if mark[0] == "yy" else text.zfill(len(mark[0]))

    return re.sub(r"yyyy|yy|MM?|dd?|hh?|mm?|ss?", written, pattern)


def _next_counter(folder: Path, name: str) -> int:
    pattern = re.compile(rf"^{re.escape(name)}_(\d+)_?\.", re.IGNORECASE)
    taken = [int(m[1]) for m in map(pattern.match, (p.name for p in folder.iterdir())) if m] if folder.is_dir() else []
    return max(taken, default=0) + 1


def _write_png(path: Path, image: torch.Tensor, prompt: Any, extra_pnginfo: Mapping[str, Any] | None) -> None:
    import numpy as np
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    pixels = np.clip(255.0 * image.float().cpu().numpy(), 0, 255).astype(np.uint8)
    info = PngInfo()
    if not _host().metadata_disabled():
        if prompt is not None:
            info.add_text("prompt", json.dumps(prompt))
        for key, value in (extra_pnginfo or {}).items():
            info.add_text(key, json.dumps(value))
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=info, compress_level=4)


CORE_NODES: dict[str, type] = {
    node.__name__: node
    for node in (
        CheckpointLoaderSimple,
        LoraLoader,
        LoraLoaderModelOnly,
        CLIPTextEncode,
        CLIPSetLastLayer,
        EmptyLatentImage,
        KSampler,
        VAEDecode,
        VAEEncode,
        LoadImage,
        SaveImage,
        PreviewImage,
    )
}
CORE_TITLES: dict[str, str] = {name: node.TITLE for name, node in CORE_NODES.items()}
