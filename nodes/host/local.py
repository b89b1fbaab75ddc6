"""The host of a run without ComfyUI: folders on disk, models through diffusers, progress in the terminal."""

from __future__ import annotations

import gc
import hashlib
import os
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.index import Index
from ...core.progress import Cancelled, Progress, SilentProgress
from ...core.roots import Roots
from .local_folders import DEFAULT_BASE_DIR, LocalFolders, weight_files
from .protocol import CLIP, CONDITIONING, LATENT, MODEL, OWN_VAE, PICO_NAME, VAE
from .shared import (
    PICO_BASES,
    PICO_TAGGER,
    choose,
    find_detector,
    open_index,
    shipped,
    tagger_entries,
    with_merged,
)

if TYPE_CHECKING:
    import torch

    from ...core.tensors import TensorSource
    from ...families._base import Base
    from ...families._spec import Variant
    from .local_models import LocalBase

IDENTITY_SAMPLES = 128
IDENTITY_SAMPLE_BYTES = 2**16


class _CancellableProgress(SilentProgress):
    def __init__(self, cancel: threading.Event) -> None:
        self._cancel = cancel

    def check(self) -> None:
        if self._cancel.is_set():
            raise Cancelled("cancelled")


class LocalHost:
    """Everything the nodes need, without ComfyUI.

    Args:
        base_dir: working directory, laid out as :class:`LocalFolders` says.
        embed_metadata: whether pictures carry their workflow.
        make_folders: make the working directory now; otherwise each folder appears with its first file.
    """

    name = "local"

    def __init__(
        self, base_dir: Path = DEFAULT_BASE_DIR, *, embed_metadata: bool = True, make_folders: bool = True
    ) -> None:
        from ...families._spec import set_tokenizer_dirs

        self.folders = LocalFolders(Path(base_dir).absolute())
        if make_folders:
            self.folders.make()
        self.cancel_event = threading.Event()
        self._embed_metadata = embed_metadata
        self._loaded: weakref.WeakSet[LocalBase] = weakref.WeakSet()
        set_tokenizer_dirs(self.tokenizer_dirs())

    # folders ---------------------------------------------------------------------------------------------------
    def roots(self) -> Roots:
        """The folders a workflow may name."""
        return self.folders.roots()

    def output_dir(self) -> Path:
        """``<base_dir>/output``."""
        return self.folders.output

    def input_dir(self) -> Path:
        """``<base_dir>/input``."""
        return self.folders.input

    def temp_dir(self) -> Path:
        """``<base_dir>/temp``."""
        return self.folders.temp

    def user_dir(self) -> Path:
        """``<base_dir>/user/atelier``."""
        return self.folders.user

    def cache_dir(self) -> Path:
        """``<output>/atelier/cache``, as inside ComfyUI."""
        return self.folders.output / "atelier" / "cache"

    def index(self) -> Index:
        """``<base_dir>/user/atelier/index.sqlite``."""
        return open_index(self.user_dir())

    def loras_dir(self) -> Path:
        """``<base_dir>/models/loras``."""
        return self.folders.models("loras")[0]

    def checkpoints_dir(self) -> Path:
        """``<base_dir>/models/checkpoints``."""
        return self.folders.models("checkpoints")[0]

    # names of files --------------------------------------------------------------------------------------------
    def checkpoint_names(self) -> list[str]:
        """The checkpoints below ``models/checkpoints``, and the built-in ones."""
        return [*weight_files(self.folders.models("checkpoints")), *PICO_BASES]

    def checkpoint_path(self, name: str) -> Path:
        """Path of a checkpoint by its name."""
        files = weight_files(self.folders.models("checkpoints"))
        chosen = choose("base model", name, [*files, *PICO_BASES])
        return shipped(PICO_BASES[chosen]) if chosen in PICO_BASES else files[chosen]

    def vae_names(self) -> list[str]:
        """The files below ``models/vae``."""
        return [OWN_VAE, *weight_files(self.folders.models("vae"))]

    def vae_path(self, name: str) -> Path | None:
        """Path of a VAE by its name."""
        files = weight_files(self.folders.models("vae"))
        return None if name in ("", OWN_VAE) else files[choose("VAE", name, [OWN_VAE, *files])]

    def lora_names(self) -> list[str]:
        """The LoRA files below ``models/loras``."""
        return list(weight_files(self.folders.models("loras")))

    def lora_path(self, name: str) -> Path:
        """Path of a LoRA by its name."""
        files = weight_files(self.folders.models("loras"))
        return files[choose("LoRA", name, list(files))]

    def tagger_names(self) -> list[str]:
        """The taggers below ``models/taggers``, and the built-in one."""
        return [*tagger_entries(self.folders.models("taggers")), PICO_NAME]

    def tagger_path(self, name: str) -> Path:
        """Folder or ``.onnx`` file of a tagger by its name."""
        entries = tagger_entries(self.folders.models("taggers"))
        chosen = choose("tagger", name, [*entries, PICO_NAME])
        return shipped(PICO_TAGGER) if chosen == PICO_NAME else entries[chosen]

    def detector_names(self) -> list[str]:
        """The detectors below ``models/detectors``, and the built-in one."""
        return [*tagger_entries(self.folders.models("detectors")), PICO_NAME]

    def detector_path(self, name: str) -> Path:
        """Folder or ``.onnx`` file of a detector by its name."""
        return find_detector(name, self.folders.models("detectors"))

    def tokenizer_dirs(self) -> Sequence[Path]:
        """``models/tokenizer``, and the copy of the ComfyUI that the environment variable COMFYUI_DIR names."""
        own = self.folders.base_dir / "models" / "tokenizer"
        comfyui = os.environ.get("COMFYUI_DIR")
        return [own, Path(comfyui) / "comfy" / "sd1_tokenizer"] if comfyui else [own]

    # running ---------------------------------------------------------------------------------------------------
    def device(self) -> torch.device:
        """The first CUDA device, else Apple's, else the CPU."""
        import torch

        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

    def progress(self, total_hint: int = 0) -> Progress:
        """Silent, but Cancel works; the command line puts a bar in its place."""
        return _CancellableProgress(self.cancel_event)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Leave inference mode with gradients on; loaded bases wait in main memory, what the run left is freed."""
        import torch

        for base in list(self._loaded):
            base.move_to(torch.device("cpu"))
        try:
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    # generation ------------------------------------------------------------------------------------------------
    def load_base(self, base: Base) -> tuple[MODEL, CLIP, VAE]:
        """Load all parts of a base; on the CPU in fp32 as ComfyUI computes there."""
        import torch

        from ...families._spec import get_family
        from .local_models import LocalBase, LocalClip, LocalModel, LocalVae

        family, device = get_family(base.family), self.device()
        half = device.type == "cuda" and base.dtype == "fp16"
        with torch.inference_mode(False), torch.no_grad():
            components = family.load(base.path, dtype=torch.float32, device=device, vae_path=base.vae_path)
            if half:  # never the VAE: SDXL's overflows in fp16
                components.unet.to(torch.float16)
        identity = _file_identity(base.path)
        if base.vae_path is not None:
            identity = f"{identity} {_file_identity(base.vae_path)}"
        loaded = LocalBase(family, components, device, f"{identity} {base.told}".strip(), base.variant)
        self._loaded.add(loaded)
        return with_merged(self, base, LocalModel(loaded), LocalClip(loaded), LocalVae(loaded))

    def load_tensors(
        self, source: TensorSource, *, family: str, variant: Variant, identity: str
    ) -> tuple[MODEL, CLIP, VAE]:
        """As :meth:`load_base`, tensor by tensor; on the CPU in fp32."""
        import torch

        from ...families._spec import get_family
        from .local_models import LocalBase, LocalClip, LocalModel, LocalVae

        known, device = get_family(family), self.device()
        with torch.inference_mode(False), torch.no_grad():
            components = known.load(
                source.path, dtype=torch.float32, device=device, source=source, progress=self.progress()
            )
        loaded = LocalBase(known, components, device, identity, variant)
        self._loaded.add(loaded)
        return LocalModel(loaded), LocalClip(loaded), LocalVae(loaded)

    def apply_lora(
        self,
        model: MODEL,
        clip: CLIP | None,
        tensors: Mapping[str, torch.Tensor],
        *,
        strength_model: float,
        strength_clip: float,
        stem_strengths: Mapping[str, float],
    ) -> tuple[MODEL, CLIP | None]:
        """Patched copies; nothing is computed until they are used."""
        from .local_models import add_lora

        if strength_model == 0 and strength_clip == 0:
            return model, clip
        return add_lora(
            model,
            clip,
            tensors,
            strength_model=strength_model,
            strength_clip=strength_clip,
            stem_strengths=stem_strengths,
        )

    def schedule_lora(
        self,
        model: MODEL,
        clip: CLIP,
        tensors: Mapping[str, torch.Tensor],
        *,
        strength_model: float,
        strength_clip: float,
        stem_strengths: Mapping[str, float],
        start: int | None,
        stop: int | None,
    ) -> tuple[MODEL, CLIP]:
        """The UNet's part travels with the CLIP onto what it encodes, and is put on at its steps when that is drawn."""
        from .local_models import add_lora

        strengths = {"strength_model": strength_model, "strength_clip": strength_clip}
        patched, new_clip = add_lora(model, clip, tensors, **strengths, stem_strengths=stem_strengths)
        new = patched.patches[len(model.patches) :]
        return model, new_clip.at_steps(new, start=start, stop=stop)

    def fingerprint(self, *objects: MODEL | CLIP | VAE) -> str:
        """Hash of the base file's identity and of every patch."""
        from .local_models import patch_keys

        return hashlib.sha256("\n".join(patch_keys(*objects)).encode()).hexdigest()[:16]

    def encode_prompt(self, clip: CLIP, text: str) -> CONDITIONING:
        """As ComfyUI's CLIPTextEncode."""
        from .local_generate import encode_prompt

        self._ready(clip)
        return encode_prompt(clip, text)

    def sample(
        self,
        model: MODEL,
        positive: CONDITIONING,
        negative: CONDITIONING,
        *,
        width_px: int,
        height_px: int,
        seed: int,
        steps: int,
        cfg: float,
        sampler: str,
        scheduler: str,
        denoise: float = 1.0,
    ) -> LATENT:
        """As ComfyUI's EmptyLatentImage and KSampler, with a look for Cancel at each step."""
        from .local_generate import empty_latent

        return self.sample_latent(
            model, positive, negative, empty_latent(width_px, height_px),
            seed=seed, steps=steps, cfg=cfg, sampler=sampler, scheduler=scheduler, denoise=denoise,
        )  # fmt: skip

    def sample_latent(
        self,
        model: MODEL,
        positive: CONDITIONING,
        negative: CONDITIONING,
        latent: Mapping[str, Any],
        *,
        progress: Progress | None = None,
        **settings: Any,
    ) -> LATENT:
        """KSampler from any latent; ``settings`` as in :meth:`sample` without the size."""
        from .local_generate import sample

        self._ready(model)
        watch = progress if progress is not None else _CancellableProgress(self.cancel_event)
        return sample(
            model, positive, negative, dict(latent),
            on_step=lambda step, total: watch.update(step + 1, total), **settings,
        )  # fmt: skip

    def decode(self, vae: VAE, latent: LATENT) -> torch.Tensor:
        """As ComfyUI's VAEDecode."""
        from .local_generate import decode

        self._ready(vae)
        return decode(vae, latent)

    def encode(self, vae: VAE, pixels: torch.Tensor) -> LATENT:
        """As ComfyUI's VAEEncode."""
        from .local_generate import encode

        self._ready(vae)
        return encode(vae, pixels)

    def _ready(self, thing: Any) -> None:
        thing.base.move_to(self.device())

    def samplers(self) -> list[str]:
        """The samplers of this pack."""
        from .local_samplers import SAMPLERS

        return list(SAMPLERS)

    def schedulers(self) -> list[str]:
        """The schedules of this pack."""
        from .local_schedules import SCHEDULERS

        return list(SCHEDULERS)

    def metadata_disabled(self) -> bool:
        """True when the host was made with ``embed_metadata=False``."""
        return not self._embed_metadata


def _file_identity(path: Path) -> str:
    """Hash of a file's size, header and samples over its whole length: tells bases apart without reading gigabytes.

    Fine-tunes of one model are equal in size and header, and often in their first and last tensors.
    """
    size_bytes = path.stat().st_size
    digest = hashlib.sha256(str(size_bytes).encode())
    with path.open("rb") as file:
        length = file.read(8)
        digest.update(length)
        digest.update(file.read(min(int.from_bytes(length, "little"), size_bytes)))
        last = max(0, size_bytes - IDENTITY_SAMPLE_BYTES)
        for number in range(IDENTITY_SAMPLES):
            file.seek(last * number // (IDENTITY_SAMPLES - 1))
            digest.update(file.read(IDENTITY_SAMPLE_BYTES))
    return digest.hexdigest()
