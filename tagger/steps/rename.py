"""Renaming: a tag gets a name of its own, so that it does not bleed into tags that share a word with it."""

from dataclasses import dataclass

from ...core.params import Params, param
from ...dataset.table import Dataset
from ._lists import pairs, resolved
from ._renaming import rename_all
from ._spec import Outcome, Step, StepContext

RENAMED = "renamed for prompting: "
"""Begins the history line that keeps what was renamed; the line holds ``old -> new`` pairs separated by commas."""


@dataclass(frozen=True, kw_only=True)
class RenameParams(Params):
    """What is renamed."""

    names: str = param(
        "aiming at viewer -> aav",
        doc="One pair to a line, 'aiming at viewer -> aav', or CSV 'aiming at viewer,aav'; # begins a comment",
        multiline=True,
    )
    file: str = param("", doc="A CSV file below an allowed folder with more pairs: old name, new name")


def apply(dataset: Dataset, params: RenameParams, context: StepContext) -> Outcome:
    """Renames; the pairs in use are kept in the history, because prompts have to say the new names."""
    given = pairs(params.names, what="names")
    given += pairs(context.text_of(params.file), what=f"file {params.file!r}", typed=False)
    targets = resolved(given, what="the list of names")
    tags, rules, unmatched = rename_all(dataset.tags, given, targets)
    used = [rule.rule for rule in rules if " -> " in rule.rule]
    note = RENAMED + ", ".join(used) if used else "rename: nothing to rename"
    return dataset.with_tag_column(tags, note=note), rules, unmatched


def renamed(dataset: Dataset) -> dict[str, str]:
    """What the history says was renamed: old name to the name that prompts have to use."""
    found: dict[str, str] = {}
    for line in dataset.history:
        if line.startswith(RENAMED):
            for pair in line[len(RENAMED) :].split(", "):
                old, _, new = pair.partition(" -> ")
                found[old] = new
    return found


STEP = Step(
    name="rename",
    title="Rename Tags",
    summary="Gives tags names of their own, and keeps the list for prompting",
    source="Notes of a LoRA trainer: 'aiming at viewer' became 'aav', because it bled into 'aiming'",
    params=RenameParams,
    apply=apply,
    main="names",
)
