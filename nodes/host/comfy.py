"""ComfyUI as the host: its folders, models, samplers, progress and cancel.

The only file of the pack that touches ComfyUI. Everything is imported inside functions, and whatever is younger than
ComfyUI 0.3.40 is looked up by name first, so that old and new versions both work.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.files import Roots
from ...core.index import Index
from .protocol import CLIP, CONDITIONING, LATENT, MODEL, OWN_VAE, PICO_NAME, SETTINGS_FILE, VAE
from .shared import (
    CHECKPOINT_SUFFIXES,
    PICO_BASES,
    PICO_TAGGER,
    add_to_digest,
    choose,
    extra_roots,
    find_detector,
    open_index,
    shipped,
    tagger_entries,
    with_merged,
)

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from ...core.tensors import TensorSource
    from ...families._base import Base
    from ...families._spec import Variant

USER_FOLDER = "atelier"
PREVIEW_MAX_PX = 512
TEXT_INTERVAL_S = 0.25
MODEL_FOLDERS = ("checkpoints", "loras", "vae", "embeddings", "taggers", "detectors", "diffusion_models")


class ComfyProgress:
    """Progress of the node that is running: ComfyUI's bar, a text line and a preview under the node."""

    def __init__(self, total_hint: int = 0) -> None:
        import comfy.utils

        self._total = max(1, total_hint)
        self._done = 0
        self._bar = comfy.utils.ProgressBar(self._total)
        self._node_id = _running_node_id()
        self._last_text_s = 0.0

    def check(self) -> None:
        """Raise ComfyUI's own exception if Cancel was pressed (its bar asks only now and then, so we ask each time)."""
        import comfy.model_management

        comfy.model_management.throw_exception_if_processing_interrupted()

    def update(self, done: int, total: int, text: str = "") -> None:
        """Set the bar to done of total and show the text, after looking for Cancel."""
        self.check()
        self._done, self._total = done, max(1, total)
        self._bar.update_absolute(done, self._total)
        if text and (done >= total or time.monotonic() - self._last_text_s >= TEXT_INTERVAL_S):
            self.status(text)

    def status(self, text: str) -> None:
        """Show one line of text under the node, where this ComfyUI can."""
        self._last_text_s = time.monotonic()
        server = _server()
        if self._node_id is not None and hasattr(server, "send_progress_text"):
            server.send_progress_text(text, self._node_id)

    def preview(self, image: Image.Image) -> None:
        """Show a picture under the node."""
        self._bar.update_absolute(self._done, self._total, ("JPEG", image.convert("RGB"), PREVIEW_MAX_PX))


class ComfyHost:
    """ComfyUI, by its own modules that are already loaded in this process."""

    name = "comfyui"

    def __init__(self) -> None:
        import folder_paths

        from ...families import _spec

        for kind in ("taggers", "detectors"):
            folder_paths.add_model_folder_path(kind, str(Path(folder_paths.models_dir) / kind))
        _spec.set_tokenizer_dirs(self.tokenizer_dirs())

    # folders ---------------------------------------------------------------------------------------------------
    def roots(self) -> Roots:
        """The folders a workflow may name."""
        models = [Path(folder) for kind in MODEL_FOLDERS for folder in _model_folders(kind)]
        return Roots(
            folders={
                "input": (self.input_dir(),),
                "output": (self.output_dir(),),
                "datasets": _datasets_folders(),
                "models": tuple(dict.fromkeys(models)),
                "extra": extra_roots(self.user_dir()),
            },
            settings_file=self.user_dir() / SETTINGS_FILE,
        )

    def output_dir(self) -> Path:
        """ComfyUI's output folder."""
        import folder_paths

        return Path(folder_paths.get_output_directory())

    def input_dir(self) -> Path:
        """ComfyUI's input folder."""
        import folder_paths

        return Path(folder_paths.get_input_directory())

    def temp_dir(self) -> Path:
        """ComfyUI's temporary folder."""
        import folder_paths

        return Path(folder_paths.get_temp_directory())

    def user_dir(self) -> Path:
        """``user/__atelier``, which ComfyUI never serves."""
        import folder_paths

        if hasattr(folder_paths, "get_system_user_directory"):
            return Path(folder_paths.get_system_user_directory(USER_FOLDER))
        return Path(folder_paths.get_user_directory()) / f"__{USER_FOLDER}"

    def cache_dir(self) -> Path:
        """``<output>/atelier/cache``: survives a restart, unlike the temporary folder."""
        return self.output_dir() / "atelier" / "cache"

    def index(self) -> Index:
        """``user/__atelier/index.sqlite``."""
        return open_index(self.user_dir())

    def loras_dir(self) -> Path:
        """The first ``loras`` folder."""
        return Path(_model_folders("loras")[0])

    def checkpoints_dir(self) -> Path:
        """The first ``checkpoints`` folder."""
        return Path(_model_folders("checkpoints")[0])

    # names of files --------------------------------------------------------------------------------------------
    def checkpoint_names(self) -> list[str]:
        """The checkpoints that are safetensors files, and the built-in ones."""
        return [*_safetensors("checkpoints"), *PICO_BASES]

    def checkpoint_path(self, name: str) -> Path:
        """Path of a checkpoint by its name."""
        chosen = choose("base model", name, self.checkpoint_names())
        return shipped(PICO_BASES[chosen]) if chosen in PICO_BASES else _full_path("checkpoints", chosen)

    def vae_names(self) -> list[str]:
        """The VAE files that are safetensors files."""
        return [OWN_VAE, *_safetensors("vae")]

    def vae_path(self, name: str) -> Path | None:
        """Path of a VAE by its name."""
        return None if name in ("", OWN_VAE) else _full_path("vae", choose("VAE", name, self.vae_names()))

    def lora_names(self) -> list[str]:
        """The LoRA files that are safetensors files."""
        return _safetensors("loras")

    def lora_path(self, name: str) -> Path:
        """Path of a LoRA by its name."""
        return _full_path("loras", choose("LoRA", name, self.lora_names()))

    def tagger_names(self) -> list[str]:
        """The taggers below ``models/taggers``, and the built-in one."""
        return [*tagger_entries([Path(folder) for folder in _model_folders("taggers")]), PICO_NAME]

    def tagger_path(self, name: str) -> Path:
        """Folder or ``.onnx`` file of a tagger by its name."""
        entries = tagger_entries([Path(folder) for folder in _model_folders("taggers")])
        chosen = choose("tagger", name, [*entries, PICO_NAME])
        return shipped(PICO_TAGGER) if chosen == PICO_NAME else entries[chosen]

    def detector_names(self) -> list[str]:
        """The detectors below ``models/detectors``, and the built-in one."""
        return [*tagger_entries([Path(folder) for folder in _model_folders("detectors")]), PICO_NAME]

    def detector_path(self, name: str) -> Path:
        """Folder or ``.onnx`` file of a detector by its name."""
        return find_detector(name, [Path(folder) for folder in _model_folders("detectors")])

    def tokenizer_dirs(self) -> Sequence[Path]:
        """ComfyUI's own copy of the CLIP-L tokenizer."""
        import comfy

        return [Path(place) / "sd1_tokenizer" for place in comfy.__path__]

    # running ---------------------------------------------------------------------------------------------------
    def device(self) -> torch.device:
        """ComfyUI's device."""
        import comfy.model_management

        return comfy.model_management.get_torch_device()

    def progress(self, total_hint: int = 0) -> ComfyProgress:
        """Progress of the node that is running now."""
        return ComfyProgress(total_hint)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Leave inference mode, with ComfyUI's models out of memory before and ours after."""
        import comfy.model_management as management
        import torch

        management.unload_all_models()
        management.soft_empty_cache()
        flagged = hasattr(management, "in_training")
        before = getattr(management, "in_training", False)
        try:
            if flagged:
                management.in_training = True
            with torch.inference_mode(False), torch.enable_grad():
                yield
        finally:
            if flagged:
                management.in_training = before
            gc.collect()
            management.soft_empty_cache()

    # generation ------------------------------------------------------------------------------------------------
    def load_base(self, base: Base) -> tuple[MODEL, CLIP, VAE]:
        """A full-size file through ComfyUI's own checkpoint loader, pico through ComfyUI's own classes."""
        from ...core.tensors import read_header
        from .comfy_pico import is_pico, load_pico
        from .comfy_variant import as_told

        if is_pico(read_header(base.path)):
            model, clip, vae = load_pico(base.path, temp_dir=self.temp_dir())
        else:
            import comfy.sd
            import folder_paths

            model, clip, vae, *_ = comfy.sd.load_checkpoint_guess_config(
                str(base.path),
                output_vae=True,
                output_clip=True,
                embedding_directory=folder_paths.get_folder_paths("embeddings"),
            )
        if base.vae_path is not None:
            vae = _load_vae(base.vae_path, vae)
        return with_merged(self, base, as_told(model, base.variant), clip, vae)

    def load_tensors(
        self, source: TensorSource, *, family: str, variant: Variant, identity: str
    ) -> tuple[MODEL, CLIP, VAE]:
        """Through ComfyUI's own detection, pico through ComfyUI's own classes; all tensors are held at once."""
        from .comfy_loading import load_source

        return load_source(source, variant=variant, progress=self.progress(), temp_dir=self.temp_dir())

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
        """Patch through ComfyUI's own LoRA code: its loader when all factors are 1, else one patch list per factor."""
        import comfy.sd

        lora = dict(tensors)
        if strength_model == 0 and strength_clip == 0:
            return model, clip
        if all(factor == 1.0 for factor in stem_strengths.values()):
            return comfy.sd.load_lora_for_models(model, clip, lora, strength_model, strength_clip)
        return _apply_by_stem(model, clip, lora, strength_model, strength_clip, stem_strengths)

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
        """The UNet's part as weight hooks with keyframes by step, which the CLIP puts on what it encodes."""
        from .comfy_steps import schedule

        factors = dict(stem_strengths)
        _, new_clip = self.apply_lora(
            model, clip, tensors, strength_model=0.0, strength_clip=strength_clip, stem_strengths=factors
        )
        if strength_model == 0:
            return model, new_clip
        groups = [
            (strength_model * factor, patches) for factor, patches in _patches_by_factor(model, dict(tensors), factors)
        ]
        return model, schedule(new_clip, groups, start=start, stop=stop)

    def fingerprint(self, *objects: MODEL | CLIP | VAE) -> str:
        """Hash of a sample of every weight as it was before patching, of the patches, and of hooks on a CLIP."""
        import hashlib

        from .comfy_steps import described

        digest = hashlib.sha256()
        for thing in objects:
            patcher = getattr(thing, "patcher", thing)
            add_to_digest(digest, [] if patcher is None else patcher.get_key_patches())
            add_to_digest(digest, described(thing))
        return digest.hexdigest()[:16]

    def encode_prompt(self, clip: CLIP, text: str) -> CONDITIONING:
        """As the core CLIPTextEncode node."""
        tokens = clip.tokenize(text)
        if hasattr(clip, "encode_from_tokens_scheduled"):
            return clip.encode_from_tokens_scheduled(tokens)
        encoded = clip.encode_from_tokens(tokens, return_pooled=True, return_dict=True)
        return [[encoded.pop("cond"), encoded]]

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
        """As the core EmptyLatentImage and KSampler nodes, with a look for Cancel at each step."""
        import comfy.model_management as management
        import comfy.sample
        import torch

        options = {"device": management.intermediate_device()}
        if hasattr(management, "intermediate_dtype"):
            options["dtype"] = management.intermediate_dtype()
        empty = torch.zeros([1, 4, height_px // 8, width_px // 8], **options)
        empty = comfy.sample.fix_empty_latent_channels(model, empty)
        noise = comfy.sample.prepare_noise(empty, seed)

        def look_for_cancel(step: int, x0: Any, x: Any, total_steps: int) -> None:
            management.throw_exception_if_processing_interrupted()

        samples = comfy.sample.sample(
            model, noise, steps, cfg, sampler, scheduler, positive, negative, empty,
            denoise=denoise, callback=look_for_cancel, disable_pbar=True, seed=seed,
        )  # fmt: skip
        return {"samples": samples}

    def decode(self, vae: VAE, latent: LATENT) -> torch.Tensor:
        """As the core VAEDecode node; float32 on the CPU."""
        images = vae.decode(latent["samples"])
        if images.ndim == 5:
            images = images.reshape(-1, *images.shape[-3:])
        return images.float().cpu()

    def samplers(self) -> list[str]:
        """ComfyUI's sampler names."""
        import comfy.samplers

        return list(comfy.samplers.KSampler.SAMPLERS)

    def schedulers(self) -> list[str]:
        """ComfyUI's scheduler names."""
        import comfy.samplers

        return list(comfy.samplers.KSampler.SCHEDULERS)

    def metadata_disabled(self) -> bool:
        """True under ``--disable-metadata``."""
        from comfy.cli_args import args

        return bool(args.disable_metadata)


def _load_vae(path: Path, own: VAE) -> VAE:
    """The VAE of a file of its own, or of another checkpoint, as the core VAELoader makes it.

    A tiny base's VAE has sizes ComfyUI does not know, so the file's weights take the place of its own.
    """
    import comfy.sd
    import comfy.utils

    tensors = comfy.utils.load_torch_file(str(path))
    inner = {key[len(prefix) :]: value for prefix in ("first_stage_model.", "vae.") for key, value in tensors.items()
             if key.startswith(prefix)}  # fmt: skip
    tensors = inner or tensors
    expected = own.first_stage_model.state_dict()
    published = expected["encoder.conv_in.weight"].shape[0] == 128
    if published or "encoder.conv_in.weight" not in tensors:
        return comfy.sd.VAE(sd=tensors)
    own.first_stage_model.load_state_dict(
        {key: tensors[key].reshape(value.shape) for key, value in expected.items() if key in tensors}, strict=False
    )
    return own


def _apply_by_stem(
    model: MODEL,
    clip: CLIP | None,
    lora: dict[str, torch.Tensor],
    strength_model: float,
    strength_clip: float,
    stem_strengths: Mapping[str, float],
) -> tuple[MODEL, CLIP | None]:
    """Patch model and clip with one strength per stem; ``stem_strengths`` holds the factors, 1.0 where it has none."""
    new_model, new_clip = model.clone(), None if clip is None else clip.clone()
    for factor, patches in _patches_by_factor(model, lora, stem_strengths, clip=clip):
        new_model.add_patches(patches, strength_model * factor)
        if new_clip is not None:
            new_clip.add_patches(patches, strength_clip * factor)
    return new_model, new_clip


def _patches_by_factor(
    model: MODEL, lora: dict[str, torch.Tensor], stem_strengths: Mapping[str, float], *, clip: CLIP | None = None
) -> list[tuple[float, dict[Any, Any]]]:
    """ComfyUI's patches of a LoRA for a UNet, and a text encoder where one is given, by factor; without those of 0."""
    import comfy.lora
    import comfy.sd

    key_map: dict[str, Any] = comfy.lora.model_lora_keys_unet(model.model, {})
    if clip is not None:
        key_map = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, key_map)
    factors = {_patch_name(key_map[stem]): factor for stem, factor in stem_strengths.items() if stem in key_map}
    if hasattr(comfy, "lora_convert"):  # imported by comfy.sd since 0.3.15
        lora = comfy.lora_convert.convert_lora(lora)
    # Without the text encoder its keys are no surprise.
    quiet = {} if clip is not None else {"log_missing": False}
    loaded = comfy.lora.load_lora(lora, key_map, **quiet)
    factor_of = {key: _factor(_patch_name(key), factors) for key in loaded}
    return [
        (factor, {key: patch for key, patch in loaded.items() if factor_of[key] == factor})
        for factor in sorted(set(factor_of.values()) - {0.0})
    ]


def _factor(name: str, factors: Mapping[str, float]) -> float:
    """The factor of a patched weight; a bias (of full and norm training) has that of its weight."""
    if name not in factors and name.endswith(".bias"):
        name = f"{name[: -len('bias')]}weight"
    return factors.get(name, 1.0)


def _patch_name(key: Any) -> str:
    """The weight a patch key belongs to; a key may be a tuple of the weight's name and a slice."""
    return key if isinstance(key, str) else key[0]


def _model_folders(kind: str) -> list[str]:
    """Folders of one kind of model, none when this ComfyUI does not know the kind."""
    import folder_paths

    return list(folder_paths.folder_names_and_paths[kind][0]) if kind in folder_paths.folder_names_and_paths else []


def _datasets_folders() -> tuple[Path, ...]:
    """The ``datasets`` root, which newer versions have, else ``datasets`` beside the input folder."""
    import folder_paths

    for name in ("get_datasets_directory", "get_dataset_directory"):
        if hasattr(folder_paths, name):
            return (Path(getattr(folder_paths, name)()),)
    known = _model_folders("datasets")
    return tuple(map(Path, known)) if known else (Path(folder_paths.base_path) / "datasets",)


def _safetensors(kind: str) -> list[str]:
    """Names of the safetensors files of one kind, with forward slashes."""
    import folder_paths

    names = (name.replace("\\", "/") for name in folder_paths.get_filename_list(kind))
    return [name for name in names if name.lower().endswith(CHECKPOINT_SUFFIXES)]


def _full_path(kind: str, name: str) -> Path:
    import folder_paths

    return Path(folder_paths.get_full_path_or_raise(kind, name))


def _server() -> Any:
    """The running server, None when the nodes are used without one."""
    import sys

    module = sys.modules.get("server")
    return getattr(getattr(module, "PromptServer", None), "instance", None)


def _running_node_id() -> str | None:
    """Id of the node that is being executed, for the text under it."""
    try:
        from comfy_execution.utils import get_executing_context
    except ImportError:
        return getattr(_server(), "last_node_id", None)
    context = get_executing_context()
    return getattr(_server(), "last_node_id", None) if context is None else context.node_id
