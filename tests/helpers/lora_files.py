"""LoRA files of every algorithm and naming with random values, for layers of any shape."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from lora_atelier.core.tensors import Header, TensorFile, write_tensors
from lora_atelier.families._spec import COMFY, DIFFUSERS, KOHYA, Family, Place, get_family

PART_NAMES = {
    KOHYA: {"lora_down.weight": ".lora_down.weight", "lora_up.weight": ".lora_up.weight"},
    DIFFUSERS: {"lora_down.weight": ".lora_A.weight", "lora_up.weight": ".lora_B.weight"},
    COMFY: {"lora_down.weight": ".lora_down.weight", "lora_up.weight": ".lora_up.weight"},
}


def random_parts(
    algorithm: str, shape: Sequence[int], *, rank: int = 4, alpha: float | None = 2.0, seed: int = 0
) -> dict[str, Tensor]:
    """A module's tensors by part, fp32, whose change has about the size of 0.1.

    Args:
        algorithm: lora, tucker, dora, loha, loha_tucker, lokr, lokr_whole, lokr_both, lokr_tucker, full, norm.
        shape: of the base weight.
        rank: of the factors.
        alpha: None writes none.
        seed: of the values.
    """
    torch.manual_seed(seed)
    out, inputs, *kernel = (*shape, 1)[:2] if len(shape) == 1 else shape
    taps, ones = math.prod(kernel), [1] * len(kernel)

    def values(*size: int) -> Tensor:
        return torch.randn(*size) * 0.3

    scale = {} if alpha is None else {"alpha": torch.tensor(alpha)}
    if algorithm in ("lora", "dora"):
        parts = {"lora_down.weight": values(rank, inputs, *kernel), "lora_up.weight": values(out, rank, *ones)}
        if algorithm == "dora":
            parts["dora_scale"] = values(1, inputs, *ones).abs() + 1.0
        return {**parts, **scale}
    if algorithm == "tucker":
        return {
            "lora_down.weight": values(rank, inputs, *ones), "lora_up.weight": values(out, rank, *ones),
            "lora_mid.weight": values(rank, rank, *kernel), **scale,
        }  # fmt: skip
    if algorithm == "loha":
        names = {"a": (out, rank), "b": (rank, inputs * taps)}
        return {**{f"hada_w{n}_{s}": values(*names[s]) for n in (1, 2) for s in "ab"}, **scale}
    if algorithm == "loha_tucker":
        names = {"a": (rank, out), "b": (rank, inputs)}
        parts = {f"hada_w{n}_{s}": values(*names[s]) for n in (1, 2) for s in "ab"}
        return {**parts, **{f"hada_t{n}": values(rank, rank, *kernel) for n in (1, 2)}, **scale}
    if algorithm.startswith("lokr"):
        return {**_lokr(algorithm, out, inputs, kernel, rank, values), **scale}
    if algorithm == "full":
        return {"diff": values(*shape), "diff_b": values(out)}
    assert algorithm == "norm"
    return {"w_norm": values(out), "b_norm": values(out)}


def _lokr(algorithm: str, out: int, inputs: int, kernel: list[int], rank: int, values: object) -> dict[str, Tensor]:
    make = values if callable(values) else None
    assert make is not None
    out_l, in_m = 4 if out % 4 == 0 else 1, 2 if inputs % 2 == 0 else 1
    out_k, in_n, ones = out // out_l, inputs // in_m, [1] * len(kernel)
    parts = {"lokr_w1": make(out_l, in_m)}
    if algorithm == "lokr_both":
        parts = {"lokr_w1_a": make(out_l, rank), "lokr_w1_b": make(rank, in_m)}
    if algorithm == "lokr_whole":
        return {**parts, "lokr_w2": make(out_k, in_n, *kernel)}
    if algorithm == "lokr_tucker":
        return {**parts, "lokr_t2": make(rank, rank, *(kernel or ones)), "lokr_w2_a": make(rank, out_k),
                "lokr_w2_b": make(rank, in_n)}  # fmt: skip
    return {**parts, "lokr_w2_a": make(out_k, rank), "lokr_w2_b": make(rank, in_n * math.prod(kernel))}


def shapes_of(header: Header, family: Family) -> dict[Place, tuple[int, ...]]:
    """The shape of every layer's weight in a checkpoint."""
    found: dict[Place, tuple[int, ...]] = {}
    for place in family.places_of_file(header):
        part = family.place_in_file(place, header)
        assert part is not None
        shape = header.shapes[part.key]
        found[place] = shape if part.rows is None else (part.rows[1] - part.rows[0], *shape[1:])
    return found


def write_lora(
    path: Path,
    modules: Mapping[Place, Mapping[str, Tensor]],
    *,
    family: str = "sd15",
    naming: str = KOHYA,
    dtype: torch.dtype = torch.float32,
    metadata: Mapping[str, str] | None = None,
) -> Path:
    """A LoRA file of modules in one naming; its metadata names the family unless told otherwise."""
    spec = get_family(family)
    tensors: dict[str, Tensor] = {}
    for place, parts in modules.items():
        stem = spec.stem_of_place(place, naming)
        for part, value in parts.items():
            ending = PART_NAMES[naming].get(part, f".{part}")
            tensors[f"{stem}{ending}"] = value.to(dtype) if value.is_floating_point() else value
    told = {"ss_base_model_version": spec.base_model_version} if metadata is None else dict(metadata)
    write_tensors(path, tensors, told)
    return path


def linear_places(base: Path, family: str = "sd15", *, every: int = 1) -> dict[Place, tuple[int, ...]]:
    """The layers that kohya's scripts train by default in a checkpoint, every n-th of them, with their shapes."""
    spec = get_family(family)
    with TensorFile(base) as file:
        shapes = shapes_of(file.header, spec)
    wanted = [place for place, shape in shapes.items() if _usual(place, shape)]
    return {place: shapes[place] for place in wanted[::every]}


def _usual(place: Place, shape: tuple[int, ...]) -> bool:
    if len(shape) < 2 or "embedding" in place.path or place.path == "text_projection":
        return False
    return place.part != "unet" or (".attentions." in place.path and shape[2:] in ((), (1, 1)))
