"""How much of every model is in a merge, and whether a chain of differences goes too far.

A merge that is linear in its models is one sum: each has a factor, and the factors add up to 1. Equal shares of n
models are 1/n each. An add difference takes its ancestor below 0 and lets the others add up to more than 1: from about
2.5 on the weights are so far from every model that pictures break.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from .block_rows import block_names, extra_rows
from .expression import Merge, Model, Node, walk
from .methods._spec import DELTA

LIMIT = 2.5
"""Sum of the positive shares above which a chain of differences is expected to break: four models at 0.5 reach it."""
EDGE = 1e-9


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one ingredient contributes.

    Attributes:
        name: Of the model, or of a merge that is not linear in what goes in.
        least: Factor in the block where it is least.
        greatest: Factor in the block where it is greatest; the same where there are no block weights.
    """

    name: str
    least: float
    greatest: float

    def text(self) -> str:
        """In words."""
        if abs(self.greatest - self.least) < EDGE:
            return f"{self.name}: {self.least:+.3f}"
        return f"{self.name}: {self.least:+.3f} to {self.greatest:+.3f}, by block"


def shares(root: Node, family: str | None = None) -> list[Share]:
    """The share of every ingredient, in the order in which they go in.

    Args:
        root: What is merged.
        family: Of the models; without it block weights are passed over.

    Raises:
        InputError: Block weights do not fit the family.
    """
    rows: tuple[str | None, ...] = (None,)
    has_weights = any(isinstance(node, Merge) and node.weights for node in walk(root))
    if family is not None and has_weights:
        rows = (*block_names(family), *extra_rows(family))
    tables = [_of_row(root, family, row) for row in rows]
    names = list(dict.fromkeys(name for table in tables for name in table))
    return [
        Share(
            name=name,
            least=min(table.get(name, 0.0) for table in tables),
            greatest=max(table.get(name, 0.0) for table in tables),
        )
        for name in names
    ]


def _of_row(root: Node, family: str | None, row: str | None) -> Mapping[str, float]:
    known: dict[int, dict[str, float]] = {}
    for node in walk(root):
        known[id(node)] = {node.name: 1.0} if isinstance(node, Model) else _of_merge(node, known, family, row)
    return known[id(root)]


def _of_merge(
    node: Merge, known: Mapping[int, Mapping[str, float]], family: str | None, row: str | None
) -> dict[str, float]:
    params = node.params
    if family is not None and row is not None and node.weights:
        values = {
            name: weights.resolve(family, float(getattr(params, name))).weights[row] for name, weights in node.weights
        }
        params = replace(params, **values)
    factors = node.spec.shares(params, len(node.inputs))
    if factors is None:
        inside = ", ".join(dict.fromkeys(name for child in node.inputs if child for name in known[id(child)]))
        return {f"{node.spec.title.lower()} of {inside}": 1.0}
    total: dict[str, float] = {}
    for child, factor in zip(node.inputs, factors, strict=True):
        for name, share in known[id(child)].items() if child is not None else ():
            total[name] = total.get(name, 0.0) + factor * share
    return total


def overshoot(found: list[Share]) -> float:
    """The sum of all positive shares; 1 for every mixture, more where differences are added."""
    return sum(max(0.0, share.greatest) for share in found)


def share_report(root: Node, family: str | None = None) -> list[str]:
    """Shares and warnings, one sentence each.

    Raises:
        InputError: Block weights do not fit the family.
    """
    found = shares(root, family)
    lines = ["effective shares:", *(f"  {share.text()}" for share in found)]
    total = overshoot(found)
    has_weights = any(isinstance(node, Merge) and node.weights for node in walk(root))
    if root.kind == DELTA or has_weights:
        return lines
    if total > LIMIT + EDGE:
        lines.append(
            f"WARNING: the models' shares add up to {total:.2f} before the ancestor is taken off; above {LIMIT:g} a "
            "chain of differences breaks the pictures: lower the factors, or mix the models in equal shares"
        )
    elif total > 1.0 + EDGE:
        lines.append(
            f"note: the models' shares add up to {total:.2f} before the ancestor is taken off (a mixture has 1, above "
            f"{LIMIT:g} pictures break)"
        )
    return lines
