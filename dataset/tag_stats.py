"""Statistics of tags: how many pictures hold each, which come together, how many a picture has."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .tokens import CHUNK_TOKENS
from .words import counted, printable

if TYPE_CHECKING:
    from .table import Dataset

_LISTED = 25


@dataclass(frozen=True, kw_only=True, eq=False)
class TagStats:
    """Statistics of a data set's tags.

    Attributes:
        pictures: Number of pictures.
        names: Tags in use, most frequent first, then by name.
        counts: int64 [tags], pictures that hold each.
        top: The ids of the tags that ``together`` is about, as places in ``names``.
        together: int64 [top, top], pictures that hold both.
        per_picture: int64 [pictures], tags of each.
        tokens: int64 [pictures], tokens of each caption; None where nobody counted them.
    """

    pictures: int
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    top: int
    together: NDArray[np.int64]
    per_picture: NDArray[np.int64]
    tokens: NDArray[np.int64] | None = None

    def text(self) -> str:
        """The figures as text."""
        if not self.names:
            return "No picture has a tag."
        per = self.per_picture
        lines = [
            f"{counted(len(self.names), 'different tag')} on {counted(self.pictures, 'picture')}; per picture: mean "
            f"{per.mean():.1f}, median {np.median(per):.0f}, least {per.min()}, most {per.max()}",
            f"on one picture only: {int((self.counts == 1).sum())}; on all of them: "
            f"{int((self.counts == self.pictures).sum())}",
        ]
        if self.tokens is not None:
            over = [
                f"over {limit}: {int((self.tokens > limit).sum())}"
                for limit in (CHUNK_TOKENS, 2 * CHUNK_TOKENS, 3 * CHUNK_TOKENS)
            ]
            lines.append(
                f"tokens per caption: mean {self.tokens.mean():.1f}, most {self.tokens.max()}; {', '.join(over)}"
            )
        lines += ["", "pictures  share  tag"]
        lines += [
            f"{count:>8} {count / self.pictures:>6.1%}  {printable(name)}"
            for name, count in zip(self.names[:_LISTED], self.counts[:_LISTED].tolist(), strict=True)
        ]
        if len(self.names) > _LISTED:
            lines.append(f"and {len(self.names) - _LISTED} more")
        return "\n".join(lines)


def tag_stats(dataset: "Dataset", *, top: int, tokens: NDArray[np.int64] | None = None) -> TagStats:
    """Counts tags per picture; a tag that a caption holds twice counts once.

    Args:
        dataset: The table.
        top: How many of the most frequent tags are compared with each other.
        tokens: Tokens of every caption, from :func:`tokens.caption_tokens`.
    """
    column = dataset.tags.deduplicated()
    counts = column.counts()
    used = np.flatnonzero(counts)
    names = np.array([column.vocabulary[tag] for tag in used], dtype=object)
    order = np.lexsort((names.astype(str), -counts[used])) if len(used) else np.zeros(0, dtype=np.int64)
    ids = used[order]
    top = min(top, len(ids))
    return TagStats(
        pictures=len(dataset),
        names=tuple(column.vocabulary[tag] for tag in ids),
        counts=counts[ids],
        top=top,
        together=_together(dataset, ids[:top]),
        per_picture=column.lengths,
        tokens=tokens,
    )


def _together(dataset: "Dataset", ids: NDArray[np.int64]) -> NDArray[np.int64]:
    has = np.zeros((len(dataset), len(ids)), dtype=np.float32)
    for place, tag in enumerate(ids.tolist()):
        has[dataset.tags.rows_with(tag), place] = 1.0
    # Exact in float32 up to 16 million pictures.
    return np.asarray(np.rint(has.T @ has), dtype=np.int64)
