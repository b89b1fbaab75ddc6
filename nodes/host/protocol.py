"""What the nodes ask of the program they run in: folders, models, pictures, progress and cancel.

Two hosts implement :class:`Host`: ``host/comfy.py`` inside ComfyUI and ``host/local.py`` without it. The nodes hold no
other knowledge of either. The MODEL, CLIP, VAE, CONDITIONING and LATENT objects that pass through these methods are
the host's own; a node hands them on and never looks inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import torch

    from ...core.files import Roots
    from ...core.index import Index
    from ...core.progress import Progress
    from ...core.tensors import TensorSource
    from ...families._base import Base
    from ...families._spec import Variant

MODEL: TypeAlias = Any
CLIP: TypeAlias = Any
VAE: TypeAlias = Any
CONDITIONING: TypeAlias = Any
LATENT: TypeAlias = Any

PICO_NAME = "pico (built in)"
"""Entry of the checkpoint and tagger lists that stands for the small files shipped in ``pico/assets``."""

PICO_XL_NAME = "pico SDXL (built in)"
"""Entry of the checkpoint list: the same tiny world in the shape of SDXL."""

OWN_VAE = "of the checkpoint"
"""Entry of the VAE list that leaves the checkpoint's own."""

SETTINGS_FILE = "settings.json"
"""File in :meth:`Host.user_dir` in which the owner of the machine lists further data set folders (key ``roots``)."""


@runtime_checkable
class Host(Protocol):
    """Everything that differs between ComfyUI and a run without it."""

    name: str
    """"comfyui" or "local", for manifests and reports."""

    # folders ---------------------------------------------------------------------------------------------------
    def roots(self) -> Roots:
        """The folders a workflow may name: keys "input", "output", "datasets", "models", "extra" (settings file)."""

    def output_dir(self) -> Path:
        """Folder of finished results; run directories and grids go to ``<output>/atelier/``."""

    def input_dir(self) -> Path:
        """Folder of input pictures; drawn data sets go to ``<input>/atelier-pico/``."""

    def temp_dir(self) -> Path:
        """Folder of previews, emptied by the host when it starts."""

    def user_dir(self) -> Path:
        """The pack's own folder below the user folder (settings), never served over HTTP."""

    def cache_dir(self) -> Path:
        """Folder of things that can be computed again (latents)."""

    def index(self) -> Index:
        """What was found out about files before: ``index.sqlite`` in :meth:`user_dir`, open for the whole process.

        Raises:
            StorageError: the file cannot be opened or made.
        """

    def loras_dir(self) -> Path:
        """The first ``loras`` folder: where a finished LoRA is written so that every LoRA loader lists it."""

    def checkpoints_dir(self) -> Path:
        """The first ``checkpoints`` folder: where a merged model is written so that every loader lists it."""

    # names of files --------------------------------------------------------------------------------------------
    def checkpoint_names(self) -> list[str]:
        """Names for the base combo, :data:`PICO_NAME` and :data:`PICO_XL_NAME` last."""

    def checkpoint_path(self, name: str) -> Path:
        """Path of a checkpoint by its name.

        Raises:
            InputError: the name is not in :meth:`checkpoint_names`; the nearest names are listed.
        """

    def vae_names(self) -> list[str]:
        """Names of the VAE files, :data:`OWN_VAE` first."""

    def vae_path(self, name: str) -> Path | None:
        """Path of a VAE file by its name, None for :data:`OWN_VAE`; raises InputError as :meth:`checkpoint_path`."""

    def lora_names(self) -> list[str]:
        """Names of the LoRA files, subfolders with forward slashes."""

    def lora_path(self, name: str) -> Path:
        """Path of a LoRA file by its name; raises InputError as :meth:`checkpoint_path` does."""

    def tagger_names(self) -> list[str]:
        """Names of the taggers: folders or ``.onnx`` files below ``models/taggers``, :data:`PICO_NAME` last."""

    def tagger_path(self, name: str) -> Path:
        """Folder (or ``.onnx`` file) of a tagger by its name; raises InputError as :meth:`checkpoint_path` does."""

    def detector_names(self) -> list[str]:
        """Names of the detectors: ``.onnx`` files or folders below ``models/detectors``, :data:`PICO_NAME` last."""

    def detector_path(self, name: str) -> Path:
        """Folder or ``.onnx`` file of a detector by its name; raises InputError saying which file goes where."""

    def tokenizer_dirs(self) -> Sequence[Path]:
        """Folders that may hold a CLIP-L tokenizer (vocab.json and merges.txt), first the host's own copy."""

    # running ---------------------------------------------------------------------------------------------------
    def device(self) -> torch.device:
        """Device to compute on."""

    def progress(self, total_hint: int = 0) -> Progress:
        """A progress reporter of the node that is running now; its ``check`` raises the host's own cancel exception."""

    def training(self) -> AbstractContextManager[None]:
        """Around a training run: out of inference mode, the host's models freed before and ours after."""

    # generation ------------------------------------------------------------------------------------------------
    def load_base(self, base: Base) -> tuple[MODEL, CLIP, VAE]:
        """Load a base as the host's own generation objects."""

    def load_tensors(
        self, source: TensorSource, *, family: str, variant: Variant, identity: str
    ) -> tuple[MODEL, CLIP, VAE]:
        """Load a checkpoint that lies in no file, as :meth:`load_base` would load the file with these tensors.

        Args:
            source: its tensors, which may be computed when they are asked for, by several threads at once.
            family: key of its family.
            variant: what it predicts.
            identity: a text that differs from every other checkpoint's.
        """

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
        """Patched copies of model and clip; a stem's factor multiplies its part's strength, 1.0 where it has none.

        With no factor other than 1.0 the result equals the host's own LoRA loader exactly. Strength 0 leaves the
        object that was given.
        """

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
        """As :meth:`apply_lora`, but the UNet's part is on at sampler steps ``start`` up to before ``stop`` only.

        Steps are counted from 1; None is the first step, and never. The returned CLIP carries the UNet's part: whatever
        is encoded with it is sampled so. The text encoder's part is on in every text it encodes.
        """

    def fingerprint(self, *objects: MODEL | CLIP | VAE) -> str:
        """A short text that changes with the weights and LoRA patches of these objects (a sample of each weight)."""

    def encode_prompt(self, clip: CLIP, text: str) -> CONDITIONING:
        """Encode one prompt as the host's CLIPTextEncode does."""

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
        """Sample one picture's latent from an empty latent exactly as the host's KSampler does."""

    def decode(self, vae: VAE, latent: LATENT) -> torch.Tensor:
        """Decode to IMAGE: float [b, height, width, 3] in 0..1 on the CPU."""

    def samplers(self) -> list[str]:
        """Sampler names for combos, "euler" among them."""

    def schedulers(self) -> list[str]:
        """Scheduler names for combos, "normal" among them."""

    def metadata_disabled(self) -> bool:
        """True when the owner asked that workflows are not written into pictures."""
