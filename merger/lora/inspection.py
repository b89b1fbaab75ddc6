"""What a LoRA file is: algorithms, ranks, blocks, energies, what it says of itself, and what is wrong with it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...core.progress import Progress, SilentProgress
from .factors import Factors, as_factors, change_of
from .metadata import recipe_of, tag_counts
from .modules import LoraFile, LoraModule
from .spectrum import spectrum_of

_FULL_ENERGY = 0.99
_MAX_SHOWN = 5
SHOWN_TAGS = 20


@dataclass(frozen=True, kw_only=True)
class ModuleFacts:
    """One module, measured.

    Attributes:
        module: of the file.
        energy: squared norm of its change; of a DoRA, of the part that does not depend on the base model.
        used_rank: ranks that hold 99 % of that energy; None where it has none.
        is_finite: whether all its numbers are finite; energy and rank are 0 and None where they are not.
    """

    module: LoraModule
    energy: float = 0.0
    used_rank: int | None = None
    is_finite: bool = True


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """A LoRA file, measured.

    Attributes:
        name: of the file.
        size_bytes: of the file.
        family: title of its model family.
        modules: measured, in the order of the file.
        metadata: of the file.
        other_keys: tensors that are no modules.
        blocks: of the family, in the order of the forward pass.
    """

    name: str
    size_bytes: int
    family: str
    modules: tuple[ModuleFacts, ...]
    metadata: Mapping[str, str]
    other_keys: tuple[str, ...]
    blocks: tuple[str, ...]

    @property
    def dead(self) -> list[str]:
        """Modules that change nothing."""
        return [facts.module.stem for facts in self.modules if facts.is_finite and facts.energy == 0.0]

    @property
    def broken(self) -> list[str]:
        """Modules that hold NaN or infinite numbers."""
        return [facts.module.stem for facts in self.modules if not facts.is_finite]

    def energy_by_block(self) -> dict[str, float]:
        """Squared norm of all changes of a block; text encoders first, blocks the file lacks left out."""
        found: dict[str, float] = {}
        for block in ("TE", *self.blocks):
            values = [facts.energy for facts in self.modules if facts.module.block == block]
            if values:
                found[block] = sum(values)
        return found

    def tags(self) -> list[tuple[str, int]]:
        """The tags it was trained with, the most frequent first."""
        total: Counter[str] = Counter()
        for counts in tag_counts(self.metadata.get("ss_tag_frequency", "")).values():
            total.update(counts)
        return sorted(total.items(), key=lambda item: (-item[1], item[0]))

    def triggers(self) -> list[str]:
        """What the file says calls it, and tags that every picture of a folder has."""
        told = [self.metadata.get("modelspec.trigger_phrase", "").strip()]
        for counts in tag_counts(self.metadata.get("ss_tag_frequency", "")).values():
            most = max(counts.values(), default=0)
            told += [tag for tag, count in counts.items() if count == most][:2]
        return list(dict.fromkeys(tag for tag in told if tag))


def inspect_lora(file: LoraFile, *, progress: Progress | None = None) -> Inspection:
    """Measures every module of an open file, broken ones as well."""
    progress = progress or SilentProgress()
    facts = []
    for number, module in enumerate(file.modules):
        facts.append(_measured(file, module))
        progress.update(number + 1, len(file.modules), f"measuring {file.name}")
    return Inspection(
        name=file.name,
        size_bytes=file.path.stat().st_size,
        family=file.family.title,
        modules=tuple(facts),
        metadata=file.metadata,
        other_keys=file.other_keys,
        blocks=file.family.blocks,
    )


def _measured(file: LoraFile, module: LoraModule) -> ModuleFacts:
    parts = file.parts(module)
    if not all(bool(torch.isfinite(value.float()).all()) for value in parts.values()):
        return ModuleFacts(module=module, is_finite=False)
    vectors = [parts[part] for part in (module.vector_part, module.bias_part) if part is not None]
    energy = sum(float(value.double().square().sum()) for value in vectors)
    change = own_change(module, parts)
    if change is None:
        return ModuleFacts(module=module, energy=energy)
    spectrum = spectrum_of(change)
    sums = torch.cumsum(spectrum.values.square(), dim=0)
    used = int((sums < _FULL_ENERGY * spectrum.energy).sum()) + 1 if spectrum.values.numel() else 0
    return ModuleFacts(module=module, energy=energy + spectrum.energy, used_rank=min(used, spectrum.values.numel()))


def own_change(module: LoraModule, parts: Mapping[str, Tensor]) -> Factors | None:
    """The change that a module makes by itself; of a DoRA without its lengths, None of what needs the base weight."""
    if not module.is_matrix or (module.relative and not module.is_dora):
        return None
    if module.is_dora:
        keys = {part: key for part, key in module.keys.items() if part != "dora_scale"}
        module = LoraModule(**{**vars(module), "keys": keys, "is_dora": False})
        parts = {part: value for part, value in parts.items() if part != "dora_scale"}
    return as_factors(change_of(module, parts), module)


def report(found: Inspection) -> str:
    """The inspection in lines for a person."""
    modules = [facts.module for facts in found.modules]
    lines = [
        f"{found.name}: {found.family}, {_algorithms(modules)}, {found.size_bytes / 2**20:.2f} MiB, {_types(modules)}.",
        f"{len(modules)} modules: {sum(not m.is_text for m in modules)} of the UNet ({sum(m.is_spatial for m in modules)} "
        f"3x3 convolutions), {sum(m.is_text for m in modules)} of text encoders.",
        _sizes(found),
    ]
    if found.other_keys:
        lines.append(f"{len(found.other_keys)} tensors of embeddings travel along, such as {found.other_keys[0]}.")
    for stems, words in (
        (found.broken, "hold NaN or infinite numbers: the file is broken"),
        (found.dead, "change nothing"),
    ):
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
    titles = {"lora": "LoRA", "loha": "LoHa", "lokr": "LoKr", "full": "full difference", "norm": "norm",
              "diag_oft": "OFT", "ia3": "(IA)^3"}  # fmt: skip
    name = titles.get(module.algorithm, module.algorithm)
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
    facts = {"ss_steps": "steps", "ss_epoch": "epochs", "ss_learning_rate": "learning rate", "ss_optimizer": "optimizer",
             "ss_clip_skip": "clip skip", "ss_resolution": "resolution"}  # fmt: skip
    told = [f"{words} {said[key]}" for key, words in facts.items() if said.get(key) not in (None, "", "None")]
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
