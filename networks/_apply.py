"""Reading LoRA files of every dialect by module, and the weight change each module makes."""

from __future__ import annotations

from collections.abc import Mapping

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
