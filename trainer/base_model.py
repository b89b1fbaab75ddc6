"""The frozen model of a run: loaded, with the LoRAs that belong to it merged in, in the number format asked for."""

import logging
from collections.abc import Sequence

import torch
from torch import nn

from ..core.errors import FormatError
from ..core.progress import Progress
from ..core.tensors import read_tensors
from ..families._base import MergedLora
from ..families._spec import Components, Family
from ..families._storage import store_in_fp8
from ..networks._apply import effective_strength, module_change, split_file
from .plan import Checked

log = logging.getLogger("lora_atelier")


def load_frozen(checked: Checked, *, dtype: torch.dtype, device: torch.device, progress: Progress) -> Components:
    """Loads UNet and text encoders on the CPU, as they are trained on.

    Args:
        checked: the job.
        dtype: of the weights, and what 8-bit weights are cast to.
        device: where the model will compute.
        progress: told what is done, and may cancel.

    Raises:
        FormatError: the base or a LoRA of it does not fit.
        InputError: fp8_base is on and the device has no such type.
    """
    job = checked.job
    progress.status(f"loading {job.base.name}")
    components = checked.family.load(job.base.path, parts=("unet", "text_encoder"), dtype=dtype, progress=progress)
    merge_loras(checked.family, components, job.base.loras, progress)
    if job.params.fp8_base:
        store_in_fp8(components.unet, compute_dtype=dtype, device=device)
    return components


def merge_loras(family: Family, components: Components, loras: Sequence[MergedLora], progress: Progress) -> None:
    """Adds each LoRA's change to the loaded weights, in fp32, in the order given.

    Args:
        family: of the base.
        components: the loaded parts; changed in place.
        loras: with their strengths.
        progress: told which is merged, and may cancel.

    Raises:
        FormatError: no module of a LoRA is in this base.
    """
    if not loras:
        return
    modules = family.modules_by_stem(components)
    texts = {module for model in components.text_encoders for module in model.modules()}
    for lora in loras:
        progress.status(f"merging {lora.name} into the base")
        parts, factors = split_file(read_tensors(lora.path)), lora.factors()
        known = [stem for stem in parts if stem in modules]
        if not known:
            raise FormatError(
                f"none of the {len(parts)} modules of {lora.name} is in this base model; merge in a LoRA that was "
                "trained for this kind of base"
            )
        for stem in parts:
            if stem not in modules:
                log.warning("not merged into the base: %s", stem)
        for stem in known:
            progress.check()
            strength = lora.strength_clip if modules[stem] in texts else lora.strength_model
            _merge(modules[stem], parts[stem], strength * factors.get(stem, 1.0), stem=stem)


def _merge(module: nn.Module, parts: dict[str, torch.Tensor], strength: float, *, stem: str) -> None:
    weight, bias = module.weight, module.bias
    strength = effective_strength(parts, strength, stem=stem)
    if strength == 0.0 or not isinstance(weight, torch.Tensor):
        return
    own_bias = bias if isinstance(bias, torch.Tensor) else None
    with torch.no_grad():
        change, bias_change = module_change(parts, weight=weight, stem=stem)
        weight.copy_(weight.float() + strength * change.to(weight.device))
        if own_bias is not None and bias_change is not None:
            own_bias.copy_(own_bias.float() + strength * bias_change.to(own_bias.device))
