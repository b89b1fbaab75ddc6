"""What an operation did to a LoRA, written out: errors, ranks, sizes, block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .drafts import Draft, Made, mean_rank


def draft_lines(draft: Draft, *, block_order: Sequence[str]) -> list[str]:
    """Errors and ranks of a draft, a table by block, and its notes.

    Args:
        draft: what was made.
        block_order: of the family; text encoders come first.
    """
    cut = [made for made in draft.modules if made.energy > 0.0]
    lines = []
    if cut:
        ranks = [made.rank for made in cut if made.rank is not None]
        before = [made.rank_before for made in cut if made.rank_before is not None]
        sizes = f"mean rank {mean_rank(cut):.1f} ({min(ranks)} to {max(ranks)})" if ranks else "no ranks"
        was = f", before {sum(before) / len(before):.1f}" if before else ""
        errors = sorted(made.error for made in cut)
        worst = max(cut, key=lambda made: made.error)
        lines += [
            f"{len(draft.modules)} modules: {sizes}{was}.",
            f"Relative error of the cut: {draft.error:.3%} of the whole change; of a module "
            f"{errors[len(errors) // 2]:.3%} in the middle, {worst.error:.3%} at most ({worst.place.path}).",
            "block   modules  rank   error",
            *(_row(block, made) for block, made in by_block(draft.modules, block_order).items()),
        ]
    else:
        lines.append(f"{len(draft.modules)} modules, unchanged in what they do.")
    return [*lines, *draft.notes]


def by_block(modules: Sequence[Made], order: Sequence[str]) -> dict[str, list[Made]]:
    """The modules of each block, text encoders first."""
    found: dict[str, list[Made]] = {}
    for block in ("TE", *order):
        members = [made for made in modules if made.block == block]
        if members:
            found[block] = members
    return found


def _row(block: str, members: Sequence[Made]) -> str:
    energy, lost = sum(made.energy for made in members), sum(made.lost for made in members)
    error = math.sqrt(lost / energy) if energy > 0.0 else 0.0
    return f"{block:6} {len(members):8} {mean_rank(members):6.1f} {error:8.2%}"


def draft_json(draft: Draft) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "error": draft.error,
        "notes": list(draft.notes),
        "modules": [
            {
                "path": made.place.path,
                "part": made.place.part,
                "block": made.block,
                "rank": made.rank,
                "rank_before": made.rank_before,
                "error": made.error,
                "norm": math.sqrt(made.energy),
            }
            for made in draft.modules
        ],
    }
