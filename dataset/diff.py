"""What an operation did to the captions: counts per rule, entries that matched nothing, examples before and after."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .columns import TagColumn, runs
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

MAX_EXAMPLES = 6
_MAX_SHOWN_RULES = 60
_MAX_SHOWN_UNMATCHED = 40
_MAX_SHOWN_CHARS = 400


@dataclass(frozen=True, kw_only=True)
class RuleCount:
    """What one rule did.

    Attributes:
        rule: The rule in words, e.g. the entry of a list.
        touched: Captions it changed.
        removed: Tags it took out, counted over all captions.
        added: Tags it put in, or wrote otherwise.
        note: What else a person should know.
    """

    rule: str
    touched: int
    removed: int = 0
    added: int = 0
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One caption before and after."""

    path: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True)
class Diff:
    """What an operation did.

    Attributes:
        title: The operation.
        captions: Captions there are.
        captions_touched: Captions that changed.
        rules: Counts per rule.
        unmatched: One sentence per entry that matched nothing.
        examples: Some captions before and after.
    """

    title: str
    captions: int
    captions_touched: int
    rules: tuple[RuleCount, ...] = ()
    unmatched: tuple[str, ...] = ()
    examples: tuple[Example, ...] = ()

    def text(self) -> str:
        """A readable report."""
        lines = [f"{self.title}: {self.captions_touched} of {counted(self.captions, 'caption')} changed"]
        lines += _rule_lines(self.rules)
        shown = self.unmatched[:_MAX_SHOWN_UNMATCHED]
        lines += [f"  ! {_short(sentence)}" for sentence in shown]
        if len(self.unmatched) > len(shown):
            lines.append(f"  ! and {len(self.unmatched) - len(shown)} more that matched nothing")
        for example in self.examples:
            lines += [
                f"  {printable(example.path)}",
                f"    before: {_short(example.before)}",
                f"    after:  {_short(example.after)}",
            ]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """The same as plain JSON values."""
        return asdict(self)


def compare(
    before: "Dataset",
    after: "Dataset",
    *,
    title: str,
    rules: Iterable[RuleCount] = (),
    unmatched: Iterable[str] = (),
    max_examples: int = MAX_EXAMPLES,
) -> Diff:
    """What was done to the captions of a data set.

    Args:
        before: The data set as it was.
        after: The same pictures in the same order.
        title: The operation.
        rules: Counts per rule.
        unmatched: One sentence per entry that matched nothing.
        max_examples: How many captions to show, taken evenly from those that changed.

    Raises:
        ValueError: The two hold a different number of pictures.
    """
    changed = changed_rows(before.tags, after.tags)
    places = np.linspace(0, len(changed) - 1, num=min(max_examples, len(changed)), dtype=np.int64)
    examples = tuple(
        Example(path=before.names[row], before=before.caption(row), after=after.caption(row))
        for row in changed[places].tolist()
    )
    return Diff(
        title=title,
        captions=len(before),
        captions_touched=len(changed),
        rules=tuple(rules),
        unmatched=tuple(unmatched),
        examples=examples,
    )


def changed_rows(before: TagColumn, after: TagColumn) -> NDArray[np.int64]:
    """Rows whose tags or their order differ, ascending: int64.

    Raises:
        ValueError: The two columns have a different number of rows.
    """
    if len(before) != len(after):
        raise ValueError(f"{len(before)} captions cannot be compared with {len(after)}")
    if before is after:
        return np.zeros(0, dtype=np.int64)
    table = None
    if before.vocabulary is not after.vocabulary:
        place = {tag: number for number, tag in enumerate(before.vocabulary)}
        table = np.array([place.get(tag, -1) for tag in after.vocabulary], dtype=np.int32)
    lengths, new_lengths = before.lengths, after.lengths
    changed = lengths != new_lengths
    same = np.flatnonzero(~changed)
    same_lengths = lengths[same]
    if len(same) == len(before):
        left, right = before.ids, after.ids
    else:
        left = before.ids[runs(before.offsets[:-1][same], same_lengths)]
        right = after.ids[runs(after.offsets[:-1][same], same_lengths)]
    different = left != (right if table is None else table[right])
    if bool(different.any()):
        ends = np.cumsum(same_lengths)
        changed[same[np.searchsorted(ends, np.flatnonzero(different), side="right")]] = True
    return np.flatnonzero(changed)


def _rule_lines(rules: Sequence[RuleCount]) -> list[str]:
    if not rules:
        return []
    shown = list(rules)
    if len(shown) > _MAX_SHOWN_RULES:
        shown = sorted(shown, key=lambda rule: -rule.touched)[:_MAX_SHOWN_RULES]
    width = min(60, max(len(_cell(rule.rule)) for rule in shown))
    lines = [f"  {'rule':<{width}}  captions  removed    added"]
    for rule in shown:
        note = f"  {rule.note}" if rule.note else ""
        lines.append(f"  {_cell(rule.rule):<{width}}  {rule.touched:>8}  {rule.removed:>7}  {rule.added:>7}{note}")
    if len(rules) > len(shown):
        lines.append(f"  and {len(rules) - len(shown)} more rules that touched fewer captions")
    return lines


def _cell(text: str) -> str:
    return printable(text if len(text) <= 60 else text[:57] + "...")


def _short(text: str) -> str:
    return printable(text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "...")
