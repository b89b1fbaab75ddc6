"""The scorecard of a grid: does the trigger call the concept, and does everything else still work."""

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from PIL import Image

from ..core.errors import InputError
from ..core.progress import Progress, SilentProgress
from ..core.table_picture import draw_table
from .grid import Grid, GridCell, GridRef, open_grid
from .metrics.tag_recall import normalise, prompt_tags, tag_recall

Judge = Callable[[Image.Image], Iterable[str]]


@dataclass(frozen=True, kw_only=True)
class ColumnScore:
    """Figures of one column (or row, where the prompts are the columns).

    Attributes:
        label: Its label on the sheet.
        num_trigger: Cells whose prompt holds the trigger.
        num_trigger_seen: Those in which the judge sees the concept.
        num_other: Cells without the trigger.
        num_judged: Those whose prompt holds a tag that the judge knows.
        num_success: Those in which it sees every such tag.
        num_false: Cells without the trigger in which it sees the concept.
        trigger_recall: num_trigger_seen / num_trigger; None without such cells.
        other_success: num_success / num_judged; None without such cells.
        kept: num_success over that of the first column; None when the first has none.
        false_triggers: num_false / num_other; None without such cells.
    """

    label: str
    num_trigger: int
    num_trigger_seen: int
    num_other: int
    num_judged: int
    num_success: int
    num_false: int
    trigger_recall: float | None
    other_success: float | None
    kept: float | None
    false_triggers: float | None


@dataclass(frozen=True, kw_only=True)
class ScoreTable:
    """The scorecard.

    Attributes:
        columns: One score per column of the compared axis, in order.
        axis: Name of the compared axis.
        trigger: The trigger looked for in prompts.
        concept_tag: The tag that stands for the concept, or several that do so together, separated by commas.
    """

    columns: tuple[ColumnScore, ...]
    axis: str
    trigger: str
    concept_tag: str

    def to_json(self) -> dict[str, Any]:
        """Return plain values, shares rounded to four digits."""
        rows = [
            {name: round(value, 4) if isinstance(value, float) else value for name, value in asdict(column).items()}
            for column in self.columns
        ]
        return {"axis": self.axis, "trigger": self.trigger, "concept_tag": self.concept_tag, "columns": rows}

    def rows(self) -> list[list[str]]:
        """Return the table as texts, header first; every share stands with its counts."""
        head = [self.axis or "column", "trigger recall", "false triggers", "other prompts right", "kept"]
        table = [head]
        for column in self.columns:
            table.append(
                [
                    column.label,
                    _share(column.trigger_recall, column.num_trigger_seen, column.num_trigger),
                    _share(column.false_triggers, column.num_false, column.num_other),
                    _share(column.other_success, column.num_success, column.num_judged),
                    "-" if column.kept is None else f"{column.kept:.2f}",
                ]
            )
        return table

    def text(self) -> str:
        """Return the table as aligned plain text."""
        rows = self.rows()
        widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
        return "\n".join(
            "  ".join(f"{item:<{width}}" for item, width in zip(row, widths, strict=True)).rstrip() for row in rows
        )

    def picture(self) -> Image.Image:
        """Draw the table."""
        title = f"trigger '{self.trigger}', concept '{self.concept_tag}'"
        return draw_table(self.rows(), title=title)


def has_trigger(prompt: str, trigger: str) -> bool:
    """Say whether a prompt holds the trigger as whole words; case and underscores do not count."""
    words = re.escape(normalise(trigger))
    return re.search(rf"(?<!\w){words}(?!\w)", " ".join(prompt.replace("_", " ").lower().split())) is not None


def score_grid(
    grid: Grid | GridRef,
    judge: Judge,
    vocabulary: Iterable[str],
    trigger: str,
    concept_tag: str,
    progress: Progress | None = None,
) -> ScoreTable:
    """Judge every cell and count.

    The compared axis is the columns; where only the columns change the prompt, it is the rows.

    Args:
        grid: The grid.
        judge: Names the tags it sees in a picture.
        vocabulary: Every tag the judge knows.
        trigger: Words that call the concept.
        concept_tag: The judge's tag for the concept; of several, separated by commas, all must be seen.
        progress: Told after each cell.

    Raises:
        InputError: No trigger, or a concept tag that the judge does not know.
        StorageError: A cell cannot be read.
    """
    grid = open_grid(grid) if isinstance(grid, GridRef) else grid
    progress = progress or SilentProgress()
    known = frozenset(map(normalise, vocabulary))
    concept = frozenset(prompt_tags(concept_tag))
    if not trigger.strip():
        raise InputError("No trigger was given to score by; write the word that calls the concept.")
    unknown = [tag.strip() for tag in concept_tag.split(",") if normalise(tag) not in known]
    if unknown:
        raise InputError(
            f"The judge does not know the concept tag '{unknown[0]}' (it knows {len(known)} tags); give one it knows."
        )
    by_row = _rows_are_compared(grid)
    labels = (grid.y_labels if by_row else grid.x_labels) or ("all",)
    groups: list[list[tuple[GridCell, frozenset[str]]]] = [[] for _ in labels]
    for count, cell in enumerate(grid.cells):
        progress.update(count, len(grid.cells), f"Judging cell {count + 1} of {len(grid.cells)}")
        seen = frozenset(map(normalise, judge(cell.image())))
        groups[cell.row if by_row else cell.column].append((cell, seen))
    progress.update(len(grid.cells), len(grid.cells))
    scores: list[ColumnScore] = []
    for label, group in zip(labels, groups, strict=True):
        first = scores[0].num_success if scores else None
        scores.append(_score(label, group, known, trigger, concept, first))
    axis = grid.y_name if by_row else grid.x_name
    return ScoreTable(columns=tuple(scores), axis=axis, trigger=trigger, concept_tag=concept_tag)


def _rows_are_compared(grid: Grid) -> bool:
    """Say whether the prompts are the columns, so that rows are what differs in everything else."""
    if not grid.y_labels:
        return False
    along_rows = len({cell.prompt for cell in grid.cells if cell.row == 0}) > 1
    along_columns = len({cell.prompt for cell in grid.cells if cell.column == 0}) > 1
    return along_rows and not along_columns


def _score(
    label: str,
    group: list[tuple[GridCell, frozenset[str]]],
    known: frozenset[str],
    trigger: str,
    concept: frozenset[str],
    first_success: int | None,
) -> ColumnScore:
    called = [seen for cell, seen in group if has_trigger(cell.prompt, trigger)]
    others = [(cell, seen) for cell, seen in group if not has_trigger(cell.prompt, trigger)]
    recalls = [tag_recall(cell.prompt, seen, known) for cell, seen in others]
    judged = [recall for recall in recalls if recall.asked]
    num_seen = sum(concept <= seen for seen in called)
    num_false = sum(concept <= seen for _, seen in others)
    num_success = sum(not recall.missed for recall in judged)
    base_success = num_success if first_success is None else first_success
    return ColumnScore(
        label=label,
        num_trigger=len(called),
        num_trigger_seen=num_seen,
        num_other=len(others),
        num_judged=len(judged),
        num_success=num_success,
        num_false=num_false,
        trigger_recall=_ratio(num_seen, len(called)),
        other_success=_ratio(num_success, len(judged)),
        kept=_ratio(num_success, base_success),
        false_triggers=_ratio(num_false, len(others)),
    )


def _ratio(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _share(share: float | None, part: int, whole: int) -> str:
    return "-" if share is None else f"{share:.2f} ({part} of {whole})"
