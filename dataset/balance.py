"""How often each folder must be seen so that every branch of a tree of folders weighs alike.

The tree comes from folder names: ``characters~fanart~Euphyllia`` is three levels. A node's share is its weight over
that of its siblings, a leaf's share the product over its levels, a picture's the leaf's over the number of its files;
repeats are that over the smallest one. Source: the weight tree of cyber-meow/anime_screenshot_pipeline; with equal
weights and rounding down it gives the 19 folders of published LyCORIS experiments.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..core.errors import InputError
from ..core.params import Params, param
from .balance_tree import LEVEL, Levels, parse_weights, shares_of
from .columns import TextColumn, frozen
from .layout import MAX_REPEATS, parse_repeat_name
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

FLOOR, NEAREST, DECIMALS = "floor", "nearest", "two decimals"
ROUNDINGS = (FLOOR, NEAREST, DECIMALS)
_EPSILON = 1e-9
_FEW_FILES = 20


@dataclass(frozen=True, kw_only=True)
class BalanceParams(Params):
    """How repeats are planned."""

    weights: str = param(
        "",
        doc="One line per rule: pattern,weight. A pattern is a node's name or path (characters~fanart), * and ? stand "
        "for anything, the first that fits counts. Nodes without a rule weigh 1.",
        multiline=True,
    )
    rounding: str = param(
        FLOOR,
        doc="floor: down. nearest: to the nearest whole number. two decimals: for multiply.txt, rounded for training.",
        choices=ROUNDINGS,
    )
    min_repeats: int = param(
        1, doc="Repeats of the folder that needs fewest.", unit="repeats", minimum=1, maximum=1000, step=1
    )
    max_repeats: int = param(
        100,
        doc="No folder gets more repeats; above, its pictures would be learnt by heart.",
        unit="repeats",
        minimum=1,
        maximum=MAX_REPEATS,
        step=1,
    )
    target_steps: int = param(
        0,
        doc="Scale all repeats so that the run has about so many steps; 0 leaves them as the rule gives them.",
        unit="steps",
        minimum=0,
        maximum=100_000_000,
        step=100,
    )
    epochs: int = param(
        10, doc="Epochs of the run, for the number of steps.", unit="epochs", minimum=1, maximum=100_000, step=1
    )
    batch_size: int = param(
        1, doc="Pictures per step, for the number of steps.", unit="images", minimum=1, maximum=1024, step=1
    )
    warn_repeats: int = param(
        25,
        doc="Folders with at least so many repeats are warned of.",
        unit="repeats",
        minimum=2,
        maximum=MAX_REPEATS,
        step=1,
        advanced=True,
    )
    split_folders: bool = param(
        False,
        doc="Make every sub-folder with pictures a folder of its own first, so that a plain folder can be balanced by "
        "its sub-folders.",
        advanced=True,
    )


@dataclass(frozen=True, kw_only=True)
class FolderPlan:
    """The plan for one folder of pictures.

    Attributes:
        levels: Its place in the tree.
        files: Its number of pictures.
        share: Its wanted share of all pictures seen.
        exact: Repeats before rounding and the cap.
        multiply: Repeats as they go into ``multiply.txt``.
        repeats: Whole repeats for training.
    """

    levels: Levels
    files: int
    share: float
    exact: float
    multiply: float
    repeats: int

    @property
    def name(self) -> str:
        """Its path with ``~`` between the levels."""
        return "~".join(self.levels)

    @property
    def seen(self) -> int:
        """Pictures per epoch."""
        return self.files * self.repeats


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Repeats of all folders.

    Attributes:
        folders: In the order they were given.
        params: How they were planned.
        warnings: What a person should know, one sentence each.
        reg_pictures: Regularisation pictures, which are seen as often as all others together and are not planned.
    """

    folders: tuple[FolderPlan, ...]
    params: BalanceParams
    warnings: tuple[str, ...]
    reg_pictures: int = 0

    @property
    def seen(self) -> int:
        """Training pictures per epoch."""
        return sum(folder.seen for folder in self.folders)

    @property
    def steps(self) -> int:
        """Steps of the run, regularisation included, as if all batches were full."""
        pictures = self.seen * (2 if self.reg_pictures else 1) * self.params.epochs
        return math.ceil(pictures / self.params.batch_size)

    def seen_below(self) -> dict[Levels, int]:
        """Pictures per epoch of every node of the tree."""
        totals: dict[Levels, int] = {}
        for folder in self.folders:
            for depth in range(len(folder.levels) + 1):
                node = folder.levels[:depth]
                totals[node] = totals.get(node, 0) + folder.seen
        return totals

    def text(self) -> str:
        """A table of the folders, the shares of the tree's nodes, steps and warnings."""
        total = max(1, self.seen)
        reg = f", and as many of {self.reg_pictures} for regularisation" if self.reg_pictures else ""
        lines = [
            f"Balance of {counted(len(self.folders), 'folder')}: "
            f"{counted(sum(folder.files for folder in self.folders), 'file')}, "
            f"{self.seen} seen per epoch{reg}, about {counted(self.steps, 'step')} "
            f"({counted(self.params.epochs, 'epoch')}, batch size {self.params.batch_size}), "
            f"rounding: {self.params.rounding}",
            "",
            "repeats   exact   files    seen  wanted     got  folder",
        ]
        lines += [
            f"{folder.repeats:>7} {folder.exact:>7.2f} {folder.files:>7} {folder.seen:>7} {folder.share:>7.1%} "
            f"{folder.seen / total:>7.1%}  {printable(folder.name)}"
            for folder in self.folders
        ]
        inner = self._inner_lines(total)
        if inner:
            lines += ["", "   seen  wanted     got  branch", *inner]
        if self.warnings:
            lines += ["", *(f"! {warning}" for warning in self.warnings)]
        return "\n".join(lines)

    def _inner_lines(self, total: int) -> list[str]:
        leaves = {folder.levels for folder in self.folders}
        wanted: dict[Levels, float] = {}
        for folder in self.folders:
            for depth in range(1, len(folder.levels)):
                node = folder.levels[:depth]
                wanted[node] = wanted.get(node, 0.0) + folder.share
        seen = self.seen_below()
        return [
            f"{seen[node]:>7} {share:>7.1%} {seen[node] / total:>7.1%}  {printable('~'.join(node))}"
            for node, share in wanted.items()
            if node not in leaves
        ]


def plan_repeats(
    files: Mapping[Levels, int], params: BalanceParams, *, reg_pictures: int = 0, what: str = "folder"
) -> Plan:
    """Plans the repeats of folders.

    Args:
        files: Number of pictures of each folder by its place in the tree.
        params: Weights, rounding, caps and target.
        reg_pictures: Regularisation pictures beside them.
        what: What a leaf is called in errors.

    Raises:
        InputError: There is no folder, a folder is empty, or a weight is malformed.
    """
    if not files:
        raise InputError(f"there is no training {what} to balance; open a data set with pictures for training")
    for levels, count in files.items():
        if count < 1:
            raise InputError(f"the {what} {'~'.join(levels)!r} holds no pictures; leave it out or fill it")
    rules = parse_weights(params.weights)
    shares, unmatched = shares_of(list(files), rules)
    per_file = {levels: shares[levels] / files[levels] for levels in files}
    least = min(per_file.values())
    ratios = {levels: value / least for levels, value in per_file.items()}
    factor, notes = _factor(ratios, files, params, bool(reg_pictures))
    folders = tuple(_folder(levels, files[levels], shares[levels], factor * ratios[levels], params) for levels in files)
    warnings = (*notes, *unmatched, *_warnings(folders, params))
    return Plan(folders=folders, params=params, warnings=warnings, reg_pictures=reg_pictures)


def plan_dataset(dataset: "Dataset", params: BalanceParams) -> Plan:
    """Plans the repeats of a data set's training folders; regularisation folders keep theirs.

    Raises:
        InputError: See :func:`plan_repeats`.
    """
    counts = np.bincount(dataset.subset_index, minlength=len(dataset.subsets))
    files = {
        levels: int(counts[number])
        for number, levels in tree_places(dataset).items()
        if not dataset.subsets[number].is_reg
    }
    return plan_repeats(files, params, reg_pictures=int(dataset.is_reg.sum()))


def apply_plan(dataset: "Dataset", plan: Plan) -> "Dataset":
    """The data set with the planned repeats."""
    by_levels = {folder.levels: folder for folder in plan.folders}
    places = tree_places(dataset)
    subsets = [
        subset
        if subset.is_reg or places[number] not in by_levels
        else replace(subset, repeats=by_levels[places[number]].repeats)
        for number, subset in enumerate(dataset.subsets)
    ]
    changed = sum(new.repeats != old.repeats for new, old in zip(subsets, dataset.subsets, strict=True))
    return dataset.with_subsets(subsets, note=f"balanced: repeats of {counted(changed, 'folder')} changed")


def tree_places(dataset: "Dataset") -> dict[int, Levels]:
    """Place of each subset in the tree: folders below the root, without repeat counts, split at ``~``.

    Two subsets that would share a place keep apart by a number.
    """
    places: dict[int, Levels] = {}
    taken: set[Levels] = set()
    for number, subset in enumerate(dataset.subsets):
        parts = subset.folder.relative_to(dataset.root).parts if subset.folder.is_relative_to(dataset.root) else ()
        names = [_without_count(part) for part in parts or (subset.folder.name,)]
        levels = tuple(level for name in names for level in LEVEL.split(name) if level.strip())
        levels = levels or (subset.folder.name,)
        again = 2
        unique = levels
        while unique in taken:
            unique, again = (*levels[:-1], f"{levels[-1]} ({again})"), again + 1
        taken.add(unique)
        places[number] = unique
    return places


def split_by_folder(dataset: "Dataset") -> "Dataset":
    """The same pictures with every sub-folder that holds some as a subset of its own, with its parent's options.

    An ``N_name`` sub-folder does not bring its N: the parent's repeats are kept, to be balanced.
    """
    new_place: dict[tuple[int, str], int] = {}
    numbers = np.empty(len(dataset), dtype=np.int32)
    names = []
    for row, (subset, name) in enumerate(zip(dataset.subset_index.tolist(), dataset.names, strict=True)):
        folder, _, last = name.rpartition("/")
        numbers[row] = new_place.setdefault((subset, folder), len(new_place))
        names.append(last)
    subsets = []
    for number, below in new_place:
        old = dataset.subsets[number]
        concept = _without_count(below.rpartition("/")[2]) if below else old.concept
        subsets.append(replace(old, folder=old.folder / below if below else old.folder, concept=concept))
    return replace(
        dataset,
        subsets=tuple(subsets),
        names=TextColumn.from_strings(names),
        subset_index=frozen(numbers),
        history=(*dataset.history, f"split into {counted(len(subsets), 'folder')}"),
    )


def _folder(levels: Levels, files: int, share: float, exact: float, params: BalanceParams) -> FolderPlan:
    multiply = _rounded(exact, params)
    return FolderPlan(
        levels=levels,
        files=files,
        share=share,
        exact=exact,
        multiply=multiply,
        repeats=max(1, min(params.max_repeats, math.floor(multiply + 0.5))),
    )


def _rounded(exact: float, params: BalanceParams) -> float:
    if params.rounding == FLOOR:
        value = float(math.floor(exact + _EPSILON))
    elif params.rounding == NEAREST:
        value = float(math.floor(exact + 0.5))
    else:
        return min(float(params.max_repeats), max(0.01, round(exact, 2)))
    return min(float(params.max_repeats), max(1.0, value))


def _factor(
    ratios: Mapping[Levels, float], files: Mapping[Levels, int], params: BalanceParams, has_reg: bool
) -> tuple[float, list[str]]:
    """What all ratios are multiplied by, to reach the target if there is one."""
    if not params.target_steps:
        return float(params.min_repeats), []
    wanted = params.target_steps * params.batch_size / params.epochs / (2 if has_reg else 1)

    def seen(factor: float) -> int:
        return sum(
            files[levels] * _folder(levels, files[levels], 0.0, factor * ratio, params).repeats
            for levels, ratio in ratios.items()
        )

    low, high = 0.0, float(params.max_repeats)
    if seen(low) >= wanted or seen(high) <= wanted:
        best = low if seen(low) >= wanted else high
        bound = "with one repeat each" if best == low else f"with {params.max_repeats} repeats each"
        note = (
            f"{params.target_steps} steps cannot be reached: {bound} it is {seen(best)} pictures per epoch, wanted are "
            f"{wanted:.0f}; change the epochs, the batch size or the cap"
        )
        return max(best, _EPSILON), ([] if seen(best) == round(wanted) else [note])
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if seen(middle) < wanted else (low, middle)
    return min((low, high), key=lambda factor: abs(seen(factor) - wanted)), []


def _warnings(folders: Sequence[FolderPlan], params: BalanceParams) -> list[str]:
    warnings = []
    for folder in folders:
        name = printable(folder.name)
        if folder.repeats >= params.warn_repeats:
            few = ": they will be learnt by heart" if folder.files < _FEW_FILES else ""
            warnings.append(
                f"{name}: {counted(folder.files, 'file')} seen {folder.repeats} times each per epoch{few}; find more "
                "pictures, cap the repeats or lower the weight"
            )
        if folder.exact > params.max_repeats + _EPSILON:
            warnings.append(
                f"{name}: {folder.exact:.2f} repeats are capped at {params.max_repeats}; it gets less than its share"
            )
        elif folder.exact < 0.995:
            warnings.append(f"{name}: {folder.exact:.2f} repeats become 1; it gets more than its share")
    return warnings


def _without_count(name: str) -> str:
    parsed = parse_repeat_name(name)
    return parsed[1] if parsed is not None and parsed[1] else name
