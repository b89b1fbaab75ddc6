"""Core tags of each class as a table, a wildcard list for prompts, and a document of triggers and tags."""

from dataclasses import dataclass

import numpy as np

from ..core.params import Params, param
from ..dataset.table import Dataset
from ..dataset.words import counted, printable
from .steps._core import CLASS_CHOICES, Classes, CoreTable, CoreTag, classes_of, core_table
from .steps.rename import renamed

MAX_SHOWN_CLASSES = 200
MAX_LOOKED_AT = 2000
"""Most frequent tags of a class among which the document looks for those to be prompted."""


@dataclass(frozen=True, kw_only=True)
class StatisticsParams(Params):
    """How the tags are counted and shown."""

    class_by: str = param("folder", doc="What makes pictures one class (one character)", choices=CLASS_CHOICES)
    core_share: float = param(
        0.35,
        doc="A tag is a core tag where this share of the class's pictures with one person has it",
        minimum=0.0,
        maximum=1.0,
        step=0.05,
    )
    rows: int = param(40, doc="Tags shown per class", minimum=1, maximum=1000)
    skip_reg: bool = param(True, doc="Leave regularisation pictures out")


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Texts about the tags of a data set.

    Attributes:
        report: Tag, count, share and verdict for each class.
        wildcards: One line per class for a wildcard file: its first core tag and the others.
        document: What to prompt: trigger, what is bound to it, what has to be said, renamed tags.
        table: The numbers.
    """

    report: str
    wildcards: str
    document: str
    table: CoreTable


def statistics(dataset: Dataset, params: StatisticsParams) -> Statistics:
    """Counts tags per class.

    Source: core_tag.json and wildcard.txt of anime_screenshot_pipeline.
    """
    classes = classes_of(dataset, params.class_by, skip_reg=params.skip_reg)
    table = core_table(dataset, classes, core_share=params.core_share)
    rows_of = {name: table.class_rows(number) for number, name in enumerate(classes.names)}
    counts = np.bincount(classes.of_row[classes.of_row >= 0], minlength=len(classes.names)).tolist()
    pictures = dict(zip(classes.names, counts, strict=True))
    used = [name for name in classes.names if pictures[name]]
    first = usual_first_tags(dataset, classes)
    report = [f"{len(used)} {'class' if len(used) == 1 else 'classes'}, core from "
              f"{params.core_share:.0%} of the pictures with one person"]  # fmt: skip
    for name in used[:MAX_SHOWN_CLASSES]:
        rows = rows_of[name]
        report.append(f"{printable(name)}: {counted(pictures[name], 'picture')}, {counted(len(rows), 'tag')}")
        report.append(f"  {'tag':<36} {'captions':>8} {'share':>5}  verdict")
        report += [_line(table[place]) for place in rows[: params.rows]]
        if len(rows) > params.rows:
            report.append(f"    and {len(rows) - params.rows} rarer tags")
    if len(used) > MAX_SHOWN_CLASSES:
        report.append(f"and {len(used) - MAX_SHOWN_CLASSES} more classes")
    return Statistics(
        report="\n".join(report),
        wildcards="\n".join(_wildcard(table, rows_of[name], first.get(name, "")) for name in used),
        document=_document(dataset, used, pictures, table, rows_of, params),
        table=table,
    )


def verdict(row: CoreTag) -> str:
    """What the lists and the share say about a tag of a class."""
    if row.kind == "people":
        return "count of people: stays"
    if row.trait is not None:
        where = "core" if row.is_core else "rare"
        what = {"body": "goes into the trigger", "worn": "worn: stays, unless it is always there"}[row.trait.kind]
        return f"{where} trait ({row.trait.kind}): {what if row.is_core else 'stays'}"
    if row.is_core:
        return f"core {row.kind}: stays, to be prompted"
    return row.kind


def _line(row: CoreTag) -> str:
    tag = printable(row.tag if len(row.tag) <= 36 else row.tag[:33] + "...")
    return f"  {tag:<36} {row.captions:>8} {row.share:>5.0%}  {verdict(row)}"


def usual_first_tags(dataset: Dataset, classes: Classes) -> dict[str, str]:
    """The tag with which at least half of the captions of a class begin: usually its trigger."""
    tags = dataset.tags
    filled = np.flatnonzero((tags.lengths > 0) & (classes.of_row >= 0))
    size = max(len(tags.vocabulary), 1)
    keys = classes.of_row[filled].astype(np.int64) * size + tags.ids[tags.offsets[:-1][filled]]
    unique, counts = np.unique(keys, return_counts=True)
    totals = np.bincount(classes.of_row[filled], minlength=len(classes.names))
    found: dict[str, str] = {}
    for key, count in zip(unique.tolist(), counts.tolist(), strict=True):
        number, tag_id = divmod(key, size)
        if 2 * count >= int(totals[number]):
            found.setdefault(classes.names[number], tags.vocabulary[tag_id])
    return found


def _wildcard(table: CoreTable, rows: range, first: str) -> str:
    ids = table.tag_ids[rows.start : rows.stop][table.is_core[rows.start : rows.stop]]
    core = [tag for tag_id in ids.tolist() if (tag := table.vocabulary[tag_id]) != first]
    return ", ".join([*([first] if first else []), *core])


def _document(
    dataset: Dataset,
    used: list[str],
    pictures: dict[str, int],
    table: CoreTable,
    rows_of: dict[str, range],
    params: StatisticsParams,
) -> str:
    lines = ["# Tags for prompting"]
    for name in used[:MAX_SHOWN_CLASSES]:
        rows = [table[place] for place in rows_of[name][:MAX_LOOKED_AT]]
        lines += ["", f"## {printable(name)} ({counted(pictures[name], 'picture')})"]
        for title, kinds in (
            ("always there", None),
            ("clothes and things worn", ("outfit", "worn")),
            ("traits still to be prompted", ("body",)),
            ("pose and expression", ("pose", "expression")),
            ("background", ("background",)),
        ):
            wanted = [
                row
                for row in rows
                if (row.share >= 0.999 if kinds is None else row.kind in kinds and row.share < 0.999)
            ][: params.rows]
            if wanted:
                lines.append(f"- {title}: " + ", ".join(f"{row.tag} ({row.captions})" for row in wanted))
    names = renamed(dataset)
    if names:
        lines += ["", "## Renamed: prompt the new name"]
        lines += [f"- {new} = {old}" for old, new in names.items()]
    return "\n".join(lines) + "\n"
