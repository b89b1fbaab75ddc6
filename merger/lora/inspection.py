"""What a LoRA file is: algorithms, ranks, blocks, energies, what it says of itself, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...core.progress import Progress, SilentProgress
from .factors import Factors, as_factors, change_of
from .metadata import tag_counts
from .modules import LoraFile, LoraModule
from .spectrum import spectrum_of

_FULL_ENERGY = 0.99


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
        """What the file says calls it, and the most frequent tags of each folder that no other folder has."""
        told = [self.metadata.get("modelspec.trigger_phrase", "").strip()]
        folders = list(tag_counts(self.metadata.get("ss_tag_frequency", "")).values())
        for counts in folders:
            own = {tag: n for tag, n in counts.items() if sum(tag in other for other in folders) == 1}
            most = max(counts.values(), default=0)
            told += [tag for tag, count in own.items() if count == most][:2]
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
        module = replace(module, keys=keys, is_dora=False)
        parts = {part: value for part, value in parts.items() if part != "dora_scale"}
    return as_factors(change_of(module, parts), module)
