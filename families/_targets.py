"""Every layer that any network can be put on, with what it does in the model."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from ._spec import Components, Family, Kind, Target

GROUPS = (
    "text-attention",
    "text-mlp",
    "self-attention",
    "cross-attention",
    "feed-forward",
    "projections",
    "resnets",
    "samplers",
    "time",
    "ends",
    "norms",
)
"""What a module does, each module in one group."""

_BY_PATH: tuple[tuple[str, str], ...] = (
    (r"\.self_attn\.", "text-attention"),
    (r"\.mlp\.", "text-mlp"),
    (r"\.attn1\.", "self-attention"),
    (r"\.attn2\.", "cross-attention"),
    (r"\.ff\.", "feed-forward"),
    (r"\.proj_(in|out)$", "projections"),
    (r"\.resnets\.\d+\.", "resnets"),
    (r"\.(down|up)samplers\.\d+\.", "samplers"),
    (r"^(time|add)_embedding\.", "time"),
    (r"^conv_(in|out)$", "ends"),
)


def group_of(path: str, kind: Kind) -> str | None:
    """The group of a module by its diffusers or transformers path, None for one that no network is put on."""
    if kind == "norm":
        return "norms"
    return next((group for pattern, group in _BY_PATH if re.search(pattern, path)), None)


def every_target(
    family: Family, components: Components, *, unet: bool = True, text_encoder: bool = True
) -> list[Target]:
    """Text encoders first, then all layers of the UNet in its own order: linear, convolution and normalisation.

    The normalisation layers of text encoders are left out: ComfyUI knows no name for them in a LoRA file.

    Raises:
        InputError: a wanted part is not loaded.
    """
    found = [
        replace(target, group=group_of(f".{target.path}", target.kind) or "")
        for target in family.targets(components, unet=False, text_encoder=text_encoder)
    ]
    if unet:
        family.targets(components, unet=True, text_encoder=False)  # says so where it is not loaded
        found.extend(_unet_targets(family, components.unet))
    return found


def _unet_targets(family: Family, unet: nn.Module) -> Iterator[Target]:
    for path, module in unet.named_modules():
        kind = kind_of(module)
        group = None if kind is None else group_of(path, kind)
        if kind is None or group is None:
            continue
        stem = family.unet_stem(unet, path)
        block = family.block_of_stem(stem)
        yield Target(stem=stem, path=path, part="unet", block=block, kind=kind, module=module, group=group)


def kind_of(module: nn.Module) -> Kind | None:
    """Linear, convolution by kernel size, or a normalisation with weights; None for anything else."""
    if isinstance(module, nn.Linear):
        return "linear"
    if isinstance(module, nn.Conv2d):
        return "conv1x1" if tuple(module.kernel_size) == (1, 1) else "conv3x3"
    if isinstance(module, (nn.LayerNorm, nn.GroupNorm)) and isinstance(module.weight, Tensor):
        return "norm"
    return None
