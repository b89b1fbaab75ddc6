"""Reading LoRA files of every dialect by module, and the change each module makes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from ..core.errors import FormatError
from ._dora import DORA
from ._spec import network_of_parts, networks

ALPHA = "alpha"
BIAS_CHANGE = "diff_b"

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
_BARE = "weight"
"""The part of (IA)^3 whose name ends every other network's too; it counts only beside `on_input`."""


def _endings() -> dict[str, str]:
    table = {**_DIALECTS, f".{ALPHA}": ALPHA}
    for network in networks().values():
        table.update({f".{name}": name for name in network.part_names})
    return dict(sorted(table.items(), key=lambda item: -len(item[0])))


def split_names(keys: Collection[str]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Groups the names of a LoRA file's tensors by module.

    Args:
        keys: `<stem>.<part>` in any dialect (kohya, peft, diffusers, LyCORIS).

    Returns:
        stem -> part name as kohya or LyCORIS writes it -> key, in the order of the file; and the keys of no known part.
    """
    endings, known = _endings(), frozenset(keys)
    modules: dict[str, dict[str, str]] = {}
    unknown: list[str] = []
    for key in keys:
        for ending, part in endings.items():
            if not key.endswith(ending):
                continue
            stem = key[: -len(ending)]
            if part == _BARE and f"{stem}.on_input" not in known:
                continue
            modules.setdefault(stem, {})[part] = key
            break
        else:
            unknown.append(key)
    return modules, unknown


def split_file(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Groups a LoRA file's tensors by module.

    Args:
        tensors: `<stem>.<part>` -> tensor, in any dialect.

    Returns:
        stem -> part name as kohya or LyCORIS writes it -> tensor, in the order of the file.

    Raises:
        FormatError: a key ends in no known part name.
    """
    modules, unknown = split_names(list(tensors))
    if unknown:
        raise FormatError(
            f"{len(unknown)} tensors of the LoRA file belong to no known network, e.g. {', '.join(unknown[:3])}; "
            f"known are {', '.join(networks())}"
        )
    return {stem: {part: tensors[key] for part, key in parts.items()} for stem, parts in modules.items()}


def lora_delta(
    parts: Mapping[str, Tensor],
    *,
    stem: str = "",
    weight_shape: tuple[int, ...] | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """The full fp32 weight change of one module, whatever its network.

    Args:
        parts: the module's tensors as `split_file` names them, with or without `alpha`.
        stem: used in errors.
        weight_shape: shape of the base weight; None keeps the natural one.
        weight: the base weight, which DoRA, OFT and (IA)^3 need.

    Raises:
        FormatError: no known network, the shapes do not fit, or the base weight is needed and not given.
    """
    network = network_of_parts(parts, stem=stem)
    shape = tuple(weight.shape) if weight is not None else None if weight_shape is None else tuple(weight_shape)
    own = {name: value for name, value in parts.items() if name != ALPHA}
    return network.delta(own, alpha=_alpha(parts), weight_shape=shape, weight=weight)


def module_change(
    parts: Mapping[str, Tensor], *, weight: Tensor, bias: Tensor | None = None, stem: str = ""
) -> tuple[Tensor, Tensor | None]:
    """The change of weight and bias of one module, fp32; None where the bias stays.

    Args:
        parts: the module's tensors as `split_file` names them.
        weight: the base weight, on the device of the parts.
        bias: the base bias where there is one; checked against a change of it.
        stem: used in errors.

    Raises:
        FormatError: as `lora_delta`.
    """
    change = lora_delta(parts, stem=stem, weight=weight)
    bias_change = bias_change_of(parts, stem=stem)
    if bias is not None and bias_change is not None and bias.shape != bias_change.shape:
        raise FormatError(
            f"the module '{stem}' of the LoRA file changes a bias of shape {list(bias_change.shape)}, but the base "
            f"model has {list(bias.shape)} there; the file was made for another architecture"
        )
    return change, bias_change


def bias_change_of(parts: Mapping[str, Tensor], *, stem: str = "") -> Tensor | None:
    """The change of a module's bias, fp32, or None; any network may have `diff_b` beside its own parts.

    Source: ComfyUI's comfy/lora.py, which reads `diff_b` whatever changes the weight, and writes such files.
    """
    own = network_of_parts(parts, stem=stem).bias_delta(parts)
    return parts[BIAS_CHANGE].float() if own is None and BIAS_CHANGE in parts else own


def needs_weight(parts: Mapping[str, Tensor], *, stem: str = "") -> bool:
    """Whether a module's change depends on the base weight: DoRA, OFT and (IA)^3."""
    return DORA in parts or network_of_parts(parts, stem=stem).relative


def effective_strength(parts: Mapping[str, Tensor], strength: float, *, stem: str = "") -> float:
    """The factor on a module's change when ComfyUI applies it with `strength`.

    ComfyUI's OFT takes the strength twice (weight_adapter/oft.py: in the rotation and in the sum), so that 0.5 there
    is a quarter.
    """
    return float(strength ** network_of_parts(parts, stem=stem).strength_power)


def _alpha(parts: Mapping[str, Tensor]) -> float | None:
    return float(parts[ALPHA]) if ALPHA in parts else None
