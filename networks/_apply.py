"""Reading LoRA files of every dialect by module, and adding their deltas to weights."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import torch
from torch import Tensor

from ..core.errors import FormatError
from ._spec import network_of_parts, networks

ALPHA = "alpha"

# Endings of other tools -> kohya's part names (peft, diffusers, older diffusers).
_DIALECTS: dict[str, str] = {
    ".lora_A.weight": "lora_down.weight",
    ".lora_B.weight": "lora_up.weight",
    ".lora_A.default.weight": "lora_down.weight",
    ".lora_B.default.weight": "lora_up.weight",
    ".lora_A": "lora_down.weight",
    ".lora_B": "lora_up.weight",
    ".lora.down.weight": "lora_down.weight",
    ".lora.up.weight": "lora_up.weight",
    "_lora.down.weight": "lora_down.weight",
    "_lora.up.weight": "lora_up.weight",
    ".lora_linear_layer.down.weight": "lora_down.weight",
    ".lora_linear_layer.up.weight": "lora_up.weight",
}


def _endings() -> dict[str, str]:
    table = {**_DIALECTS, f".{ALPHA}": ALPHA}
    for network in networks().values():
        table.update({f".{name}": name for name in network.part_names})
    return dict(sorted(table.items(), key=lambda item: -len(item[0])))


def split_file(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups a LoRA file's tensors by module.

    Args:
        tensors: `<stem>.<part>` -> tensor, in any dialect (kohya, peft, diffusers).

    Returns:
        stem -> part name as kohya writes it -> tensor, in the order of the file.

    Raises:
        FormatError: a key ends in no known part name.
    """
    endings = _endings()
    modules: dict[str, dict[str, Tensor]] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        for ending, part in endings.items():
            if key.endswith(ending):
                modules.setdefault(key[: -len(ending)], {})[part] = tensor
                break
        else:
            unknown.append(key)
    if unknown:
        raise FormatError(
            f"{len(unknown)} tensors of the LoRA file belong to no known network, e.g. {', '.join(unknown[:3])}; "
            f"known are {', '.join(networks())}"
        )
    return modules


def lora_delta(parts: Mapping[str, Tensor], *, stem: str = "", weight_shape: tuple[int, ...] | None = None) -> Tensor:
    """The full fp32 weight change of one module, whatever its network.

    Args:
        parts: the module's tensors as `split_file` names them, with or without `alpha`.
        stem: used in errors.
        weight_shape: shape of the base weight; None keeps the natural one.

    Raises:
        FormatError: no known network, or the shapes do not fit.
    """
    network = network_of_parts(parts, stem=stem)
    alpha = float(parts[ALPHA]) if ALPHA in parts else None
    return network.delta(
        {name: value for name, value in parts.items() if name != ALPHA}, alpha=alpha, weight_shape=weight_shape
    )


def lora_deltas(
    lora_tensors: Mapping[str, Tensor], stem: str, *, weight_shape: tuple[int, ...] | None = None
) -> Tensor:
    """The full fp32 weight change of the module `stem` of a LoRA file.

    Raises:
        FormatError: the file does not hold the module, or its network is not known.
    """
    modules = split_file({key: value for key, value in lora_tensors.items() if key.startswith(stem)})
    if stem not in modules:
        raise FormatError(f"the LoRA file holds no module '{stem}'")
    return lora_delta(modules[stem], stem=stem, weight_shape=weight_shape)


def add_deltas(
    weights: MutableMapping[str, Tensor],
    lora: Mapping[str, Tensor],
    *,
    strength: float | Mapping[str, float] = 1.0,
) -> list[str]:
    """Adds a LoRA to weights: W + strength * dW, in fp32, then back to the weight's dtype.

    Args:
        weights: stem -> base weight; changed entries are replaced by new tensors, the old ones stay as they are.
        lora: the tensors of a LoRA file.
        strength: one for all, or stem -> strength (stems left out get 0).

    Returns:
        The stems of the file that `weights` does not hold.
    """
    unused: list[str] = []
    for stem, parts in split_file(lora).items():
        if stem not in weights:
            unused.append(stem)
            continue
        factor = strength if isinstance(strength, (int, float)) else strength.get(stem, 0.0)
        if factor == 0.0:
            continue
        weight = weights[stem]
        with torch.no_grad():
            change = lora_delta(parts, stem=stem, weight_shape=tuple(weight.shape)).to(weight.device)
            weights[stem] = torch.add(weight.float(), change, alpha=factor).to(weight.dtype)
    return unused
