"""The inspection of a LoRA file, written out: lines for a person, plain values for a program."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .inspection import Inspection
from .metadata import recipe_of
from .modules import LoraModule

_MAX_SHOWN = 5
SHOWN_TAGS = 20
_TITLES = {
    "lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "full": "full difference", "norm": "norm", "diag_oft": "OFT",
    "ia3": "(IA)^3",
}  # fmt: skip
_TOLD = {
    "ss_steps": "steps",
    "ss_epoch": "epochs",
    "ss_learning_rate": "learning rate",
    "ss_optimizer": "optimizer",
    "ss_clip_skip": "clip skip",
    "ss_resolution": "resolution",
}


def report(found: Inspection) -> str:
    """The inspection in lines for a person."""
    modules = [facts.module for facts in found.modules]
    texts, spatial = sum(module.is_text for module in modules), sum(module.is_spatial for module in modules)
    lines = [
        f"{found.name}: {found.family}, {_algorithms(modules)}, {found.size_bytes / 2**20:.2f} MiB, {_types(modules)}.",
        f"{len(modules)} modules: {len(modules) - texts} of the UNet ({spatial} 3x3 convolutions), {texts} of text "
        "encoders.",
        _sizes(found),
    ]
    if found.other_keys:
        lines.append(f"{len(found.other_keys)} tensors of embeddings travel along, such as {found.other_keys[0]}.")
    troubles = (
        (found.broken, "hold NaN or infinite numbers: the file is broken"),
        (found.dead, "change nothing"),
    )
    for stems, words in troubles:
        if stems:
            lines.append(f"{len(stems)} modules {words}, such as {', '.join(stems[:_MAX_SHOWN])}.")
    lines += _said(found)
    lines.append("Energy by block (share of the squared norm of all changes):")
    energies = found.energy_by_block()
    total = sum(energies.values())
    lines += [f"  {block:6} {energy / total if total else 0.0:7.2%}" for block, energy in energies.items()]
    return "\n".join(lines)


def _algorithms(modules: Sequence[LoraModule]) -> str:
    names = Counter(title_of(module) for module in modules)
    return ", ".join(name if len(names) == 1 else f"{name} ({count})" for name, count in names.most_common())


def title_of(module: LoraModule) -> str:
    """A module's algorithm as people call it."""
    name = _TITLES.get(module.algorithm, module.algorithm)
    if module.is_dora:
        return "DoRA" if name == "LoRA" else f"{name} with DoRA"
    return "LoCon" if name == "LoRA" and module.is_spatial else name


def _types(modules: Sequence[LoraModule]) -> str:
    return " and ".join(sorted({dtype for module in modules for dtype in module.dtypes.values()}))


def _sizes(found: Inspection) -> str:
    ranks = Counter((facts.module.rank, facts.module.alpha) for facts in found.modules)
    shown = ", ".join(
        f"{rank if rank is not None else 'none'} / {'none' if alpha is None else f'{alpha:g}'} ({count} modules)"
        for (rank, alpha), count in ranks.most_common(_MAX_SHOWN)
    )
    used = [facts.used_rank for facts in found.modules if facts.used_rank]
    mean = (
        f"; 99 % of the energy is in {sum(used) / len(used):.1f} ranks on average, {max(used)} at most" if used else ""
    )
    return f"Rank / alpha: {shown}{mean}."


def _said(found: Inspection) -> list[str]:
    said = found.metadata
    lines = []
    base = said.get("ss_sd_model_name") or said.get("modelspec.architecture")
    if base:
        lines.append(f"Trained on {base} ({said.get('ss_base_model_version', 'version not said')}).")
    told = [f"{words} {said[key]}" for key, words in _TOLD.items() if said.get(key) not in (None, "", "None")]
    if told:
        lines.append(f"Said of the training: {', '.join(told)}.")
    if found.triggers():
        lines.append(f"Trigger: {', '.join(found.triggers())}.")
    if found.tags():
        lines.append("Tags: " + ", ".join(f"{tag} ({count})" for tag, count in found.tags()[:SHOWN_TAGS]) + ".")
    made = recipe_of(said)
    if isinstance(made, dict) and "operation" in made:
        lines.append(f"Made by: {made['operation']}.")
    if not said:
        lines.append("The file says nothing of itself (no metadata).")
    return lines


def as_json(found: Inspection) -> dict[str, Any]:
    """The inspection as plain values."""
    return {
        "name": found.name,
        "family": found.family,
        "size_bytes": found.size_bytes,
        "blocks": {block: math.sqrt(energy) for block, energy in found.energy_by_block().items()},
        "dead": found.dead,
        "broken": found.broken,
        "triggers": found.triggers(),
        "tags": dict(found.tags()),
        "metadata": dict(found.metadata),
        "modules": [
            {
                "stem": facts.module.stem,
                "name": facts.module.name,
                "block": facts.module.block,
                "algorithm": title_of(facts.module),
                "rank": facts.module.rank,
                "alpha": facts.module.alpha,
                "norm": math.sqrt(facts.energy),
                "used_rank": facts.used_rank,
            }
            for facts in found.modules
        ],
    }
