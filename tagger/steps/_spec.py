"""What a tag step is: its parameters and a pure function from data set to data set that says what it did."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from ...core.discovery import discover
from ...core.errors import InputError
from ...core.params import Params
from ...core.progress import Progress, SilentProgress
from ...dataset.columns import TagColumn
from ...dataset.diff import RuleCount
from ...dataset.table import Dataset

TokenCounter = Callable[[Sequence[str]], Sequence[int]]
"""Numbers of CLIP tokens of some texts, without start and end."""

Outcome = tuple[Dataset, tuple[RuleCount, ...], tuple[str, ...]]
"""The new data set, what each rule did, and a sentence per entry that matched nothing."""

_MAX_HISTORY_CHARS = 240


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a step may use of the world around it.

    Attributes:
        progress: Where long work reports, and learns that it should stop.
        read_file: Gives the text of a file that a person named, below the allowed folders; None where files cannot
            be opened.
        count_tokens: Counts CLIP tokens; None where no tokenizer is there, then the length is estimated.
        token_counter: Whose tokens are counted, in words.
    """

    progress: Progress = field(default_factory=SilentProgress)
    read_file: Callable[[str], str] | None = None
    count_tokens: TokenCounter | None = None
    token_counter: str = "the tokenizer that was given"

    def text_of(self, name: str) -> str:
        """The text of a list file; empty when no file is named.

        Raises:
            InputError: It cannot be opened.
        """
        if not name.strip():
            return ""
        if self.read_file is None:
            raise InputError(f"the file {name!r} cannot be opened here; paste its lines into the text field instead")
        return self.read_file(name)


@dataclass(frozen=True, kw_only=True)
class Step:
    """The export ``STEP`` of a file in this folder.

    Attributes:
        name: Key, the same as the file's name.
        title: For menus.
        summary: One sentence.
        source: Where the rule comes from.
        params: Its parameters.
        apply: Does it.
        main: The parameter that a recipe writes after the colon; empty when it has none.
        needs_tokens: Whether it counts tokens.
    """

    name: str
    title: str
    summary: str
    source: str
    params: type[Params]
    apply: Callable[[Dataset, Any, StepContext], Outcome]
    main: str = ""
    needs_tokens: bool = False


@cache
def steps() -> Mapping[str, Step]:
    """Every step by name; the folder is looked through once."""
    return MappingProxyType(discover(__package__, "STEP"))


def outcome(
    dataset: Dataset,
    tags: TagColumn,
    name: str,
    params: Params,
    rules: Sequence[RuleCount] = (),
    unmatched: Sequence[str] = (),
) -> Outcome:
    """The result of a step, with its line in the data set's history."""
    return dataset.with_tag_column(tags, note=history_note(name, params)), tuple(rules), tuple(unmatched)


def history_note(name: str, params: Params) -> str:
    """A step with what differs from its defaults, in one line."""
    parts = [name]
    for parameter in params.parameters():
        value = getattr(params, parameter.name)
        if value != parameter.default:
            shown = " / ".join(line.strip() for line in value.splitlines()) if isinstance(value, str) else str(value)
            parts.append(f"{parameter.name}={shown!r}" if isinstance(value, str) else f"{parameter.name}={shown}")
    note = " ".join(parts)
    return note if len(note) <= _MAX_HISTORY_CHARS else note[: _MAX_HISTORY_CHARS - 3] + "..."
