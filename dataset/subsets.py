"""Options of some of a data set's folders: repeats, kept tokens, shuffling, dropout, prefix, flips."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import InputError, nearest_names
from ..core.params import Params, param
from .batches import effective_repeats
from .captions import split_tags
from .layout import MAX_REPEATS
from .table import Dataset, Subset
from .words import counted, printable

WHICH = ("all", "training", "regularisation")
SWITCH = ("keep", "on", "off")
SEPARATORS = ("keep_tokens_separator", "secondary_separator")


@dataclass(frozen=True, kw_only=True)
class SubsetParams(Params):
    """Which folders, and which of their options change."""

    folders: str = param(
        "*",
        doc="Folders whose options change, by name or pattern, separated by commas or lines: 10_cat, *dog*, or the "
        "text of a kohya folder. * means all.",
        multiline=True,
    )
    which: str = param("all", doc="Only folders for training, only those for regularisation, or all.", choices=WHICH)
    repeats: int = param(
        0, doc="How often each picture is seen per epoch; 0 keeps what it is.", minimum=0, maximum=MAX_REPEATS
    )
    keep_tokens: int = param(
        -1,
        doc="Tags at the front that stay there and are never dropped; -1 keeps what it is.",
        unit="tags",
        minimum=-1,
        maximum=1000,
    )
    shuffle_captions: str = param("keep", doc="Puts the other tags in a new order each time.", choices=SWITCH)
    flip: str = param("keep", doc="Mirrors pictures at random.", choices=SWITCH)
    caption_dropout: float = param(
        -1.0,
        doc="Share of times a picture is trained without any caption; -1 keeps what it is.",
        minimum=-1.0,
        maximum=1.0,
        step=0.05,
    )
    tag_dropout: float = param(
        -1.0,
        doc="Share of the movable tags that is left out each time; -1 keeps what it is.",
        minimum=-1.0,
        maximum=1.0,
        step=0.05,
    )
    caption_prefix: str = param(
        "", doc="Tags put in front of every caption of these folders; empty keeps what it is, a single - takes it away."
    )
    keep_tokens_separator: str = param(
        "",
        doc="Mark in the captions, such as |||: tags before it stay in front, tags after a second one stay at the end, "
        "those between move. Empty keeps what it is, a single - takes it away.",
        advanced=True,
    )
    secondary_separator: str = param(
        "",
        doc="Mark between tags, such as ;;;, that move and are dropped together; becomes a comma. Empty keeps what it "
        "is, a single - takes it away.",
        advanced=True,
    )
    loss_weight: float = param(
        -1.0,
        doc="Factor on the loss of these folders' pictures, on top of the pictures' own; -1 keeps what it is.",
        minimum=-1.0,
        maximum=100.0,
        step=0.1,
        advanced=True,
    )

    def __post_init__(self) -> None:
        """Also refuses negative shares other than -1.

        Raises:
            InputError: A value is refused.
        """
        super().__post_init__()
        for name, limit in (("caption_dropout", 1), ("tag_dropout", 1), ("loss_weight", 100)):
            value = getattr(self, name)
            if value < 0 and value != -1.0:
                raise InputError(f"{name} is {value}, allowed is 0 to {limit}, or -1 to keep what it is")
        for name in SEPARATORS:
            if "," in getattr(self, name):
                raise InputError(
                    f"{name} is {getattr(self, name)!r}: a comma parts all tags already; choose another mark, such as "
                    "|||"
                )
        first, second = (getattr(self, name).strip() for name in SEPARATORS)
        if first and second and first != "-" and second != "-" and (first in second or second in first):
            raise InputError(
                f"keep_tokens_separator is {first!r} and secondary_separator is {second!r}: one holds the other, so "
                "they cannot be told apart; choose two different marks, such as ||| and ;;;"
            )


def with_subset_options(dataset: Dataset, params: SubsetParams) -> tuple[Dataset, str]:
    """Changes options of some folders.

    Returns:
        The data set, and a report: which folders took which options, and patterns that matched none.

    Raises:
        InputError: No folder matches.
    """
    patterns = split_tags(params.folders.replace("\n", ","))
    chosen = [_is_chosen(subset, patterns, params.which) for subset in dataset.subsets]
    names = [name for subset in dataset.subsets for name in _names_of(subset)]
    missed = [pattern for pattern in patterns if not any(_matches(subset, pattern) for subset in dataset.subsets)]
    if not any(chosen):
        raise InputError(
            f"no {'' if params.which == 'all' else params.which + ' '}folder matches {params.folders.strip()!r}"
            f"{_near(missed[0] if missed else '', names)} (there are: {', '.join(dict.fromkeys(names))[:400]})"
        )
    changes = _changes(params)
    subsets = [
        replace(subset, **changes) if is_chosen else subset
        for subset, is_chosen in zip(dataset.subsets, chosen, strict=True)
    ]
    what = ", ".join(f"{key} = {value}" for key, value in changes.items()) or "nothing"
    note = f"subset options of {counted(sum(chosen), 'folder')}: {what}"
    result = dataset.with_subsets(subsets, note=note)
    lines = [f"Changed for {sum(chosen)} of {counted(len(subsets), 'folder')}: {what}."]
    lines += [f"  ! pattern {pattern!r} matched no folder{_near(pattern, names)}" for pattern in missed]
    lines += _without_marks(result, changes)
    return result, "\n".join([*lines, subset_table(result)])


def subset_table(dataset: Dataset) -> str:
    """The options of every folder, one line each."""
    seen = effective_repeats(dataset)
    lines = []
    for number, subset in enumerate(dataset.subsets):
        rows = dataset.subset_index == number
        parts = [
            f"{counted(int(rows.sum()), 'picture')}{' for regularisation' if subset.is_reg else ''}",
            counted(subset.repeats, "repeat"),
            f"{int(seen[rows].sum())} per epoch",
            f"keeps {counted(subset.keep_tokens, 'tag')}",
            "shuffled" if subset.shuffle_captions else "in order",
        ]
        parts += ["flipped"] if subset.flip else []
        parts += [f"caption dropout {subset.caption_dropout:g}"] if subset.caption_dropout else []
        parts += [f"tag dropout {subset.tag_dropout:g}"] if subset.tag_dropout else []
        parts += [f"prefix {subset.caption_prefix!r}"] if subset.caption_prefix else []
        parts += [f"separator {subset.keep_tokens_separator!r}"] if subset.keep_tokens_separator else []
        parts += [f"secondary separator {subset.secondary_separator!r}"] if subset.secondary_separator else []
        parts += [f"loss times {subset.loss_weight:g}"] if subset.loss_weight != 1.0 else []
        lines.append(f"  {printable(subset.folder.name)}: {', '.join(parts)}")
    return "\n".join(lines)


def _changes(params: SubsetParams) -> dict[str, Any]:
    changes: dict[str, Any] = {}
    if params.repeats:
        changes["repeats"] = params.repeats
    if params.keep_tokens >= 0:
        changes["keep_tokens"] = params.keep_tokens
    for name in ("shuffle_captions", "flip"):
        if getattr(params, name) != "keep":
            changes[name] = getattr(params, name) == "on"
    for name in ("caption_dropout", "tag_dropout", "loss_weight"):
        if getattr(params, name) >= 0:
            changes[name] = getattr(params, name)
    for name in SEPARATORS:
        mark = getattr(params, name).strip()
        if mark:
            changes[name] = "" if mark == "-" else mark
    prefix = params.caption_prefix.strip()
    if prefix:
        changes["caption_prefix"] = "" if prefix == "-" else ", ".join(split_tags(prefix))
    return changes


def _without_marks(dataset: Dataset, changes: Mapping[str, Any]) -> list[str]:
    """A line for each mark that was set and stands in no caption."""
    marks = {name: changes[name] for name in SEPARATORS if changes.get(name)}
    used = dataset.tag_counts() if marks else {}
    return [
        f"  ! {name} {mark!r} stands in no caption: all tags go by keep_tokens and commas; write it into the captions"
        for name, mark in marks.items()
        if not any(mark in tag for tag in used)
    ]


def _is_chosen(subset: Subset, patterns: Sequence[str], which: str) -> bool:
    if which != "all" and subset.is_reg != (which == "regularisation"):
        return False
    return any(_matches(subset, pattern) for pattern in patterns)


def _names_of(subset: Subset) -> tuple[str, ...]:
    return (subset.folder.name, subset.concept) if subset.concept else (subset.folder.name,)


def _matches(subset: Subset, pattern: str) -> bool:
    wanted = pattern.casefold()
    return any(name.casefold() == wanted or fnmatch.fnmatchcase(name.casefold(), wanted) for name in _names_of(subset))


def _near(pattern: str, names: Sequence[str]) -> str:
    near = nearest_names(pattern, names) if pattern else []
    return f"; did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
