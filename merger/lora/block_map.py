"""Which blocks a LoRA file has, how many keys and modules each, and how much of its change lies in each."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from ...core.progress import Progress
from ...networks._spec import get_network
from .blocks import ResolvedWeights
from .energy import squared_norm
from .forms import TEXT_ENCODER, family_places
from .handle import Lora
from .modules import LoraFile, LoraModule, iter_parts


@dataclass(frozen=True, kw_only=True)
class BlockRow:
    """One block of the model.

    Attributes:
        block: Its name; the text encoders of SDXL are two rows, TE1 and TE2.
        num_modules: Modules of the file in it.
        num_keys: Tensors of the file in it, alphas among them.
        num_numbers: Numbers in these tensors.
        energy: Frobenius norm of its changes together, as the file holds them.
        weighted: The same with strengths and block weights.
        factors: Least and largest factor of its modules.
        algorithms: Their algorithms.
        unknown: Modules whose size depends on the base weight; their change is not in the energy.
    """

    block: str
    num_modules: int = 0
    num_keys: int = 0
    num_numbers: int = 0
    energy: float = 0.0
    weighted: float = 0.0
    factors: tuple[float, float] = (1.0, 1.0)
    algorithms: tuple[str, ...] = ()
    unknown: int = 0


@dataclass(frozen=True, kw_only=True)
class BlockMap:
    """A whole file, block by block.

    Attributes:
        name: Of the file.
        title: Of its model family.
        rows: Every block of the model in the order of the forward pass, text encoders first.
        weights: The block-weight text they were weighted with.
        notes: One sentence each.
    """

    name: str
    title: str
    rows: tuple[BlockRow, ...]
    weights: str
    notes: tuple[str, ...]

    @property
    def energy(self) -> float:
        """Frobenius norm of all changes together."""
        return math.sqrt(sum(row.energy**2 for row in self.rows))

    def share(self, row: BlockRow) -> float:
        """Part of the squared norm that lies in a row, 0..1."""
        return row.energy**2 / self.energy**2 if self.energy > 0.0 else 0.0


def map_blocks(lora: Lora, weights: ResolvedWeights, *, progress: Progress | None = None) -> BlockMap:
    """Look at every module of a LoRA file.

    Args:
        lora: The handle; its strengths and block weights make the weighted energy.
        weights: Its block weights resolved, `explain_strengths`.
        progress: Told after each module; may raise to cancel.

    Raises:
        FormatError: The file is damaged, or holds NaN.
    """
    with LoraFile.of(lora) as file:
        blocks = _all_rows(file)
        squares: dict[str, list[tuple[float, float]]] = {block: [] for block in blocks}
        modules: dict[str, list[LoraModule]] = {block: [] for block in blocks}
        factors: dict[str, list[float]] = {block: [] for block in blocks}
        unknown: Counter[str] = Counter()
        for done, (module, parts) in enumerate(iter_parts(file), start=1):
            block = _row_of(file, module)
            strength = lora.strength_clip if module.is_text else lora.strength_model
            factor = strength * weights.factors.get(module.stem, 1.0)
            square = squared_norm(module, parts)
            modules[block].append(module)
            factors[block].append(factor)
            if square is None:
                unknown[block] += 1
            else:
                squares[block].append((square, square * factor**2))
            if progress is not None:
                progress.update(done, len(file.modules))
        rows = tuple(_row(block, modules[block], squares[block], factors[block], unknown[block]) for block in blocks)
    return BlockMap(
        name=lora.name, title=file.family.title, rows=rows, weights=lora.block_weights, notes=_notes(rows, weights)
    )


def _all_rows(file: LoraFile) -> list[str]:
    encoders = [TEXT_ENCODER] if len(file.family.text_encoders) == 1 else ["TE1", "TE2"]
    return [*encoders, *file.family.blocks]


def _row_of(file: LoraFile, module: LoraModule) -> str:
    if module.block == TEXT_ENCODER and len(file.family.text_encoders) > 1:
        return family_places(file.family.name)(module.stem)[0]
    return module.block


def _row(
    block: str, modules: list[LoraModule], squares: list[tuple[float, float]], factors: list[float], unknown: int
) -> BlockRow:
    if not modules:
        return BlockRow(block=block)
    titles = ("DoRA" if module.is_dora else get_network(module.algorithm).title for module in modules)
    return BlockRow(
        block=block,
        num_modules=len(modules),
        num_keys=sum(len(module.keys) for module in modules),
        num_numbers=sum(module.num_numbers for module in modules),
        energy=math.sqrt(math.fsum(square for square, _ in squares)),
        weighted=math.sqrt(math.fsum(square for _, square in squares)),
        factors=(min(factors), max(factors)),
        algorithms=tuple(dict.fromkeys(titles)),
        unknown=unknown,
    )


def _notes(rows: tuple[BlockRow, ...], weights: ResolvedWeights) -> tuple[str, ...]:
    unknown = sum(row.unknown for row in rows)
    notes = list(weights.report)
    if unknown:
        total = sum(row.num_modules for row in rows)
        notes.append(
            f"{unknown} of {total} modules (DoRA, OFT, (IA)^3) change their layer relative to the base weight: how "
            "much is not in the file, so they are counted and not measured."
        )
    empty = [row.block for row in rows if row.num_modules and row.energy == 0.0 and not row.unknown]
    if empty:
        notes.append(f"The changes in {', '.join(empty)} are all zero.")
    return tuple(notes)


def table_of(found: BlockMap) -> list[tuple[str, ...]]:
    """The rows as texts, with a head: block, modules, keys, energy, share, factor, algorithms."""
    table: list[tuple[str, ...]] = [("block", "modules", "keys", "energy", "share", "factor", "weighted", "kind")]
    for row in found.rows:
        if not row.num_modules:
            table.append((row.block, "-", "-", "-", "-", "-", "-", ""))
            continue
        low, high = row.factors
        energy, share, weighted = f"{row.energy:.4g}", f"{found.share(row):.1%}", f"{row.weighted:.4g}"
        if row.unknown == row.num_modules:
            energy = share = weighted = "?"
        table.append((
            row.block, str(row.num_modules), str(row.num_keys), energy, share,
            f"{low:g}" if low == high else f"{low:g} to {high:g}", weighted, ", ".join(row.algorithms),
        ))  # fmt: skip
    return table


def report_of(found: BlockMap) -> str:
    """The table and the notes as text, columns aligned."""
    table = table_of(found)
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    there = sum(1 for row in found.rows if row.num_modules)
    head = (
        f"{found.name}, {found.title}: {there} of {len(found.rows)} blocks, "
        f"{sum(row.num_modules for row in found.rows)} modules, {sum(row.num_keys for row in found.rows)} keys, "
        f"energy {found.energy:.4g}"
    )
    return "\n".join([head, *lines, *found.notes])
