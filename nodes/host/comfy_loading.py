"""ComfyUI's MODEL, CLIP and VAE of tensors that lie in no file.

Like ``comfy.py``, this file touches ComfyUI, and only inside functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import FormatError
from ...core.stream import Stop, run_jobs
from .protocol import CLIP, MODEL, VAE

if TYPE_CHECKING:
    import torch

    from ...core.progress import Progress
    from ...core.tensors import TensorSource
    from ...families._spec import Variant


def load_source(
    source: TensorSource, *, variant: Variant, progress: Progress, temp_dir: Path
) -> tuple[MODEL, CLIP, VAE]:
    """As ComfyUI's checkpoint loader after it has read the file.

    Raises:
        FormatError: ComfyUI does not know what it is.
    """
    from .comfy_pico import is_pico, load_pico_tensors
    from .comfy_variant import as_told

    tensors = all_tensors(source, progress)
    if is_pico(source.header):
        model, clip, vae = load_pico_tensors(source.header, tensors, source.path, temp_dir=temp_dir)
        return as_told(model, variant), clip, vae
    import comfy.sd
    import folder_paths

    loaded = comfy.sd.load_state_dict_guess_config(
        tensors,
        output_vae=True,
        output_clip=True,
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
    )
    if loaded is None:
        raise FormatError(f"ComfyUI does not know what {source.path.name} is; merge full checkpoints of one kind")
    model, clip, vae, *_ = loaded
    return as_told(model, variant), clip, vae


def all_tensors(source: TensorSource, progress: Progress) -> dict[str, torch.Tensor]:
    """Every tensor of a source, several computed at once."""
    found: dict[str, torch.Tensor] = {}

    def do(key: str, stop: Stop) -> None:
        stop.check()
        found[key] = source.tensor(key)

    run_jobs(source.keys(), do, progress=progress, text="merging")
    return {key: found[key] for key in source.keys()}  # noqa: SIM118 -- a source is not a mapping
