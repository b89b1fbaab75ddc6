"""What a data set says about itself, in words for a person."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from .batches import effective_repeats
from .table import CAPTION_FILE, CAPTION_FOLDER, CAPTION_METADATA, CAPTION_NONE, CAPTION_SITE
from .words import counted

if TYPE_CHECKING:
    from .table import Dataset

_MAX_LISTED = 20


def summary(dataset: "Dataset") -> str:
    """How the folder was read, its parts, its captions, what was left out and why."""
    lines = [dataset.layout]
    seen = effective_repeats(dataset)
    for number, subset in enumerate(dataset.subsets):
        rows = dataset.subset_index == number
        kind = " for regularisation" if subset.is_reg else ""
        lines.append(
            f"  {subset.folder.name}: {counted(int(rows.sum()), 'picture')}{kind}, "
            f"{counted(subset.repeats, 'repeat')}, {int(seen[rows].sum())} per epoch"
        )
    lines.append(f"{counted(len(dataset), 'picture')}, {int(seen.sum())} per epoch after repeats.")
    lines.append(_sizes_line(dataset))
    lines.append(_captions_line(dataset))
    unused = int(np.count_nonzero(seen == 0))
    if unused:
        lines.append(
            f"Never used: {counted(unused, 'regularisation picture')}, because there are more than training pictures."
        )
    lines.extend(dataset.notes)
    lines.extend(_skipped_lines(dataset))
    return "\n".join(lines)


def _sizes_line(dataset: "Dataset") -> str:
    areas = dataset.width_px.astype(np.int64) * dataset.height_px
    small, large = int(np.argmin(areas)), int(np.argmax(areas))
    return (
        f"Sizes from {dataset.width_px[small]} x {dataset.height_px[small]} "
        f"to {dataset.width_px[large]} x {dataset.height_px[large]} px."
    )


def _captions_line(dataset: "Dataset") -> str:
    counts = np.bincount(dataset.caption_source, minlength=CAPTION_METADATA + 1)
    parts = [f"{counts[CAPTION_FILE]} from their own file"]
    if counts[CAPTION_SITE]:
        parts.append(f"{counts[CAPTION_SITE]} from the site's metadata")
    if counts[CAPTION_METADATA]:
        parts.append(f"{counts[CAPTION_METADATA]} from a metadata file of many pictures")
    if counts[CAPTION_FOLDER]:
        parts.append(f"{counts[CAPTION_FOLDER]} from their folder's text (no caption file)")
    if counts[CAPTION_NONE]:
        parts.append(f"{counts[CAPTION_NONE]} without any (no caption file, no folder text)")
    tags = len(dataset.tag_counts())
    return f"Captions: {', '.join(parts)}; {counted(tags, 'different tag')}."


def _skipped_lines(dataset: "Dataset") -> list[str]:
    if not dataset.skipped:
        return []
    lines = [f"Left out ({len(dataset.skipped)}):"]
    lines.extend(f"  {entry}" for entry in dataset.skipped[:_MAX_LISTED])
    rest = dataset.skipped[_MAX_LISTED:]
    if rest:
        reasons = Counter(entry.reason for entry in rest).most_common(5)
        lines.append(f"  and {len(rest)} more: " + "; ".join(f"{count} x {reason}" for reason, count in reasons))
    return lines
