"""A tree of folders with weights: the share of every leaf, and the rules that give the weights."""

import fnmatch
import math
import re
from collections.abc import Mapping, Sequence

from ..core.errors import InputError, nearest_names

LEVEL = re.compile(r"[~/]")
"""What parts the levels in a folder's name."""
Levels = tuple[str, ...]
"""A place in the tree: the names from the first level down."""


def parse_weights(text: str) -> list[tuple[str, float]]:
    """Rules (pattern, weight) of lines ``pattern,weight``; empty lines and those that begin with # do not count.

    Raises:
        InputError: A line is not such a rule; its number is named.
    """
    rules = []
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        pattern, comma, value = line.rpartition(",")
        try:
            weight = float(value)
        except ValueError:
            weight = math.nan
        if not comma or not pattern.strip() or math.isnan(weight):
            raise InputError(f"line {number} of the weights is {line!r}; write pattern,weight, such as fanart,0.5")
        if not 1e-6 <= weight <= 1e6:
            raise InputError(
                f"line {number} of the weights gives {weight:g} to {pattern.strip()!r}, allowed is 0.000001 to "
                "1000000; to leave a folder out, filter it"
            )
        rules.append((pattern.strip(), weight))
    return rules


def shares_of(leaves: Sequence[Levels], rules: Sequence[tuple[str, float]]) -> tuple[dict[Levels, float], list[str]]:
    """Share of every leaf, and a sentence for every rule that fits no node."""
    children: dict[Levels, dict[Levels, float]] = {}
    used: set[str] = set()
    for leaf in leaves:
        for depth in range(len(leaf)):
            node = leaf[: depth + 1]
            siblings = children.setdefault(leaf[:depth], {})
            if node not in siblings:
                siblings[node] = _weight(node, rules, used)
    for leaf in leaves:  # a folder with pictures of its own beside sub-folders: they weigh as one more sub-folder
        if leaf in children:
            own = (*leaf, "")
            children[leaf][own] = 1.0
    shares = {}
    for leaf in leaves:
        path = (*leaf, "") if leaf in children else leaf
        share = 1.0
        for depth in range(len(path)):
            siblings = children[path[:depth]]
            share *= siblings[path[: depth + 1]] / math.fsum(siblings.values())
        shares[leaf] = share
    return shares, _unmatched(rules, used, children)


def _weight(node: Levels, rules: Sequence[tuple[str, float]], used: set[str]) -> float:
    found = None
    for pattern, weight in rules:
        if _fits(node, pattern):
            used.add(pattern)
            found = weight if found is None else found
    return 1.0 if found is None else found


def _fits(node: Levels, pattern: str) -> bool:
    wanted = "~".join(LEVEL.split(pattern)).casefold()
    return fnmatch.fnmatchcase(node[-1].casefold(), wanted) or fnmatch.fnmatchcase("~".join(node).casefold(), wanted)


def _unmatched(
    rules: Sequence[tuple[str, float]], used: set[str], children: Mapping[Levels, Mapping[Levels, float]]
) -> list[str]:
    names = list(dict.fromkeys(node[-1] for siblings in children.values() for node in siblings if node[-1]))
    sentences = []
    for pattern, _ in rules:
        if pattern not in used:
            nearest = nearest_names(pattern, names)
            hint = f"; did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
            sentences.append(f"the weight of {pattern!r} matched 0 folders{hint}")
    return sentences
